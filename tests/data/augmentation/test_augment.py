import dataclasses
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as T

import skipway as package
from skipway.data.augmentation import colour
from skipway.data.augmentation.augment import Augment, unnormalised
from skipway.data.augmentation.crop import (
    LARGER,
    TRIES,
    boxes,
    flip,
    flipped,
    gathered,
    pad_and_crop,
    resized_crop,
    source_size,
)
from skipway.data.augmentation.mixing import beta
from skipway.data.augmentation.randaugment import NAMES, RANDAUGMENT, TRIVIALAUGMENT, Ranges, apply, trivialaugment
from skipway.data.augmentation.transforms import make_transform
from skipway.data.images.reading import Reading
from skipway.data.loader import Batch
from skipway.data.preprocess import Preprocess
from skipway.errors import InputError
from skipway.spec import AugmentSpec

OFF = AugmentSpec(flip=False, pad_crop=0.0)
EVERYTHING = {
    "flip": True,
    "pad_crop": 0.25,
    "randaugment": 2,
    "trivialaugment": True,
    "color_jitter": 0.4,
    "transforms": ("RandomRotation(degrees=10)", "RandomPosterize(bits=4)"),
    "mixup": 0.3,
    "cutmix": 1.0,
    "erasing_rate": 0.5,
    "cutout": 0.3,
}
DEEP = {
    "flip": True,
    "random_resized_crop": 0.2,
    "color_jitter": 0.4,
    "mixup": 0.3,
    "cutmix": 1.0,
    "erasing_rate": 0.5,
    "cutout": 0.3,
}


def batch_of(num: int = 16, size: int = 8, channels: int = 3, *, deep: bool = False) -> Batch:
    images = torch.randint(0, 256, (num, channels, size, size), dtype=torch.uint8)
    if deep:
        images = torch.randn(num, channels, size, size) * 700 - 300  # Hounsfield units, say
    return Batch(images, torch.arange(num) % 4, torch.arange(100, 100 + num))


def augment(size: int = 8, channels: int = 3, *, deep: bool = False, **fields: Any) -> Augment:
    preprocess = Preprocess(size, (0.5,) * channels, (0.2,) * channels, Reading(channels, deep))
    return Augment(dataclasses.replace(OFF, **fields), preprocess, num_classes=4, seed=5)


def part(batch: Batch, chosen: list[int]) -> Batch:
    return Batch(batch.images[chosen], batch.labels[chosen], batch.indices[chosen])


def photos(num: int, size: int, channels: int = 3) -> Tensor:
    """Smooth images with some noise, as photos are."""
    coarse = torch.rand(num, channels, 5, 5) * 255
    smooth = F.interpolate(coarse, (size, size), mode="bilinear")
    return (smooth + torch.randn(num, channels, size, size) * 8).clamp(0, 255).byte()


def test_nothing_asked_changes_nothing():
    batch = batch_of()
    pixels = augment().pixels(batch, 1)
    assert torch.equal(pixels, batch.images)
    inputs, targets = augment().mix(pixels.float(), batch, 1)
    assert torch.equal(inputs, batch.images.float())
    assert torch.equal(targets, batch.labels)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_samples_pixels_do_not_depend_on_its_batch(deep, channels):
    size = 9 if deep else 8
    batch = batch_of(48, size, channels, deep=deep)
    everything = augment(8, channels, deep=deep, **(DEEP if deep else EVERYTHING))
    whole = everything.pixels(batch, 3)
    assert whole.shape == (48, channels, 8, 8)
    assert whole.dtype == batch.images.dtype
    assert torch.equal(everything.pixels(part(batch, [9, 2]), 3), whole[[9, 2]])
    ones = [everything.pixels(part(batch, [i]), 3) for i in range(48)]
    assert torch.equal(torch.cat(ones), whole)
    other_layout = Batch(batch.images.contiguous(memory_format=torch.channels_last), batch.labels, batch.indices)
    assert torch.equal(everything.pixels(other_layout, 3), whole)
    assert not torch.equal(everything.pixels(batch, 4), whole)
    assert torch.equal(everything.pixels(batch, 3), whole)


@pytest.mark.parametrize("fields", [{k: v} for k, v in EVERYTHING.items()] + [{"random_resized_crop": 0.3}])
def test_a_batch_is_never_changed_in_place(fields):
    batch = batch_of()
    before = batch.images.clone()
    a = augment(**fields)
    pixels = a.pixels(batch, 1)
    inputs = pixels.float()
    kept = inputs.clone()
    a.mix(inputs, batch, 1)
    assert torch.equal(batch.images, before)
    assert torch.equal(inputs, kept)


# flips and crops


@pytest.mark.parametrize("deep", [False, True])
def test_flip_mirrors_about_half_of_the_images(deep):
    batch = batch_of(400, deep=deep)
    flipped = augment(flip=True, deep=deep).pixels(batch, 0)
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, batch.images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, batch.images, strict=True)]
    assert sum(mirrored) + sum(kept) == 400
    assert 160 < sum(mirrored) < 240


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 7), st.sampled_from([1, 3]), st.booleans(), st.data())
def test_flip_mirrors_just_those_asked_for(num, height, width, channels, deep, data):
    images = torch.randint(0, 256, (num, channels, height, width), dtype=torch.uint8)
    images = images.float() if deep else images
    flips = torch.tensor(data.draw(st.lists(st.booleans(), min_size=num, max_size=num)))
    want = torch.stack([image.flip(-1) if yes else image for image, yes in zip(images, flips, strict=True)])
    assert torch.equal(flip(images, flips), want)
    assert torch.equal(flipped(images, flips), want)  # as on an accelerator


def test_alternating_flips_show_every_image_both_ways_in_two_epochs():
    batch = batch_of(400)
    alternating = augment(flip=True, flip_mode="alternate")
    first, second, third = (alternating.pixels(batch, epoch) for epoch in (1, 2, 3))
    assert torch.equal(first, third)
    assert torch.equal(first, second.flip(-1))
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(first, batch.images, strict=True)]
    assert 160 < sum(mirrored) < 240


def test_pad_crop_cuts_every_window_of_the_padded_image():
    image = torch.randint(1, 256, (1, 1, 8, 8), dtype=torch.uint8)
    batch = Batch(image.expand(2000, -1, -1, -1), torch.zeros(2000, dtype=torch.int64), torch.arange(2000))
    padded = F.pad(image[0], (1, 1, 1, 1))
    windows = {padded[:, y : y + 8, x : x + 8].numpy().tobytes(): (y, x) for y in range(3) for x in range(3)}
    got = [windows[crop.contiguous().numpy().tobytes()] for crop in augment(pad_crop=0.125).pixels(batch, 0)]
    counts = [got.count(window) for window in windows.values()]
    assert len(counts) == 9
    assert min(counts) > 160
    assert max(counts) < 290


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(2, 9), st.sampled_from([1, 3]), st.booleans(), st.booleans(), st.data())
def test_windows_are_those_of_torchs_padding(num, size, channels, deep, reflect, data):
    pad = data.draw(st.integers(1, size - 1))
    images = torch.randint(0, 256, (num, channels, size, size), dtype=torch.uint8)
    images = images.float() - 900 if deep else images
    start = torch.tensor([[data.draw(st.integers(0, 2 * pad)) for _ in range(2)] for _ in range(num)])
    flips = torch.tensor([data.draw(st.booleans()) for _ in range(num)])
    got = pad_and_crop(images, start, pad=pad, mode="reflect" if reflect else "zero", flips=flips)
    as_on_an_accelerator = gathered(images, start, pad=pad, mode="reflect" if reflect else "zero", flips=flips)
    assert as_on_an_accelerator.dtype == images.dtype
    assert torch.equal(as_on_an_accelerator, got)
    for i, image in enumerate(images):
        black = image.min().item() if deep else 0
        around, whole = (pad,) * 4, image.float()
        padded = F.pad(whole, around, "reflect") if reflect else F.pad(whole, around, value=black)
        padded = padded.to(image.dtype)
        top, left = start[i].tolist()
        window = padded[:, top : top + size, left : left + size]
        assert torch.equal(got[i], window.flip(-1) if flips[i] else window)


@pytest.mark.parametrize("fields", [{"flip": True, "pad_crop": 0.2}, {"random_resized_crop": 0.3, "color_jitter": 0.3}])
@pytest.mark.parametrize("each", [1, 5, 16])
def test_pieces_of_a_batch_hold_its_bits(fields, each):
    batch, changed = batch_of(), augment(**fields)
    whole = changed.pixels(batch, 3)
    pieces = changed.in_pieces(batch.images, batch.indices, 3, each)
    assert torch.equal(pieces, whole)
    assert pieces.is_contiguous(memory_format=torch.channels_last)


def test_a_single_pixel_can_be_padded_by_reflection():
    images = torch.full((2, 1, 1, 1), 7, dtype=torch.uint8)
    assert torch.equal(pad_and_crop(images, torch.tensor([[0, 2], [1, 1]]), pad=1, mode="reflect"), images)


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 40), st.integers(2, 40), st.sampled_from([1, 3]), st.booleans(), st.data())
def test_resized_crop_is_torchvisions_with_the_same_boxes(size, out, channels, deep, data):
    images = photos(3, size, channels)
    box = []
    for _ in images:
        height, width = data.draw(st.integers(1, size)), data.draw(st.integers(1, size))
        box.append([data.draw(st.integers(0, size - height)), data.draw(st.integers(0, size - width)), height, width])
    if deep:
        images = images.float() * 3 - 1000
    got = resized_crop(images, torch.tensor(box), out, torch.tensor([False, True, False]))
    for i, image in enumerate(images):
        want = T.resized_crop(image, *box[i], size=[out, out], antialias=True).float()
        want = want.flip(-1) if i == 1 else want
        difference = (got[i].float() - want).abs()
        assert difference.max() <= (0.01 if deep else 1)  # of values from -1000 to -235


@pytest.mark.parametrize("out", [1, 2, 7, 40, 90])
def test_resized_crop_keeps_a_flat_image_flat(out):
    box = torch.tensor([[0, 0, 40, 40], [3, 1, 17, 31], [39, 0, 1, 40]])
    for value in (0, 1, 127, 254, 255):
        flat = torch.full((3, 3, 40, 40), value, dtype=torch.uint8)
        assert (resized_crop(flat, box, out) == value).all()
        assert (resized_crop(flat.float() - 1000, box, out) == value - 1000).all()


def test_resized_crop_of_the_whole_at_its_own_size_is_the_image():
    for images in (batch_of(4).images, batch_of(4, deep=True).images):
        box = torch.tensor([[0, 0, 8, 8]]).expand(4, -1)
        torch.testing.assert_close(resized_crop(images, box, 8), images, rtol=0, atol=1e-3)


@pytest.mark.parametrize("least", [0.08, 0.5, 1.0])
def test_boxes_follow_torchvisions_rule(least):
    draws = torch.rand(4000, 2 * TRIES + 2, dtype=torch.float64)
    top, left, height, width = boxes(draws, least, 200).T
    assert ((top >= 0) & (left >= 0) & (top + height <= 200) & (left + width <= 200)).all()
    share, ratio = height * width / 200**2, width / height
    assert share.min() >= least - 0.01
    assert ratio.min() > 0.745
    assert ratio.max() < 1.345
    from torchvision.transforms.v2 import RandomResizedCrop

    theirs = RandomResizedCrop(8, scale=(least, 1.0))
    made = [theirs.make_params([torch.empty(3, 200, 200)]) for _ in range(4000)]
    want = torch.tensor([m["height"] * m["width"] / 200**2 for m in made])
    assert share.mean().item() == pytest.approx(want.mean().item(), abs=0.02)
    assert share.std().item() == pytest.approx(want.std().item(), abs=0.02)
    if least < 1:
        assert ratio.log().std().item() == pytest.approx(
            torch.tensor([m["width"] / m["height"] for m in made]).log().std().item(), abs=0.02
        )
        assert (top.double() / (200 - height).clamp(min=1)).mean().item() == pytest.approx(0.5, abs=0.05)


def test_a_box_that_never_fits_is_the_whole_image():
    draws = torch.zeros(1, 2 * TRIES + 2, dtype=torch.float64)
    draws[:, :TRIES] = 1 - 1e-9  # all of the area
    draws[:, TRIES : 2 * TRIES] = 1 - 1e-9  # at 4 to 3
    assert boxes(draws, 0.08, 100).tolist() == [[0, 0, 100, 100]]
    draws[:, 7], draws[:, TRIES + 7] = 0.0, 0.5  # the eighth is a small square
    assert boxes(draws, 0.25, 100).tolist() == [[0, 0, 50, 50]]


@pytest.mark.parametrize(
    ("share", "own", "want"),
    [(0.0, None, 224), (0.5, None, 256), (0.5, (500, 500), 256), (0.5, (230, 230), 230), (0.5, (230, 300), 256)],
)
def test_images_are_held_larger_for_random_crops(share, own, want):
    assert source_size(dataclasses.replace(OFF, random_resized_crop=share), own, 224) == want
    assert round(224 * LARGER) == 256


def test_training_cuts_random_crops_out_of_larger_images(photos, monkeypatch):
    seen = []
    pixels = Augment.pixels

    def spied(self: Augment, batch: Batch, epoch: int) -> Tensor:
        out = pixels(self, batch, epoch)
        seen.append((batch.images.shape[-1], out.shape[-1]))
        return out

    monkeypatch.setattr(Augment, "pixels", spied)
    broken = photos / "ants" / "broken.png"
    broken.write_bytes((photos / "ants" / "000.png").read_bytes()[:200])
    crops = {"augment": {"random_resized_crop": 0.3}}
    run = package.train(photos, settings=TINY | crops | {"data": {"workers": 0, "image_size": 7}}, out="run")
    assert set(seen) == {(8, 7)}
    assert run.preprocess.image_size == 7
    assert list(run.summary["bad_files"]) == ["ants/broken.png"]
    seen.clear()
    package.train(
        photos, settings=TINY | crops, out="own"
    )  # 16 pixels, their own size: cut out of the images as they are
    assert set(seen) == {(16, 16)}


# RandAugment and TrivialAugment


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fields", [{"randaugment": 2}, {"trivialaugment": True}])
def test_automatic_ones_change_images_and_keep_their_form(channels, fields):
    batch = batch_of(64, 16, channels)
    changed = augment(16, channels, **fields).pixels(batch, 0)
    assert changed.shape == batch.images.shape
    assert changed.dtype == torch.uint8
    same = [torch.equal(a, b) for a, b in zip(changed, batch.images, strict=True)]
    assert sum(same) < 32


def reference(name: str, image: Tensor, s: float, ranges: Ranges) -> Tensor:
    """torchvision's function of an operation, for one image."""
    colours, size = image.shape[0] == 3, image.shape[-1]
    shift = round(s * ranges.shift * (size if ranges.share else 1))
    shear = math.degrees(math.atan(s * ranges.shear))

    def moved(
        angle: float = 0.0, across: float = 0.0, down: float = 0.0, shear: tuple[float, float] = (0, 0)
    ) -> Tensor:
        return T.affine(image, angle=angle, translate=[across, down], scale=1.0, shear=[*shear])

    factor = 1 + ranges.colour * s
    return {
        "identity": lambda: image,
        "rotate": lambda: moved(angle=ranges.rotate * s),
        "shift across": lambda: moved(across=shift),
        "shift down": lambda: moved(down=shift),
        "shear across": lambda: moved(shear=(shear, 0.0)),
        "shear down": lambda: moved(shear=(0.0, shear)),
        "brightness": lambda: T.adjust_brightness(image, factor),
        "contrast": lambda: T.adjust_contrast(image, factor),
        "sharpness": lambda: T.adjust_sharpness(image, factor),
        "saturation": lambda: T.adjust_saturation(image, factor) if colours else image,
        "posterize": lambda: T.posterize(image, 8 - round(ranges.posterize * abs(s))),
        "solarize": lambda: T.solarize(image, 256 * (1 - abs(s))) if s else image,
        "autocontrast": lambda: T.autocontrast(image),
        "equalize": lambda: T.equalize(image),
    }[name]()


@pytest.mark.parametrize("ranges", [RANDAUGMENT, TRIVIALAUGMENT], ids=["rand", "trivial"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_each_operation_is_torchvisions(name, channels, ranges):
    strengths = [-1.0, -0.7, -0.3, 0.0, 0.1, 0.5, 0.9, 1.0]
    images = photos(8, 20, channels)
    got = apply(images, torch.full((8,), NAMES.index(name)), torch.tensor(strengths), ranges)
    for image, mine, s in zip(images, got, strengths, strict=True):
        difference = (mine.int() - reference(name, image, s, ranges).int()).abs()
        moves = NAMES.index(name) in range(1, 6)
        if moves:  # a pixel half way between two may fall to either
            assert (difference > 0).float().mean() < 0.03
        else:
            assert difference.max() <= (1 if hasattr(colour, name) else 0)  # rounded down, as theirs


def test_trivialaugment_draws_every_operation_and_strength_evenly():
    draws = torch.rand(28000, 3, dtype=torch.float64)
    images = torch.full((28000, 1, 1, 1), 200, dtype=torch.uint8)
    changed = trivialaugment(images, draws)
    brighter = changed[(draws[:, 0] * 14).long() == NAMES.index("brightness")].flatten()
    assert len(brighter.unique()) >= 31  # 31 strengths, two signs, cut off at 255
    unchanged = (changed == 200).float().mean()
    assert 0.5 < unchanged < 0.9  # one pixel: most operations have nothing to change
    assert trivialaugment(images[:1], torch.zeros(1, 3, dtype=torch.float64)).item() == 200


@pytest.mark.parametrize("fields", [{"randaugment": 1}, {"trivialaugment": True}])
def test_automatic_ones_are_refused_on_deep_images(fields):
    with pytest.raises(InputError, match=rf"augment\.{next(iter(fields))} is made for 8-bit images"):
        augment(deep=True, **fields)


# colour


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "sharpness"])
def test_colour_is_torchvisions_with_the_same_factors(name, channels):
    images = photos(20, 12, channels)
    factors = torch.linspace(0, 2, 20)
    got = getattr(colour, name)(images, factors)
    for image, mine, factor in zip(images, got, factors.tolist(), strict=True):
        want = image if (name, channels) == ("saturation", 1) else getattr(T, f"adjust_{name}")(image, factor)
        assert (mine.int() - want.int()).abs().max() <= 1


def test_color_jitter_draws_a_factor_for_each_image():
    batch = Batch(torch.full((500, 3, 4, 4), 100, dtype=torch.uint8), torch.zeros(500), torch.arange(500))
    pixels = augment(4, color_jitter=0.3).pixels(batch, 1)[:, 0, 0, 0]
    assert pixels.min() in (70, 71)
    assert pixels.max() in (128, 129)
    assert pixels.float().mean().item() == pytest.approx(99.5, abs=2)


def test_color_jitter_of_deep_images_is_relative_and_cuts_nothing_off():
    images = torch.randn(4, 3, 6, 6) * 1000
    ones = torch.ones(4)
    torch.testing.assert_close(colour.jitter(images, torch.ones(4, 3)), images, rtol=1e-5, atol=1e-2)
    low = images.amin((1, 2, 3), keepdim=True)
    torch.testing.assert_close(colour.brightness(images, 1.5 * ones) - low, (images - low) * 1.5, rtol=1e-4, atol=1e-1)
    flat = colour.contrast(images, 0 * ones)
    torch.testing.assert_close(flat[:, 0, 0, 0], colour.grey(images).mean((1, 2, 3)), rtol=1e-3, atol=1e-1)
    shifted = colour.jitter(images + 5000, torch.full((4, 3), 1.3)) - 5000
    torch.testing.assert_close(shifted, colour.jitter(images, torch.full((4, 3), 1.3)), rtol=1e-3, atol=1.0)


def test_pictures_undo_normalisation():
    preprocess = Preprocess(8, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), Reading(3))
    images = batch_of().images
    torch.testing.assert_close(
        unnormalised(preprocess.normalise(images), preprocess), images.float(), atol=1e-3, rtol=0
    )


# torchvision's by name


def test_transforms_are_torchvisions_seeded_by_sample_and_leave_no_trace():
    batch = batch_of(6)
    random.seed(1)
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    a = augment(transforms=("RandomHorizontalFlip(p=1.0)", "GaussianBlur(kernel_size=3, sigma=1.0)"))
    want = T.gaussian_blur(batch.images.flip(-1), [3, 3], [1.0, 1.0])
    assert torch.equal(a.pixels(batch, 1), want)
    after = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    half = augment(transforms=("RandomHorizontalFlip",))
    many = batch_of(200)
    flipped = (half.pixels(many, 1) != many.images).any(-1).any(-1).any(-1).sum()
    assert 60 < flipped < 140


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("GausianBlur(3)", "unknown transform .*'GausianBlur'.* Did you mean 'GaussianBlur'"),
        ("GaussianBlur(kernel_size=2)", r"'GaussianBlur\(kernel_size=2\)' cannot be made"),
        ("GaussianBlur(nonsense=2)", "cannot be made"),
        ("Lambda(3)", "unknown transform"),
        ("Transform", "unknown transform"),
        ("__import__('os').system('true')", "is not the name of a transform"),
        ("GaussianBlur(kernel_size=__import__('os'))", "unknown transform"),
        ("GaussianBlur(kernel_size=open)", "is not the name of a transform"),
        ("GaussianBlur(**{'kernel_size': 3})", "is not the name of a transform"),
        ("GaussianBlur(", "is not the name of a transform"),
        ("3", "is not the name of a transform"),
        ("", "is not the name of a transform"),
        ("Resize(4)", "makes 3x4x4 uint8 out of 3x8x8 uint8; only transforms that keep size and type"),
        ("ToDtype(1)", r"augment\.transforms: 'ToDtype\(1\)'"),
        ("ToPILImage()", "makes a Image out of"),
        ("Normalize(mean=[0.5], std=[0.5])", "fails on 3x8x8 uint8"),
        ("(" * 5000, "is not the name of a transform"),
    ],
)
def test_transforms_that_cannot_be_used_are_refused_before_training(text, message):
    with pytest.raises(InputError, match=message) as error:
        augment(transforms=(text,))
    assert "\n" not in str(error.value)


def test_transforms_may_hold_transforms():
    once = make_transform("RandomApply([RandomVerticalFlip(p=1.0)], p=1.0)")
    image = batch_of(1).images[0]
    assert torch.equal(once(image), image.flip(-2))


# erasing


def test_erasing_sets_a_rectangle_of_some_images_to_the_mean():
    inputs = torch.ones(400, 2, 16, 16)
    batch = Batch(inputs, torch.zeros(400, dtype=torch.int64), torch.arange(400))
    erased, _ = augment(16, erasing_rate=0.25).mix(inputs, batch, 0)
    share = (erased == 0).float().mean((1, 2, 3))
    assert 70 < (share > 0).sum() < 130
    assert share.max() < 0.4
    for image in erased[share > 0]:
        rows, columns = (image[0] == 0).any(1), (image[0] == 0).any(0)
        assert (image[:, rows][:, :, columns] == 0).all()


def test_cutout_erases_a_square_of_every_image_cut_off_at_the_edge():
    inputs = torch.ones(2000, 2, 16, 16)
    batch = Batch(inputs, torch.zeros(2000, dtype=torch.int64), torch.arange(2000))
    erased, _ = augment(16, cutout=0.5).mix(inputs, batch, 0)
    hole = erased[:, 0] == 0
    rows, columns = hole.any(2).sum(1), hole.any(1).sum(1)
    assert torch.equal(rows * columns, hole.sum((1, 2)))  # a rectangle
    assert (rows.max(), columns.max()) == (8, 8)
    assert rows.min() in (4, 5)  # the centre at the edge
    assert ((rows == 8) & (columns == 8)).float().mean().item() == pytest.approx((9 / 16) ** 2, abs=0.06)
    assert (erased[:, 0] == erased[:, 1]).all()
    middle = hole.float().mean(0)
    assert middle[8, 8] > 1.5 * middle[0, 0]


# mixing


def test_mixup_mixes_images_and_targets_by_the_same_share():
    batch = batch_of(32)
    inputs = batch.labels.float().view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    mixed, targets = augment(mixup=1.0).mix(inputs, batch, 0)
    assert targets.shape == (32, 4)
    torch.testing.assert_close(targets.sum(1), torch.ones(32))
    torch.testing.assert_close(mixed[:, 0, 0, 0], targets @ torch.arange(4.0))
    assert (targets.max(1).values < 0.999).sum() > 20


def test_mixup_of_several_labels_shares_each_of_them():
    labels = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.uint8)
    inputs = torch.arange(3.0).view(3, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    a, batch = augment(mixup=1.0), Batch(inputs, labels, torch.arange(3))
    mixed, targets = a.mix(inputs, batch, 0)
    assert targets.dtype == torch.float32
    own = 1 - (mixed[1, 0, 0, 0] - 1) / (0 - 1)  # image 1 is mixed with image 0
    torch.testing.assert_close(targets[1], torch.tensor([1 - own, 1.0, own, 0.0]))


def test_cutmix_pastes_a_rectangle_and_shares_targets_by_its_area():
    batch = batch_of(64, 32)
    inputs = batch.labels.float().view(-1, 1, 1, 1).expand(-1, 1, 32, 32).contiguous()
    mixed, targets = augment(32, cutmix=1.0).mix(inputs, batch, 0)
    own = (mixed == inputs).float().mean((1, 2, 3))
    torch.testing.assert_close(targets[torch.arange(64), batch.labels], own)
    assert mixed.unique().tolist() == [0, 1, 2, 3]
    assert own.min() < 0.7


def test_mixup_and_cutmix_together_take_turns():
    batch = batch_of(200, 16)
    inputs = batch.labels.float().view(-1, 1, 1, 1).expand(-1, 1, 16, 16).contiguous()
    mixed, _ = augment(16, mixup=1.0, cutmix=1.0).mix(inputs, batch, 0)
    blended = ((mixed != mixed.round()).any(-1).any(-1)).sum().item()
    assert 70 < blended < 130


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 4.0, 32.0, 2000.0])
def test_beta_has_the_distributions_moments(alpha):
    x = beta((torch.arange(100_000).double() + 0.5) / 100_000, alpha)
    assert x.mean().item() == pytest.approx(0.5, abs=1e-3)
    assert x.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=5e-3)


def test_whole_run_of_draws_is_the_same_for_any_memory_format():
    batch, everything = batch_of(), augment(**EVERYTHING)
    inputs = everything.pixels(batch, 2).float()
    a = everything.mix(inputs, batch, 2)
    b = everything.mix(inputs.contiguous(memory_format=torch.channels_last), batch, 2)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
