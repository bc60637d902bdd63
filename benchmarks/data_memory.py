"""What an index of 1.3 million files costs: size, opening, and memory over epochs with worker processes.

    python benchmarks/data_memory.py [--files 1300000] [--classes 1000] [--epochs 3] [--workers 4] [--folder DIR]

A folder of CLASSES links to one folder of small PNG files stands in for as many files: every path is its own, the
disk holds a thousandth. The folder is opened twice, then every image is read in a seeded order, EPOCHS times, at 8
pixels a side, in batches of 256. After each epoch the proportional set sizes (PSS: shared pages are divided among
those who share them) of this process and its workers are summed.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from skipway import randomness
from skipway.cache import cache_folder
from skipway.data.loader import Loader
from skipway.data.open import open_source
from skipway.data.preprocess import measure, plain
from skipway.data.sources import index
from skipway.spec import DataSpec
from skipway.training.machine import keep_freed_memory


def build(root: Path, files: int, classes: int) -> None:
    each = files // classes
    shared = root / ".shared"
    shared.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(each):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(shared / f"ILSVRC2012_train_{i:08}.png")
    for i in range(classes):
        (root / f"n{i:08}").symlink_to(shared)


def proportional_set_size(pids: list[int], kind: str = "Pss") -> int:
    """Summed over processes, in bytes. `Pss_Anon` leaves mapped files out: libraries that other programs also use."""
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{kind}:")) * 1024
    return total


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def opened(spec: DataSpec, word: str):
    started = time.perf_counter()
    source = open_source(spec)
    print(f"opened the {word} time in {time.perf_counter() - started:.2f} s: {len(source):,} files", flush=True)
    return source


def read_all(loader: Loader, epoch: int) -> int:
    """One epoch, whose order goes when it is over, as in training. -> images."""
    order = randomness.order(torch.arange(len(loader.source)), seed=0, epoch=epoch)
    return sum(len(batch.labels) for batch in loader.batches(order, 256))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=1_300_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as training does: what an epoch needs once stays with the process
    root = (options.folder or Path(tempfile.mkdtemp())) / "images"
    os.environ.setdefault("SKIPWAY_CACHE", str(root.parent / "cache"))
    try:
        if not root.exists():
            build(root, options.files, options.classes)
        spec = DataSpec(str(root), workers=options.workers)
        opened(spec, "first")
        source = opened(spec, "second")
        size = index.place(root).stat().st_size
        print(f"index: {size / 1e6:.0f} MB in {cache_folder()}", flush=True)
        loader = Loader(source, plain(source, spec, 8), spec)
        measure(loader, source.splits["all"])  # training too begins so
        sizes = []
        for epoch in range(1, options.epochs + 1):
            started = time.perf_counter()
            seen = read_all(loader, epoch)
            workers = children()
            pids = [os.getpid(), *workers]
            sizes.append((proportional_set_size(pids), proportional_set_size(pids, "Pss_Anon")))
            seconds = time.perf_counter() - started
            print(
                f"epoch {epoch}: {seen:,} images in {seconds:.0f} s, {len(workers)} workers, "
                f"PSS {sizes[-1][0] / 1e6:.0f} MB ({sizes[-1][0] / sizes[0][0] - 1:+.1%} since epoch 1), "
                f"without mapped files {sizes[-1][1] / 1e6:.0f} MB ({sizes[-1][1] / sizes[0][1] - 1:+.1%})",
                flush=True,
            )
    finally:
        if not options.folder:
            shutil.rmtree(root.parent)


if __name__ == "__main__":
    main()
