"""Why skips: plain-56 against resnet56 on the embedded sample, same initial weights, order, budget and settings.

    python benchmarks/plain_vs_residual.py [--epochs 5] [--seeds 3] [--depth 56] [--runs runs/plain-vs-residual]

A third row is the residual network whose blocks start as their shortcuts (--zero-init-last), a start that only a
network with skips can have. Prints, for each run, the training loss over the last epoch and its wobble, the
standard deviation of the loss of a step about its own trend (a straight line through the 51 steps around it), over
the whole run and over its second half. Draws the curves with bands over the seeds. Runs that are finished are not
repeated, unfinished ones go on.
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
KINDS = {  # name -> zoo prefix, settings of the network
    "plain": ("plain", {}),
    "resnet": ("resnet", {}),
    "resnet, zero-init": ("resnet", {"zero_init_last": True}),
}
COLOURS = {"plain": "#d55e00", "resnet": "#0072b2", "resnet, zero-init": "#009e73"}


def trend(losses: np.ndarray) -> np.ndarray:
    """At each step, the value of the straight line through the WINDOW steps around it; fewer at the ends."""
    line = np.empty_like(losses)
    for step in range(len(losses)):
        around = np.arange(max(0, step - WINDOW // 2), min(len(losses), step + WINDOW // 2 + 1))
        line[step] = np.polyval(np.polyfit(around - step, losses[around], 1), 0)
    return line


def train(kind: str, seed: int, options: argparse.Namespace) -> skipway.Run:
    prefix, changes = KINDS[kind]
    settings = {
        "network": {"name": f"{prefix}{options.depth}", **changes},
        "train": {"epochs": options.epochs, "seed": seed, "batch_size": 64, "lr": 0.05, "warmup_epochs": 1.0},
    }
    out = options.runs / f"{kind.replace(', ', '-')}-{options.depth}-{options.epochs}-seed{seed}"
    return skipway.train("fashion-sample", settings=settings, out=out, console=Console())


def draw(curves: dict[str, np.ndarray], options: argparse.Namespace, path: Path) -> None:
    """curves: kind -> (seeds, steps) losses."""
    figure = Figure(figsize=(8, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for kind, losses in curves.items():
        smooth = np.stack([trend(row) for row in losses])
        at = np.arange(losses.shape[1]) / losses.shape[1] * options.epochs
        axes.plot(at, losses[0], color=COLOURS[kind], alpha=0.2, linewidth=0.6)
        axes.fill_between(at, smooth.min(0), smooth.max(0), color=COLOURS[kind], alpha=0.3, linewidth=0)
        axes.plot(at, smooth.mean(0), color=COLOURS[kind], label=f"{kind} ({options.depth})")
    axes.set_xlabel("epoch")
    axes.set_title(f"training loss (nats), {options.seeds} seeds: mean, range, and each step of the first", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path.write_bytes(buffer.getvalue())


def _mean(rows: list[tuple], kind: str, column: int) -> str:
    values = [row[column] for row in rows if row[0] == kind]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):>6.4f}±{spread:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--depth", type=int, default=56)
    parser.add_argument("--runs", type=Path, default=Path("runs/plain-vs-residual"))
    options = parser.parse_args()
    rows, curves = [], {}
    for kind in KINDS:
        losses = []
        for seed in range(options.seeds):
            run = train(kind, seed, options)
            steps = np.array([row["loss"] for row in run.steps()])
            losses.append(steps)
            about = steps - trend(steps)
            whole, half = float(about.std()), float(about[len(about) // 2 :].std())
            rows.append((kind, seed, run.metrics()[-1]["train_loss"], whole, half, run.summary["test_accuracy"]))
        curves[kind] = np.stack(losses)
    print(f"\n{os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"depth {options.depth}, {options.epochs} epochs")
    columns = ("training loss", "wobble", "second half", "test accuracy")
    print(f"{'network':<18} {'seed':>4} " + " ".join(f"{c:>13}" for c in columns))
    for kind, seed, *values in rows:
        print(f"{kind:<18} {seed:>4} " + " ".join(f"{value:>13.4f}" for value in values))
    for kind in KINDS:
        print(f"{kind:<18} {'mean':>4} " + " ".join(_mean(rows, kind, c) for c in range(2, 6)))
    picture = options.runs / "plain-vs-residual.png"
    draw(curves, options, picture)
    print(f"picture {picture}")


if __name__ == "__main__":
    main()
