import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from PIL import Image
from scenes import scene

from skipway.data.doctor import duplicates
from skipway.data.doctor.alignment import laid_over, match
from skipway.data.doctor.duplicates import equal_rows, joined, near_pairs


def thumb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BILINEAR))


def thumbs(count: int, first: int = 0) -> np.ndarray:
    return np.stack([thumb(scene(first + i)) for i in range(count)])


def found(images: np.ndarray) -> set[tuple[int, int]]:
    return {(a, b) for a, b in near_pairs(images).places.tolist()}


CHANGES = {
    "brightened": lambda image: image.point(lambda v: min(255, int(v * 1.2 + 10))),
    "low contrast": lambda image: image.point(lambda v: 90 + v // 3),
    "cropped": lambda image: image.crop((5, 4, 91, 93)),
    "shifted": lambda image: image.crop((9, 0, 105, 96)),
    "resized": lambda image: image.resize((40, 40)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_nothing_else(change):
    originals = [scene(i, (114, 96)).crop((0, 0, 96, 96)) for i in range(60)]
    wide = [scene(i, (114, 96)) for i in range(20)]
    copies = [CHANGES[change](image if change == "shifted" else image.crop((0, 0, 96, 96))) for image in wide]
    images = np.stack([thumb(image) for image in [*originals, *copies]])
    pairs = near_pairs(images)
    got = {(a, b) for a, b in pairs.places.tolist()}
    assert got <= {(i, 60 + i) for i in range(20)}
    assert len(got) >= 19
    assert bool(pairs.mirrored.all()) == (change == "mirrored")


def test_unrelated_images_are_no_copies():
    assert found(thumbs(300)) == set()


def test_clothes_that_look_alike_are_no_copies():
    with np.load(ROOT / "src/skipway/data/fashion-sample.npz") as sample:
        images = torch.from_numpy(sample["train_images"][:800]).float()[:, None]
    images = F.interpolate(images, (32, 32), mode="bilinear").round().byte()[:, 0].numpy()
    assert found(images) == set()
    copy = np.clip(images[7].astype(int) * 0.9 + 5, 0, 255).astype(np.uint8)
    assert found(np.concatenate([images, copy[None]])) == {(7, 800)}


def test_flat_and_few_images():
    flat = np.full((5, 32, 32), 200, np.uint8)
    assert found(flat) == set()
    assert found(np.empty((0, 32, 32), np.uint8)) == set()
    assert found(thumbs(1)) == set()
    two = thumbs(1).repeat(2, 0)
    two[1, 0, 0] += 1
    assert found(two) == {(0, 1)}


def test_pages_with_the_same_mark_are_no_copies():
    pages = np.random.default_rng(0).integers(198, 203, (8, 32, 32)).astype(np.uint8)
    pages[:, 14:17, 20:23] = 10
    assert found(pages) == set()


def test_a_large_set_is_searched_by_hash(monkeypatch):
    images = thumbs(200)
    copies = np.clip(images[:50].astype(int) + 12, 0, 255).astype(np.uint8)
    images = np.concatenate([images, copies])
    exact = found(images)
    assert exact == {(i, 200 + i) for i in range(50)}
    monkeypatch.setattr(duplicates, "EXACT_UP_TO", 100)
    by_hash = found(images)
    assert by_hash <= exact
    assert len(by_hash) >= 48


def test_alignment_finds_a_known_shift_and_scale():
    big = torch.from_numpy(np.asarray(scene(3).convert("L"), np.float32))[None, None]
    first = F.interpolate(big, (32, 32), mode="bilinear", antialias=True)
    scale, right, down = 0.85, 0.06, -0.04
    line = (torch.arange(32) + 0.5) / 16 - 1
    grid = torch.stack(torch.meshgrid(line * scale + right, line * scale + down, indexing="xy"), -1)[None]
    second = F.grid_sample(first, grid, mode="bicubic", align_corners=False)
    shift = laid_over(first, second, (8, 16, 32))
    torch.testing.assert_close(shift[0], torch.tensor([scale - 1, scale - 1, right, down]), atol=0.02, rtol=0)
    assert match(first, second, shift).detail > 0.98
    assert match(first, second, torch.zeros(1, 4)).detail < 0.5


def test_progress_ends_at_the_total():
    told = []
    near_pairs(np.concatenate([thumbs(20), thumbs(20) // 2 + 40]), progress=lambda *numbers: told.append(numbers))
    assert told
    assert told[-1][0] == told[-1][1]


def test_equal_rows_and_joined():
    rows = np.array([[1, 2], [3, 4], [1, 2], [5, 6], [3, 4], [1, 2]], np.uint8)
    assert sorted(equal_rows(rows)) == [[0, 2, 5], [1, 4]]
    assert equal_rows(np.empty((0, 16), np.uint8)) == []
    assert sorted(joined(np.array([[4, 1], [7, 4], [2, 3]]), 9)) == [[1, 4, 7], [2, 3]]
