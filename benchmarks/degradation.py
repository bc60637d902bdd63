"""Degradation, and what a skip is worth: plain and residual networks of 20 and 56 layers on scikit-learn's digits.

    python benchmarks/degradation.py [--seeds 3] [--write]

Four networks learn side by side from the same seed, on the same batches, 12 epochs at 16 pixels (He et al. 2015,
section 4.2, at width 8). Then every identity block is cut out of each, one at a time, and the network scored without it
(Veit et al. 2016, section 4.1).

Rate and batch size are those of six pairs (0.05, 0.1, 0.2 by 32, 64) with which residual-56 was right most often on a
fifth of the training images, held out, with seed 0: 97.9%; the next two had one image less of 288, and at 0.2 both deep
networks learn badly. The 359 test images had no part in it. `--write` puts the table into results.md, and the picture
into docs.
"""

import argparse
import datetime
import os
import resource
import statistics
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from matplotlib.figure import Figure
from results_page import machine, put_section

from skipway.figures import png
from skipway.insight.edits import Edit
from skipway.insight.prefix import Prefix
from skipway.insight.probe import Probe, evaluating
from skipway.insight.race import Race, computing_with
from skipway.insight.race_settings import RaceSettings, digits_images, race_spec, train_spec
from skipway.insight.subject import Images
from skipway.nn.twin import twin

SETTINGS = RaceSettings(width=8, lr=0.05, batch_size=32, epochs=12)
DEPTHS = (20, 56)
COLOURS = {"plain-20": "#E69F00", "plain-56": "#D55E00", "residual-20": "#56B4E9", "residual-56": "#0072B2"}
STILL_GOOD = 0.89
HEADING = "## Degradation on digits, and blocks cut out"


@dataclass(frozen=True)
class Outcome:
    """What became of one network: mean training loss of each epoch; of the test images, the share that is right; the
    same after each identity block alone was cut; CPU seconds of training."""

    losses: list[float]
    accuracy: float
    cuts: dict[str, float]
    seconds: float


def networks() -> dict:
    """plain-20, residual-20, plain-56, residual-56."""
    made = {}
    for depth in DEPTHS:
        residual = race_spec(replace(SETTINGS, depth=depth), channels=1, classes=10)
        made |= {f"plain-{depth}": twin(residual).spec, f"residual-{depth}": residual}
    return made


def cut(network: torch.nn.Module, seen: Images) -> dict[str, float]:
    """The share that is right without each of the blocks that keep their input's shape."""
    with evaluating(network), Probe(network, seen.inputs) as probe:
        prefix = Prefix(probe, seen.inputs)
        logits = {u.name: prefix.score([Edit("block", u.name)]) for u in probe.units if not u.opens}
    return {name: float((z.argmax(1) == seen.labels).float().mean()) for name, z in logits.items()}


def train(seed: int) -> dict[str, Outcome]:
    """All four, side by side, on one thread."""
    images = digits_images()
    race = Race(networks(), train_spec(replace(SETTINGS, seed=seed)), *images)
    while not race.done:
        race.step()
    made, scores, n = {}, race.scores(), race.steps_per_epoch
    with computing_with(race.threads):
        for name in race.networks:
            laps = [step.networks[name] for step in race.steps]
            losses = [statistics.mean(lap.loss for lap in laps[i : i + n]) for i in range(0, len(laps), n)]
            cuts = cut(race.network(name), images[1])
            made[name] = Outcome(losses, scores[name].accuracy, cuts, sum(lap.cpu_s for lap in laps))
    return made


def table(runs: list[dict[str, Outcome]]) -> str:
    rows = [
        "| network | training loss, last epoch | test accuracy | after any one cut "
        "| cuts that leave 89% | CPU seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name in runs[0]:
        all_of = [run[name] for run in runs]
        cuts = [share for one in all_of for share in one.cuts.values()]
        good = [sum(share >= STILL_GOOD for share in one.cuts.values()) for one in all_of]
        rows.append(
            f"| {name} | {spread([one.losses[-1] for one in all_of], '.4f')} "
            f"| {spread([one.accuracy for one in all_of], '.1%')} "
            f"| {statistics.median(cuts):.1%} ({min(cuts):.1%} to {max(cuts):.1%}) "
            f"| {', '.join(map(str, good))} of {len(all_of[0].cuts)} | {spread([o.seconds for o in all_of], '.0f')} |"
        )
    return "\n".join(rows)


def spread(values: list[float], form: str) -> str:
    between = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{between}"


def orderings(runs: list[dict[str, Outcome]]) -> list[str]:
    """What is expected, and in how many of the seeds it is so."""

    def damage(one: Outcome) -> float:
        return one.accuracy - statistics.median(one.cuts.values())

    def worst(run: dict[str, Outcome]) -> bool:
        return max(run, key=lambda name: run[name].losses[-1]) == "plain-56"

    told = {
        "plain-56 ends at the highest training loss": [worst(run) for run in runs],
        "the median cut costs plain-20 more than residual-56": [
            damage(run["plain-20"]) > damage(run["residual-56"]) for run in runs
        ],
    }
    return [f"{what}: in {sum(holds)} of {len(holds)} seeds" for what, holds in told.items()]


def draw(runs: list[dict[str, Outcome]]) -> Figure:
    figure = Figure(figsize=(10, 3.8), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour in COLOURS.items():
        rows = [run[name].losses for run in runs]
        epochs = range(1, len(rows[0]) + 1)
        low, high, mean = ([f(values) for values in zip(*rows, strict=True)] for f in (min, max, statistics.mean))
        left.fill_between(epochs, low, high, color=colour, alpha=0.25, linewidth=0)
        left.plot(epochs, mean, color=colour, label=name)
    left.set(yscale="log", xlabel="epoch", title=f"training loss (nats), {len(runs)} seeds: mean and range")
    for name in ("residual-56", "plain-20"):
        for number, run in enumerate(runs):
            shares = sorted(run[name].cuts.values(), reverse=True)
            at = [i / (len(shares) - 1) for i in range(len(shares))]
            label = name if number == 0 else None
            right.plot(at, shares, ".-", color=COLOURS[name], alpha=0.7, linewidth=0.8, label=label)
    right.axhline(0.1, color="#8a8f98", linewidth=0.8, linestyle=":")
    right.set(ylim=(0, 1.02), xticks=(0, 1), xticklabels=("least", "most"), xlabel="harmful cut, in order")
    right.set_title("test accuracy after cutting one identity block; dots: chance")
    for axes in (left, right):
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into results.md and docs/degradation.png")
    options = parser.parse_args()
    started = time.perf_counter()
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        runs = list(pool.map(train, range(options.seeds)))
    took, load, used = time.perf_counter() - started, os.getloadavg()[0], resource.getrusage(resource.RUSAGE_CHILDREN)
    about = (
        f"`python benchmarks/degradation.py --seeds {options.seeds}` (scikit-learn's digits at 16 pixels, 1,438 to "
        f"learn from, 359 to test; width {SETTINGS.width}, batch norm, {SETTINGS.epochs} epochs, batches of "
        f"{SETTINGS.batch_size}, SGD with Nesterov momentum 0.9, peak rate {SETTINGS.lr:g}, cosine after 5% warm-up, "
        f"weight decay 0.0005, no augmentation, fp32; n = {options.seeds} seeds: mean and range, of cuts median and "
        f"range; a process a seed, one thread each; {machine()}, "
        f"{datetime.date.today()}; {took:.0f} s in all, at a "
        f"load of {load:.1f}; {used.ru_utime + used.ru_stime:.0f} s of CPU)"
    )
    holds = "\n".join(f"- {line}" for line in orderings(runs))
    section = "\n\n".join((textwrap.fill(about, 118), table(runs), holds))
    print(section)
    if options.write:
        Path(__file__).parent.parent.joinpath("docs", "degradation.png").write_bytes(png(draw(runs)))
        put_section(HEADING, f"{section}\n\n![curves and cuts](../docs/degradation.png)")


if __name__ == "__main__":
    main()
