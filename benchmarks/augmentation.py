"""Whole-batch augmentation beside torchvision's transforms, image by image.

    python benchmarks/augmentation.py [--batch 512] [--size 32] [--rounds 15]

One thread; random colour images. Both sides do the same kind of work on the same images: flip, shifted crop and
normalisation; the same with RandAugment, TrivialAugment or colour jitter; or random resized crops. Rounds alternate, so
that what else the machine does meets both.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import v2

from skipway.data.augmentation.augment import Augment
from skipway.data.augmentation.crop import source_size
from skipway.data.images.reading import Reading
from skipway.data.loader import Batch
from skipway.data.preprocess import Preprocess
from skipway.spec import AugmentSpec
from skipway.training.machine import keep_freed_memory

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def kinds(size: int) -> dict[str, tuple[AugmentSpec, list[Callable[[Tensor], Tensor]]]]:
    """Name -> our spec, and torchvision's transforms."""
    flip_crop = [v2.RandomHorizontalFlip(), v2.RandomCrop(size, padding=size // 8)]
    resized = [v2.RandomResizedCrop(size, scale=(0.35, 1.0), antialias=True), v2.RandomHorizontalFlip()]
    return {
        "flip, pad-crop": (AugmentSpec(), flip_crop),
        "flip, resized crop": (AugmentSpec(random_resized_crop=0.35), resized),
        "and RandAugment": (AugmentSpec(randaugment=2), [*flip_crop, v2.RandAugment(2, 9)]),
        "and TrivialAugment": (AugmentSpec(trivialaugment=True), [*flip_crop, v2.TrivialAugmentWide()]),
        "and colour jitter": (AugmentSpec(color_jitter=0.4), [*flip_crop, v2.ColorJitter(0.4, 0.4, 0.4)]),
    }


def ours(spec: AugmentSpec, size: int, batch: int) -> Callable[[], Tensor]:
    """One batch, from stored pixels to the network's input."""
    preprocess = Preprocess(size, MEAN, STD, Reading(3))
    augment = Augment(spec, preprocess, num_classes=10, seed=0)
    images = stored(source_size(spec, None, size), batch)
    given = Batch(images, torch.zeros(batch, dtype=torch.int64), torch.arange(batch))
    return lambda: preprocess.normalise(augment.pixels(given, 1))


def theirs(
    transforms: list[Callable[[Tensor], Tensor]], spec: AugmentSpec, size: int, batch: int
) -> Callable[[], Tensor]:
    """The same from torchvision, as a Dataset and the default collate do it."""
    chain = v2.Compose([*transforms, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    images = stored(source_size(spec, None, size), batch)
    return lambda: torch.stack([chain(image) for image in images])


def stored(size: int, batch: int) -> Tensor:
    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)


def seconds(function: Callable[[], Tensor]) -> float:
    """Of this thread on a core: what else runs on the machine counts little."""
    start = time.thread_time()
    function()
    return time.thread_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as training does; both sides gain
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}; one thread")
    report(kinds(options.size), options)


def report(
    chosen: dict[str, tuple[AugmentSpec, list[Callable[[Tensor], Tensor]]]], options: argparse.Namespace
) -> None:
    """A line for each kind; `options` has batch, size and rounds."""
    torch.manual_seed(0)
    print(
        f"batches of {options.batch} at {options.size} pixels, {options.rounds} rounds; CPU ms a batch: "
        "median (min to max)"
    )
    for name, (spec, transforms) in chosen.items():
        mine, other = ours(spec, options.size, options.batch), theirs(transforms, spec, options.size, options.batch)
        seconds(mine), seconds(other)  # warm
        pairs = [(1e3 * seconds(mine), 1e3 * seconds(other)) for _ in range(options.rounds)]
        a, b, ratio = [p[0] for p in pairs], [p[1] for p in pairs], [p[1] / p[0] for p in pairs]
        shown = [f"{statistics.median(v):7.2f} ({min(v):.2f} to {max(v):.2f})" for v in (a, b, ratio)]
        print(f"{name:<19} ours {shown[0]}  torchvision {shown[1]}  ratio {shown[2]}", flush=True)


if __name__ == "__main__":
    main()
