import json
from pathlib import Path

import pytest
import torch
from conftest import make_photos
from PIL import Image

from skipway.data.files import FileSource
from skipway.data.images.reading import Reading
from skipway.data.loader import Loader, make_loader
from skipway.data.preprocess import Preprocess, choose_size, measure, plain
from skipway.data.source import ArraySource
from skipway.data.sources.folder import open_folder
from skipway.errors import InputError, ReadError
from skipway.spec import DataSpec


def array_source(num: int = 8, channels: int = 3, size: int = 8, **options) -> ArraySource:
    images = torch.randint(0, 256, (num, channels, size, size), dtype=torch.uint8)
    return ArraySource(images, torch.arange(num) % 2, ("a", "b"), {}, "set", **options)


def measured(source: ArraySource, train: torch.Tensor) -> Preprocess:
    return measure(make_loader(source, plain(source, DataSpec(), 8), DataSpec()), train)


# preprocessing


def test_fit_crops_the_middle_square_and_resizes():
    image = torch.zeros(3, 10, 30, dtype=torch.uint8)
    image[:, :, 10:20] = 255
    fitted = Preprocess(5, (0.0,) * 3, (1.0,) * 3, Reading(3)).fit(image)
    assert fitted.shape == (3, 5, 5)
    assert fitted.unique().tolist() == [255]


def test_fit_resizes_as_pillow_does():
    image = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    ours = Preprocess(16, (0.0,) * 3, (1.0,) * 3, Reading(3)).fit(image)
    theirs = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.BILINEAR)
    difference = (
        ours.permute(1, 2, 0).int()
        - torch.frombuffer(bytearray(theirs.tobytes()), dtype=torch.uint8).view(16, 16, 3).int()
    )
    assert difference.abs().max() <= 1


def test_fit_survives_extreme_shapes():
    preprocess = Preprocess(32, (0.0,) * 3, (1.0,) * 3, Reading(3))
    assert preprocess.fit(torch.zeros(3, 1, 100_000, dtype=torch.uint8)).shape == (3, 32, 32)


def test_measured_normalisation_gives_mean_0_and_deviation_1():
    source = array_source(200)
    preprocess = measured(source, torch.arange(200))
    inputs = preprocess.normalise(source.images)
    assert inputs.mean((0, 2, 3)).abs().max() < 1e-5
    assert (inputs.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_measured_normalisation_uses_the_train_split_only():
    images = torch.cat([torch.full((4, 1, 8, 8), 10), torch.full((4, 1, 8, 8), 250)]).to(torch.uint8)
    source = ArraySource(images, torch.zeros(8, dtype=torch.int64), ("a", "b"), {}, "set")
    assert measured(source, torch.arange(4)).mean[0] == pytest.approx(10 / 255)


def test_constant_images_do_not_divide_by_zero():
    source = ArraySource(
        torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), ("a", "b"), {}, "s"
    )
    assert measured(source, torch.arange(4)).normalise(source.images).isfinite().all()


def test_preprocess_round_trips_and_damage_is_named():
    preprocess = Preprocess(224, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), Reading(3))
    assert Preprocess.from_json(preprocess.to_json()) == preprocess
    assert json.loads(preprocess.to_json())["how"] == "crop"
    with pytest.raises(InputError, match="preprocessing cannot be read"):
        Preprocess.from_json("{}")


@pytest.mark.parametrize(("size", "asked", "want"), [(28, 0, 28), (64, 0, 64), (65, 0, 224), (28, 96, 96)])
def test_image_size_is_as_asked_or_the_images_own_or_224(size, asked, want):
    assert choose_size(array_source(2, size=size), asked)[0] == want


# loaders


def folder(root: Path, **options) -> FileSource:
    return open_folder(root, DataSpec(str(root), **options))


def test_memory_and_streaming_give_the_same_batches(tmp_path):
    source = folder(make_photos(tmp_path / "p", num=5))
    preprocess = Preprocess(8, (0.5,) * 3, (0.5,) * 3, Reading(3))
    images = torch.stack([source.read(i) for i in range(10)])
    array = ArraySource(images, source.labels, source.classes, {}, "m")
    order = torch.tensor([7, 1, 3, 9, 0, 2, 8])
    loaders = [make_loader(array, preprocess, DataSpec())]
    loaders += [Loader(source, preprocess, DataSpec(workers=w)) for w in (0, 1, 3)]
    results = [list(loader.batches(order, 3)) for loader in loaders]
    for batches in results:
        assert [len(b.labels) for b in batches] == [3, 3, 1]
        for ours, first in zip(batches, results[0], strict=True):
            assert torch.equal(ours.images, first.images)
            assert torch.equal(ours.labels, first.labels)
            assert torch.equal(ours.indices, first.indices)


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_leaves_unreadable_files_out_and_names_them(tmp_path, workers):
    root = make_photos(tmp_path / "p", num=4)
    whole = (root / "ants" / "001.png").read_bytes()
    (root / "ants" / "001.png").write_bytes(whole[: len(whole) // 2])
    source, preprocess = folder(root), Preprocess(16, (0.5,) * 3, (0.5,) * 3, Reading(3))
    loader = Loader(source, preprocess, DataSpec(workers=workers))
    batches = list(loader.batches(torch.arange(8), 1))
    assert torch.cat([b.indices for b in batches]).tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert list(loader.bad) == ["ants/001.png"]
    with pytest.raises(ReadError, match=r"ants/001\.png"):
        list(Loader(source, preprocess, DataSpec(workers=workers, bad_files="stop")).batches(torch.arange(8), 4))
