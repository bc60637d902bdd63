"""Two hundred layers without normalisation: with SkipInit, with Fixup, and as they come.

    python benchmarks/norm_free.py [--depth 200] [--epochs 2] [--lr 0.001] [--seeds 1] [--out runs/norm-free]

The network of He et al. 2015, section 4.2, with no normalisation at all, on the embedded sample. Beside it the same
with `--branch-scale skipinit` (De and Smith 2020) and with `--init fixup` (Zhang et al. 2019): nothing else differs.
Runs that are finished are not run again; a run that diverges is written down as such.
"""

import argparse
import io
import math
import os
import platform
from pathlib import Path

import torch
from rich.console import Console

import skipway
from skipway.run import Run

KINDS = {"none": {}, "skipinit": {"branch_scale": "skipinit"}, "fixup": {"init": "fixup"}}


def train(kind: str, seed: int, options: argparse.Namespace) -> str:
    """Train, or look up, one network; a line on how it went."""
    blocks = (options.depth - 2) // 6
    network = {
        "stages": [f"{blocks}x16", f"{blocks}x32/2", f"{blocks}x64/2"],
        "shortcut": "zero_pad",
        "norm": "none",
        "stem_width": 16,
        **KINDS[kind],
    }
    settings = {
        "network": network,
        "augment": {"pad_crop": 0.07},
        "train": {
            "optimizer": "adamw",
            "epochs": options.epochs,
            "batch_size": 64,
            "lr": options.lr,
            "seed": seed,
        },
    }
    folder = Path(options.out, f"{kind}-{options.depth}-lr{options.lr:g}-seed{seed}")
    try:
        run = skipway.train("fashion-sample", settings=settings, out=folder, console=Console(file=io.StringIO()))
    except skipway.InputError as error:
        if "no longer a finite number" not in str(error):
            raise
        return f"diverged: {str(error).partition('.')[0]}"
    return outcome(run)


def outcome(run: Run) -> str:
    first, last = run.steps()[0]["loss"], run.metrics()[-1]
    return (
        f"training loss {first:.3g} at the first step, {last['train_loss']:.3f} over the last epoch; "
        f"validation {run.summary['val_accuracy']:.1%}, test {run.summary['test_accuracy']:.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--out", default="runs/norm-free")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"depth {options.depth}, no norm, {options.epochs} epochs of fashion-sample, AdamW at {options.lr:g}; "
          f"chance is a loss of {math.log(10):.3f}")  # fmt: skip
    for kind in options.kinds:
        for seed in range(options.seeds):
            print(f"{kind:<9} seed {seed}  {train(kind, seed, options)}", flush=True)


if __name__ == "__main__":
    main()
