"""Why skips: plain-56 against resnet56 on the embedded sample, same weights at the start, same order, same budget.

    python benchmarks/plain_vs_residual.py [--epochs 5] [--seeds 3] [--depth 56] [--runs runs/plain-vs-residual]

Prints each run's training loss over its last epoch and its steadiness: the standard deviation of the loss of a
step about its own trend (the mean of the 51 steps around it). Draws both curves with bands over the seeds. Runs
that are finished are not repeated, unfinished ones go on.
"""

import argparse
import io
import os
import platform
import statistics
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console

import skipway

WINDOW = 51
COLOURS = {"plain": "#d55e00", "resnet": "#0072b2"}


def trend(losses: np.ndarray) -> np.ndarray:
    """The mean of the WINDOW steps around each step; fewer at the ends."""
    weights = np.ones(WINDOW)
    return np.convolve(losses, weights, "same") / np.convolve(np.ones_like(losses), weights, "same")


def train(kind: str, seed: int, options: argparse.Namespace) -> skipway.Run:
    name = f"{kind}{options.depth}"
    settings = {"train": {"epochs": options.epochs, "seed": seed, "batch_size": 128}}
    out = options.runs / f"{name}-{options.epochs}-seed{seed}"
    return skipway.train("fashion-sample", network=name, settings=settings, out=out, console=Console())


def draw(curves: dict[str, np.ndarray], options: argparse.Namespace, path: Path) -> None:
    """curves: kind -> (seeds, steps) losses."""
    figure = Figure(figsize=(8, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for kind, losses in curves.items():
        smooth = np.stack([trend(row) for row in losses])
        at = np.arange(losses.shape[1]) / losses.shape[1] * options.epochs
        axes.plot(at, losses[0], color=COLOURS[kind], alpha=0.2, linewidth=0.6)
        axes.fill_between(at, smooth.min(0), smooth.max(0), color=COLOURS[kind], alpha=0.3, linewidth=0)
        axes.plot(at, smooth.mean(0), color=COLOURS[kind], label=f"{kind}{options.depth}")
    axes.set_xlabel("epoch")
    axes.set_title(f"training loss (nats), {options.seeds} seeds: mean, range, and each step of the first", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path.write_bytes(buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--depth", type=int, default=56)
    parser.add_argument("--runs", type=Path, default=Path("runs/plain-vs-residual"))
    options = parser.parse_args()
    rows, curves = [], {}
    for kind in ("plain", "resnet"):
        losses = []
        for seed in range(options.seeds):
            run = train(kind, seed, options)
            steps = np.array([row["loss"] for row in run.steps()])
            losses.append(steps)
            wobble = float(np.std(steps - trend(steps)))
            rows.append((kind, seed, run.metrics()[-1]["train_loss"], wobble, run.summary["test_accuracy"]))
        curves[kind] = np.stack(losses)
    print(f"\n{os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"{'network':<10} {'seed':>4} {'training loss':>14} {'steadiness':>11} {'test accuracy':>14}")
    for kind, seed, loss, wobble, accuracy in rows:
        print(f"{kind + str(options.depth):<10} {seed:>4} {loss:>14.4f} {wobble:>11.4f} {accuracy:>14.2%}")
    for kind in curves:
        for what, column in (("training loss", 2), ("steadiness", 3)):
            values = [row[column] for row in rows if row[0] == kind]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(
                f"{kind}{options.depth} {what}: mean {statistics.mean(values):.4f}, sd {spread:.4f}, n = {len(values)}"
            )
    picture = options.runs / "plain-vs-residual.png"
    draw(curves, options, picture)
    print(f"picture {picture}")


if __name__ == "__main__":
    main()
