import io
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_photos
from PIL import Image

import skipway as package
from skipway.data.preview import ROWS, choose, draw, flags_of, preview
from skipway.data.source import ArraySource
from skipway.errors import InputError
from skipway.spec import AugmentSpec, DataSpec

SPEC = DataSpec(workers=0)


def source_of(labels: torch.Tensor, num_classes: int = 4) -> ArraySource:
    images = torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8)
    return ArraySource(images, labels, tuple("abcdefgh"[:num_classes]), {}, "set")


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_the_picture_is_written_beside_what_is_there(skipway, photos):
    result = skipway("data", "preview", photos, "--workers", 0, "--randaugment", 2)
    assert (result.code, result.out) == (0, "drawn in preview.png\n")
    first = Path("preview.png").read_bytes()
    again = skipway("data", "preview", photos, "--workers", 0, "--randaugment", 2)
    assert again.out == "drawn in preview-2.png\n"
    assert skipway("data", "preview", photos, "--workers", 0, "--seed", 1).out == "drawn in preview-3.png\n"
    assert Path("preview.png").read_bytes() == first == Path("preview-2.png").read_bytes()
    assert Path("preview-3.png").read_bytes() != first
    assert pixels(first).shape[1] > 1000


def test_python_and_the_command_draw_the_same(skipway, photos):
    skipway("data", "preview", photos, "--workers", 0, "--cutout", 0.5, "--out", "a.png")
    made = package.preview(DataSpec(str(photos), workers=0), augment=AugmentSpec(cutout=0.5), out="b.png")
    assert made.name == "b.png"
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


@pytest.mark.parametrize(
    ("out", "message"), [("picture.jpg", "must end in .png"), ("nowhere/preview.png", "no such folder: nowhere")]
)
def test_a_file_that_cannot_be_written_is_refused_before_any_work(out, message):
    with pytest.raises(InputError, match=message):
        preview("no-such-data", out=out)


def test_settings_that_do_not_fit_are_refused(skipway, photos):
    result = skipway("data", "preview", photos, "--transforms", "GausianBlur(3)")
    assert result.code == 2
    assert "Did you mean 'GaussianBlur'" in result.err
    assert not list(photos.parent.glob("cwd/*"))


def test_every_change_and_kind_of_image_can_be_drawn(photos, monkeypatch):
    spec = DataSpec(str(photos), workers=0, image_size=16)
    changes = AugmentSpec(
        random_resized_crop=0.3, trivialaugment=True, color_jitter=0.3, mixup=1.0, cutmix=1.0, erasing_rate=0.5
    )
    mixed = pixels(draw(spec, changes, 0))
    assert not np.array_equal(mixed, pixels(draw(spec, AugmentSpec(), 0)))
    deep = source_of(torch.arange(20) % 4)
    deep = ArraySource(torch.randn(20, 1, 8, 8) * 900 - 500, deep.labels, deep.classes, {}, "deep")
    several = ArraySource(
        torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8),
        (torch.arange(60).view(20, 3) % 7 < 3).byte(),
        ("a", "b", "c"),
        {},
        "several",
    )
    for source in (deep, several):
        monkeypatch.setattr("skipway.data.preview.open_source", lambda _, source=source: source)
        assert len(np.unique(pixels(draw(DataSpec("x"), AugmentSpec(mixup=1.0, color_jitter=0.2), 0)))) > 20


def test_what_is_drawn_is_what_training_sees(monkeypatch):
    """With nothing on, all columns hold the image; the grey level is that of the file."""
    images = torch.full((20, 1, 8, 8), 100, dtype=torch.uint8)
    source = ArraySource(images, torch.arange(20) % 2, ("a", "b"), {}, "flat")
    monkeypatch.setattr("skipway.data.preview.open_source", lambda _: source)
    picture = pixels(draw(DataSpec("x"), AugmentSpec(flip=False, pad_crop=0.0), 0))
    share = (picture == 100).all(-1).mean()
    assert share > 0.5
    erased = pixels(draw(DataSpec("x"), AugmentSpec(flip=False, pad_crop=0.25), 0))
    assert (erased == 100).all(-1).mean() < share


def test_broken_files_are_left_out_of_the_picture(tmp_path):
    root = make_photos(tmp_path / "p", num=6)
    for path in sorted(root.rglob("*.png"))[1::2]:
        path.write_bytes(path.read_bytes()[:60])
    assert pixels(draw(DataSpec(str(root), workers=0), AugmentSpec(), 0)).size


def test_images_are_of_as_many_classes_as_there_are():
    labels = torch.cat([torch.zeros(1000, dtype=torch.int64), torch.tensor([1, 2, 3])])
    chosen = choose(source_of(labels), torch.arange(1003), 0)
    assert len(chosen) == len(set(chosen.tolist())) == ROWS
    assert labels[chosen].tolist() == [0, 0, 0, 1, 2, 3]
    assert choose(source_of(labels[:3]), torch.arange(3), 0).sort().values.tolist() == [0, 1, 2]
    train = torch.arange(500, 1003)
    assert set(choose(source_of(labels), train, 1).tolist()) <= set(train.tolist())


def test_what_is_on_is_named_as_flags():
    assert flags_of(AugmentSpec()) == ["--flip", "--pad-crop 0.125"]
    changed = AugmentSpec(
        flip=False, pad_mode="reflect", randaugment=1, randaugment_magnitude=5, transforms=("GaussianBlur(3)",)
    )
    assert flags_of(changed) == [
        "--pad-crop 0.125",
        "--pad-mode reflect",
        "--randaugment 1",
        "--randaugment-magnitude 5",
        "--transforms 'GaussianBlur(3)'",
    ]
    assert flags_of(AugmentSpec(flip=False, flip_mode="alternate", random_resized_crop=0.5)) == [
        "--random-resized-crop 0.5"
    ]
