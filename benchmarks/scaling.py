"""Two processes of one thread each beside one process of two threads; and what a network would cost at scale.

    python benchmarks/scaling.py [--rounds 3] [--epochs 3] [--network resnet18] [--write]

The same run (random images in memory, batches of 256, the spec's global batch in both) through `skipway train` and
through `torchrun --nproc-per-node 2`, alternating; images/s as the run's own records have them, the first epoch left
out. The model: a ring passes 2 (n - 1) / n of the gradient's bytes through each worker's link, in 2 (n - 1) messages
(Patarasuk and Yuan 2009); nothing overlaps in it, where DistributedDataParallel sends what is ready while the rest of
the backward pass runs, so it is an upper bound of the cost.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from results_page import machine, put_section, spread

from skipway.nn.describe import describe
from skipway.nn.zoo import find
from skipway.run import Run

BATCH, IMAGES, SIZE, CLASSES = 256, 2048, 32, 10
LINKS = (("10 Gbit/s Ethernet", 1.25e9, 50e-6), ("100 Gbit/s Ethernet", 12.5e9, 10e-6), ("400 Gbit/s", 50e9, 5e-6))
WORKERS = (8, 64, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into results.md")
    options = parser.parse_args()
    found: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        data = write_images(Path(folder))
        for number in range(options.rounds):
            for processes in (1, 2) if number % 2 == 0 else (2, 1):
                out = Path(folder) / f"run{number}-{processes}"
                found[processes].append(images_per_s(data, out, processes, options))
                print(f"round {number + 1}, {processes} processes: {found[processes][-1]:,.1f} images/s", flush=True)
    section = "\n".join(report(found, options))
    print(f"\n{section}")
    if options.write:
        put_section("## Several processes", section)


def write_images(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays = {"classes": np.array([f"class {i}" for i in range(CLASSES)])}
    for split, count in (("train", IMAGES), ("val", BATCH)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % CLASSES
    path = folder / "random.npz"
    np.savez(path, **arrays)
    return path


def images_per_s(data: Path, out: Path, processes: int, options: argparse.Namespace) -> float:
    """Median of the epochs but the first."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if processes == 2 else []
    flags = ["--network", options.network, "--stem", "cifar", "--batch-size", str(BATCH), "--epochs", options.epochs]
    command = [sys.executable, *launch, "-m", "skipway", "train", data, "--out", out, *flags]
    threads = {"OMP_NUM_THREADS": str(2 // processes)}
    subprocess.run([*map(str, command)], check=True, capture_output=True, env={**os.environ, **threads})
    return statistics.median(row["images_per_s"] for row in Run.open(out).metrics()[1:])


def report(found: dict[int, list[float]], options: argparse.Namespace) -> list[str]:
    """Both tables."""
    command = f"`python benchmarks/scaling.py --network {options.network} --rounds {options.rounds} --epochs "
    command += f"{options.epochs}`"
    lines = [
        f"{command} ({machine()}; {SIZE} pixels, batches of {BATCH}; n = "
        f"{options.rounds} runs that alternate; medians, in brackets the extremes)",
        "",
        "| | images/s |",
        "|---|---|",
        f"| one process, two threads | {spread(found[1], 1)} |",
        f"| two processes, one thread each | {spread(found[2], 1)} |",
        "",
        f"two / one: {statistics.median(b / a for a, b in zip(found[1], found[2], strict=True)):.2f}",
    ]
    trained = dataclasses.replace(find(options.network), stem="cifar", num_classes=CLASSES)
    parameters = describe(trained, image_size=SIZE).parameters
    step = BATCH / statistics.median(found[1])
    lines += [
        "",
        f"By the model, efficiency of n workers that each do what this machine does ({parameters:,} parameters, "
        f"{4 * parameters / 1e6:.0f} MB of gradients, {1000 * step:.0f} ms a step of {BATCH} images); in brackets with "
        "steps ten times as fast:",
        "",
        "| link | " + " | ".join(f"{n} workers" for n in WORKERS) + " |",
        "|---|" + "---|" * len(WORKERS),
    ]
    for name, rate, latency in LINKS:
        cells = []
        for n in WORKERS:
            sent = ring(n, 4 * parameters, rate, latency)
            cells.append(f"{step / (step + sent):.0%} ({step / (step + 10 * sent):.0%})")
        lines.append(f"| {name}, {latency * 1e6:.0f} us | {' | '.join(cells)} |")
    return lines


def ring(workers: int, size: float, rate: float, latency: float) -> float:
    """Seconds of an all-reduce of so many bytes."""
    return 2 * (workers - 1) / workers * size / rate + 2 * (workers - 1) * latency


if __name__ == "__main__":
    main()
