"""From JPEG files to batches: skipway's loaders beside torchvision's ImageFolder, PIL and v2 transforms.

    python benchmarks/data.py [FOLDER] [--size 224] [--rounds 5] [--workers 1]

Both sides read the same files and do the same: short side to SIZE, middle square, a flip of half of them, ToFloat,
normalise, batches of 32. Theirs runs in a DataLoader as the documentation shows it; ours is `Loader` with flip and
normalisation on whole batches. Streaming decodes each file in each round; the cached loader maps the decoded cache.
Rounds alternate. At last, whole-batch augmentation at 32 pixels beside v2's, image by image (augmentation.py has
more). Speed per core: images a second of processor time, of this process and its workers together.
"""

import argparse
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import augmentation
import torch
from results_page import spread
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from skipway import randomness
from skipway.data.augmentation.augment import Augment
from skipway.data.loader import Loader, make_loader
from skipway.data.preprocess import plain
from skipway.data.sources.folder import open_folder
from skipway.spec import AugmentSpec, DataSpec
from skipway.training.machine import keep_freed_memory

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 32
Round = Callable[[int], int]  # number of the round -> images seen


def torchvision_round(root: Path, size: int, workers: int) -> Round:
    chain = v2.Compose(
        [
            v2.Resize(size, antialias=True),
            v2.CenterCrop(size),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    folder = ImageFolder(root, chain)

    def run(number: int) -> int:
        torch.manual_seed(number)
        loader = DataLoader(folder, BATCH, shuffle=True, num_workers=workers)  # workers end with the round
        return count(images for images, _ in loader)

    return run


def skipway_round(root: Path, size: int, workers: int, *, cache: bool) -> Round:
    spec = DataSpec(str(root), workers=workers, cache="on" if cache else "off")
    source = open_folder(root, spec)
    everything = source.splits["all"]
    fitted = plain(source, spec, size)
    preprocess = type(fitted)(size, MEAN, STD, fitted.reading)
    augment = Augment(AugmentSpec(pad_crop=0.0), preprocess, num_classes=2, seed=0)
    kept = make_loader(source, preprocess, spec, wanted=everything) if cache else None

    def run(number: int) -> int:
        loader = kept or Loader(source, preprocess, spec)
        order = randomness.order(everything, seed=0, epoch=number)
        batches = loader.batches(order, BATCH)
        seen = count(preprocess.normalise(augment.pixels(batch, number)) for batch in batches)
        loader.close()  # so that its workers' time is counted
        return seen

    return run


def count(batches: Iterable[Tensor]) -> int:
    return sum(len(images) for images in batches)


def cpu_seconds() -> float:
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def measured(run: Round, number: int) -> tuple[float, float]:
    """Images a second of processor time, and by the clock."""
    cpu, clock = cpu_seconds(), time.perf_counter()
    seen = run(number)
    return seen / (cpu_seconds() - cpu), seen / (time.perf_counter() - clock)


def as_one_folder(data: Path, into: Path) -> Path:
    """Links to the JPEG files of a data set with splits, as one folder of class folders that PIL can read."""
    for file in sorted(data.glob("*/*/*.jpg")):
        target = into / file.parent.name / f"{file.parent.parent.name}_{file.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file.resolve())
    return into


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("SKIPWAY_DATA", "../shared/data"))
    parser.add_argument("folder", type=Path, nargs="?", default=shared / "hymenoptera_data")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as training does; both sides gain
    scratch = Path(tempfile.mkdtemp())
    os.environ["SKIPWAY_CACHE"] = str(scratch / "cache")
    try:
        root = as_one_folder(options.folder, scratch / "photos")
        rounds = {
            "torchvision": torchvision_round(root, options.size, options.workers),
            "ours, streaming": skipway_round(root, options.size, options.workers, cache=False),
            "ours, cached": skipway_round(root, options.size, options.workers, cache=True),
        }
        print(f"{os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}")
        for run in rounds.values():
            measured(run, 0)
        results = [{name: measured(run, number) for name, run in rounds.items()} for number in range(options.rounds)]
        images = rounds["torchvision"](0)
        print(f"{images} JPEG files, {options.size} pixels, {options.workers} worker, {options.rounds} rounds")
        print(f"{'':16} {'images/s of a core':>30} {'images/s by the clock':>30}   times torchvision, per core")
        for name in rounds:
            per_core, clock = zip(*(row[name] for row in results), strict=True)
            ratios = [row[name][0] / row["torchvision"][0] for row in results]
            print(f"{name:16} {spread(per_core):>30} {spread(clock):>30}   {spread(ratios, 2)}")
        flip_crop = {"flip, pad-crop": augmentation.kinds(32)["flip, pad-crop"]}
        augmentation.report(flip_crop, argparse.Namespace(batch=512, size=32, rounds=5 * options.rounds))
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
