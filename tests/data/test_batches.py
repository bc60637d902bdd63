import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import make_photos
from PIL import Image

from skipway.data.augment import Augment, _beta
from skipway.data.files import FileSource
from skipway.data.folder import open_folder
from skipway.data.loader import Batch, Loader, make_loader
from skipway.data.preprocess import Preprocess, choose_size, measure, plain
from skipway.data.reading import Reading
from skipway.data.source import ArraySource
from skipway.errors import InputError, ReadError
from skipway.spec import AugmentSpec, DataSpec

OFF = AugmentSpec(flip=False, pad_crop=0.0)


def array_source(num: int = 8, channels: int = 3, size: int = 8, **options) -> ArraySource:
    images = torch.randint(0, 256, (num, channels, size, size), dtype=torch.uint8)
    return ArraySource(images, torch.arange(num) % 2, ("a", "b"), {}, "set", **options)


def batch_of(num: int = 16, size: int = 8, channels: int = 3) -> Batch:
    images = torch.randint(0, 256, (num, channels, size, size), dtype=torch.uint8)
    return Batch(images, torch.arange(num) % 4, torch.arange(100, 100 + num))


def augment(num_classes: int = 4, **fields) -> Augment:
    return Augment(dataclasses.replace(OFF, **fields), num_classes=num_classes, seed=5)


def part(batch: Batch, chosen: list[int]) -> Batch:
    return Batch(batch.images[chosen], batch.labels[chosen], batch.indices[chosen])


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


# augmentation

EVERYTHING = {
    "flip": True,
    "pad_crop": 0.25,
    "randaugment": 2,
    "mixup": 0.3,
    "cutmix": 1.0,
    "erasing_rate": 0.5,
}


def test_nothing_asked_changes_nothing():
    batch = batch_of()
    pixels = augment().pixels(batch, 1)
    assert torch.equal(pixels, batch.images)
    inputs, targets = augment().mix(pixels.float(), batch, 1)
    assert torch.equal(inputs, batch.images.float())
    assert torch.equal(targets, batch.labels)


def test_a_samples_pixels_do_not_depend_on_its_batch():
    batch, everything = batch_of(), augment(**EVERYTHING)
    whole = everything.pixels(batch, 3)
    assert torch.equal(everything.pixels(part(batch, [9, 2]), 3), whole[[9, 2]])
    assert not torch.equal(everything.pixels(batch, 4), whole)
    assert torch.equal(everything.pixels(batch, 3), whole)


def test_flip_mirrors_about_half_of_the_images():
    batch = batch_of(400)
    flipped = augment(flip=True).pixels(batch, 0)
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, batch.images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, batch.images, strict=True)]
    assert sum(mirrored) + sum(kept) == 400
    assert 160 < sum(mirrored) < 240


def test_pad_crop_cuts_every_window_of_the_padded_image():
    image = torch.randint(1, 256, (1, 1, 8, 8), dtype=torch.uint8)
    batch = Batch(image.expand(2000, -1, -1, -1), torch.zeros(2000, dtype=torch.int64), torch.arange(2000))
    padded = torch.nn.functional.pad(image[0], (1, 1, 1, 1))
    windows = {padded[:, y : y + 8, x : x + 8].numpy().tobytes(): (y, x) for y in range(3) for x in range(3)}
    got = [windows[crop.contiguous().numpy().tobytes()] for crop in augment(pad_crop=0.125).pixels(batch, 0)]
    counts = [got.count(window) for window in windows.values()]
    assert len(counts) == 9
    assert min(counts) > 160
    assert max(counts) < 290


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_changes_images_and_keeps_their_form(channels):
    batch = batch_of(64, 16, channels)
    changed = augment(randaugment=2).pixels(batch, 0)
    assert changed.shape == batch.images.shape
    assert changed.dtype == torch.uint8
    same = [torch.equal(a, b) for a, b in zip(changed, batch.images, strict=True)]
    assert sum(same) < 32


def test_erasing_sets_a_rectangle_of_some_images_to_the_mean():
    inputs = torch.ones(400, 2, 16, 16)
    batch = Batch(inputs, torch.zeros(400, dtype=torch.int64), torch.arange(400))
    erased, _ = augment(erasing_rate=0.25).mix(inputs, batch, 0)
    share = (erased == 0).float().mean((1, 2, 3))
    assert 70 < (share > 0).sum() < 130
    assert share.max() < 0.4
    for image in erased[share > 0]:
        rows, columns = (image[0] == 0).any(1), (image[0] == 0).any(0)
        assert (image[:, rows][:, :, columns] == 0).all()


def test_mixup_mixes_images_and_targets_by_the_same_share():
    batch = batch_of(32)
    inputs = batch.labels.float().view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    mixed, targets = augment(mixup=1.0).mix(inputs, batch, 0)
    assert targets.shape == (32, 4)
    torch.testing.assert_close(targets.sum(1), torch.ones(32))
    torch.testing.assert_close(mixed[:, 0, 0, 0], targets @ torch.arange(4.0))
    assert (targets.max(1).values < 0.999).sum() > 20


def test_cutmix_pastes_a_rectangle_and_shares_targets_by_its_area():
    batch = batch_of(64, 32)
    inputs = batch.labels.float().view(-1, 1, 1, 1).expand(-1, 1, 32, 32).contiguous()
    mixed, targets = augment(cutmix=1.0).mix(inputs, batch, 0)
    own = (mixed == inputs).float().mean((1, 2, 3))
    torch.testing.assert_close(targets[torch.arange(64), batch.labels], own)
    assert mixed.unique().tolist() == [0, 1, 2, 3]
    assert own.min() < 0.7


def test_mixup_and_cutmix_together_take_turns():
    batch = batch_of(200, 16)
    inputs = batch.labels.float().view(-1, 1, 1, 1).expand(-1, 1, 16, 16).contiguous()
    mixed, _ = augment(mixup=1.0, cutmix=1.0).mix(inputs, batch, 0)
    blended = ((mixed != mixed.round()).any(-1).any(-1)).sum().item()
    assert 70 < blended < 130


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 4.0, 32.0, 2000.0])
def test_beta_has_the_distributions_moments(alpha):
    x = _beta((torch.arange(100_000).double() + 0.5) / 100_000, alpha)
    assert x.mean().item() == pytest.approx(0.5, abs=1e-3)
    assert x.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=5e-3)


def test_whole_run_of_draws_is_the_same_for_any_memory_format():
    batch, everything = batch_of(), augment(**EVERYTHING)
    inputs = everything.pixels(batch, 2).float()
    a = everything.mix(inputs, batch, 2)
    b = everything.mix(inputs.contiguous(memory_format=torch.channels_last), batch, 2)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
