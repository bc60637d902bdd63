"""How long a recipe takes to its accuracy, by a yardstick that holds on any machine; and what each trick is worth.

    python benchmarks/time_to_accuracy.py DATA [--recipe cifar10-94] [--seeds 5] [--out runs/time-to-accuracy] [--write]
    python benchmarks/time_to_accuracy.py DATA --ablate [--seeds 3] [--write]

C is the rate of a 3x3 convolution of 128 to 128 channels on 16x16 pixels, batches of 500, bf16, channels_last, forward
and backward (TFLOP/s, median of 7, allocator kept), taken in the same process before each run and after it. T is the
time of all epochs, their validation included; the whole command also opens the images, whitens, saves and scores the
test split. A run counts as T C / 776, by a figure from outside: the published recipe without skips (Jordan's for 94%),
tuned by hand on two cores with AMX, took 462 s there, at C = 1.68.

Each run is a folder that is not run again: cut off, the same command goes on. The first form scores the test split, of
settings that were chosen on validation; the second one, which compares variants of cifar10-94 (and recipes made of it),
never does. --write puts the table into
results.md in place of its section there.
"""

import argparse
import io
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from results_page import machine, put_section
from rich.console import Console

import skipway
from skipway.run import Run
from skipway.training.loop import Hooks
from skipway.training.machine import keep_freed_memory
from skipway.training.roofline import yardstick

PUBLISHED = 776.0  # seconds x TFLOP/s of the hand-tuned published recipe
# What variants are compared with: the recipe without its tricks that leave out gradients, at the rate that suits whole
# batches, on nine tenths of the images.
COMMON = {
    "data": {"val_fraction": 0.1},
    "train": {"lr": 0.24},
    "speed": {"keep_hard": 1.0, "rest_stem": 1.0},
}
BASE = "the recipe, of whole batches"
ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    BASE: {},
    "without skips": {"network": {"shortcut": "none"}},
    "projections for padded shortcuts": {"network": {"shortcut": "avg_pool"}},
    "a 3x3 stem that learns, not whitened patches": {"network": {"stem": "cifar", "stem_width": 32}},
    "patches of 4x4 at every second pixel": {"network": {"stem_patch": 4, "stem_stride": 2, "stem_components": 32}},
    "all components of the patches": {"network": {"stem_components": 0}},
    "He's initial weights": {"network": {"init": "he"}},
    "relu for SiLU": {"network": {"act": "relu"}},
    "strided convolutions for max-pools": {"network": {"blur": "none"}},
    "BlurPool for max-pools": {"network": {"blur": "blur"}},
    "average for the last max-pool": {"network": {"head_pool": "average"}},
    "flips at random": {"augment": {"flip_mode": "random"}},
    "no label smoothing": {"train": {"label_smoothing": 0.0}},
    "filters of free norm": {"train": {"fixed_norm": False}},
    "bias rate as the others'": {"train": {"bias_lr": 1.0}},
    "SGD for Muon": {"train": {"optimizer": "sgd", "lr": 0.5, "momentum": 0.9, "bias_lr": 1.0, "head_lr": 1.0}},
    "batch norm's momentum 0.1": {"network": {"norm_momentum": 0.1}},
    "images from 24 pixels on": {"speed": {"start_size": 24, "full_size": 0.4}},
    "the harder half, by a small network": {"speed": {"keep_hard": 0.5, "hard_by": "proxy"}},
    "the harder half, by its last loss": {"speed": {"keep_hard": 0.5, "hard_by": "last"}},
    "stochastic depth that skips work": {"network": {"drop_path": 0.1, "drop_path_by": "batch"}},
    "scored at 36 pixels": {"data": {"test_size": 36}},
    "norms at rest in the last tenth": {"speed": {"freeze_norms": 0.9}},
    "the stem at rest from 0.3 on": {"speed": {"rest_stem": 0.3}},
    "lookahead": {"train": {"lookahead": 5}},
    "averaged weights": {"train": {"ema_decay": 0.99}},
    "PyTorch's norms and additions": {"speed": {"kernels": "off"}},
}

VIEWS = "scored over flipped and shifted views"


def one_run(options: argparse.Namespace, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """A run's figures; from its folder where it has been run."""
    score_test = not options.ablate
    facts = folder / "time.json"
    if facts.is_file():
        return json.loads(facts.read_text())
    before = yardstick(torch.device("cpu")).value
    started = time.perf_counter()
    run = skipway.train(
        options.data,
        recipe=options.recipe,
        settings=settings,
        out=folder,
        console=Console(file=io.StringIO()),
        hooks=Hooks(score_test=score_test),
    )
    if run.summary["status"] != "finished":
        raise SystemExit(f"stopped in {folder}; the same command goes on from there")
    wall = time.perf_counter() - started
    after = yardstick(torch.device("cpu")).value
    made = figures(run) | {"yardstick": [before, after], "wall_s": wall, "load": os.getloadavg()[0]}
    facts.write_text(json.dumps(made))
    return made


def over_views(folder: Path) -> dict[str, Any]:
    """What the same weights score on validation over several views of each image."""
    facts = folder / "views.json"
    if not facts.is_file():
        tta = skipway.evaluate(folder, split="val", tta="flip_shift").tta
        assert tta
        facts.write_text(json.dumps({"val": tta.accuracy, "val_loss": tta.loss}))
    return json.loads(facts.read_text())


def figures(run: Run) -> dict[str, Any]:
    """What the run's own records say."""
    rows, summary = run.metrics(), run.summary
    return {
        "train_s": sum(row["time_s"] for row in rows),
        "images_per_s": statistics.median(row["images_per_s"] for row in rows),
        "val": rows[-1]["val_accuracy"],
        "val_loss": rows[-1]["val_loss"],
        "test": summary.get("test_accuracy"),
        "test_tta": summary.get("test_accuracy_tta"),
    }


def spread(values: list[float], sign: str = "", *, digits: int = 2) -> str:
    """Mean, and standard deviation where there are several."""
    sd = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.{digits}f}{sd}"


def cost(made: dict[str, Any]) -> float:
    """T C / 776."""
    return made["train_s"] * statistics.fmean(made["yardstick"]) / PUBLISHED


def merged(*settings: dict[str, Any]) -> dict[str, Any]:
    """Settings laid over each other."""
    return {k: {f: v for s in settings for f, v in s.get(k, {}).items()} for s in settings for k in s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--recipe", default="cifar10-94")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ablate", action="store_true", help="compare variants on validation")
    parser.add_argument("--only", default="", help="--ablate: variants whose name holds this")
    parser.add_argument("--epochs", type=int, default=0, help="another number of epochs")
    parser.add_argument("--shared", action="store_true", help="--ablate: other work runs beside, so tell no times")
    parser.add_argument("--out", type=Path, default=Path("runs/time-to-accuracy"))
    parser.add_argument("--write", action="store_true", help="into results.md")
    options = parser.parse_args()
    keep_freed_memory()
    print(f"{machine()}; {options.recipe}", flush=True)
    variants = {k: v for k, v in ABLATIONS.items() if options.only in k} if options.ablate else {"the recipe": {}}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for seed in range(options.seeds):
        for name, change in variants.items():
            own = {"train": {"seed": seed} | ({"epochs": options.epochs} if options.epochs else {})}
            settings = merged(COMMON if options.ablate else {}, change, own)
            place = f"{'ablate' if options.ablate else 'test'}-{name.replace(' ', '-')}-{seed}"
            folder = options.out / f"{options.recipe}-{place}"
            rows[name].append(one_run(options, folder, settings))
            print(f"{name}, seed {seed}: {told(rows[name][-1:])}", flush=True)
            if options.ablate and name == BASE:
                rows.setdefault(VIEWS, []).append(rows[name][-1] | over_views(folder))
    flags = "".join(f" --{name}" for name in ("ablate", "shared") if getattr(options, name))
    flags += f" --epochs {options.epochs}" if options.epochs else ""
    command = f"python benchmarks/time_to_accuracy.py DATA --recipe {options.recipe}{flags} --seeds {options.seeds}"
    section = "\n".join(
        [
            f"`{command}` ({machine()})",
            "",
            *(compared(rows, times=not options.shared) if options.ablate else tabled(rows)),
        ]
    )
    print(f"\n{section}")
    if options.write:
        put_section(
            f"## {'What each trick is worth' if options.ablate else 'Time to accuracy'}: {options.recipe}", section
        )


def told(rows: list[dict[str, Any]]) -> str:
    """Runs in a line."""
    parts = [f"validation {spread([100 * r['val'] for r in rows])}%"]
    for key, title in (("test", "test"), ("test_tta", "with test-time augmentation")):
        if all(r[key] is not None for r in rows):
            parts.append(f"{title} {spread([100 * r[key] for r in rows])}%")
    parts += [f"T {spread([r['train_s'] for r in rows])} s", f"T C / 776 {spread([cost(r) for r in rows])}"]
    return ", ".join(parts)


def tabled(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Each seed, and the mean with its standard deviation."""
    (runs,) = rows.values()
    lines = [
        "| seed | test | with test-time augmentation | T, s | the whole command, s | C, TFLOP/s | T C / 776 "
        "| images learnt from a second |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups = [*((str(i), [run]) for i, run in enumerate(runs)), (f"mean ± standard deviation, n = {len(runs)}", runs)]
    for name, some in groups:
        whole = [r["wall_s"] for r in some if r["wall_s"] >= r["train_s"]]  # else it was cut off and went on
        cells = [
            f"{spread([100 * r['test'] for r in some])}%",
            f"{spread([100 * r['test_tta'] for r in some])}%" if some[0]["test_tta"] is not None else "",
            spread([r["train_s"] for r in some]),
            spread(whole) if len(whole) == len(some) else "",
            spread([statistics.fmean(r["yardstick"]) for r in some]),
            spread([cost(r) for r in some]),
            f"{statistics.median(r['images_per_s'] for r in some):,.0f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "T: all epochs with their validation. C: a 3x3 convolution of 128 channels at 16 pixels, forward and backward, "
        "before and after. 776: T C of the published recipe without skips, tuned by hand on two cores with AMX (462 s "
        "at 1.68).",
    ]


def compared(rows: dict[str, list[dict[str, Any]]], *, times: bool) -> list[str]:
    """Each variant, and its difference to the base of the same seed."""
    base = rows.get(BASE, [])
    titles = ["variant", "validation", "difference", "loss", *(["T, s", "T / the first's"] if times else [])]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for name, some in rows.items():
        pairs = list(zip(some, base, strict=True)) if base and some is not base else []
        cells = [
            f"{spread([100 * r['val'] for r in some])}%",
            spread([100 * (a["val"] - b["val"]) for a, b in pairs], "+") if pairs else "",
            spread([r["val_loss"] for r in some], digits=3),
            spread([r["train_s"] for r in some], digits=0),
            spread([a["train_s"] / b["train_s"] for a, b in pairs]) if pairs else "",
        ]
        lines.append(f"| {' | '.join([name, *cells][: len(titles)])} |")
    n = len(next(iter(rows.values())))
    return [*lines, "", f"n = {n} seed{'' if n == 1 else 's'}; validation: a tenth of the training images."]


if __name__ == "__main__":
    main()
