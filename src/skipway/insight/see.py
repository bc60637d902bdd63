"""The verb: run the experiments that fit a time budget, say what they show, and write it down as one page.

The budget is shared out evenly; experiments that can use more than their share come last, with what the others left.
Results that were found before cost nothing.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from skipway.cache import written_beside
from skipway.errors import InputError
from skipway.figures import png
from skipway.insight.experiment import Experiment, Pace, Reading, perform
from skipway.insight.experiments import EXPERIMENTS, find_experiment
from skipway.insight.plain import to_plain, to_text
from skipway.insight.report import Section, page, sections_html
from skipway.insight.style import svg
from skipway.insight.subject import NUM_IMAGES, Subject, subject_of
from skipway.insight.watch import Watch
from skipway.run import Run

BUDGET_S = 120.0
TOO_LONG = "it needs more time: --budget 10m, say, or --only it"
WORK = 0.85  # of an experiment's share, after which it ends early: the rest is for its picture
MOMENT = 1e-3  # seconds, where time is over
ENDLESS = 1e6  # seconds: what cannot be done in these cannot be done


@dataclass(frozen=True)
class Finding:
    """What one experiment found.

    Args:
        experiment: which.
        settings, result: its own dataclasses.
        reading: what the result says in words.
        picture: as SVG text.
        seconds: it took, drawing included.
    """

    experiment: Experiment
    settings: Any
    result: Any
    reading: Reading
    picture: str
    seconds: float


@dataclass(frozen=True)
class Seen:
    """What `see` found. Jupyter and marimo show it as the page does.

    Args:
        title: of what was looked at.
        page: the HTML file, which needs no network; pictures (SVG, PNG) and results (JSON) are beside it.
        findings: one an experiment, in order.
        left_out: experiments that were not run, with the reason.
    """

    title: str
    page: Path
    findings: tuple[Finding, ...]
    left_out: dict[str, str]

    def _repr_html_(self) -> str:
        return sections_html([_section(self.title, f) for f in self.findings], self.left_out)


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Args:
        first: experiments that an even share of the time is enough for, with their settings; in order.
        later: those that can use more, and come last with what the others left; in order.
        left_out: those that are not run, with the reason.
    """

    first: tuple[tuple[Experiment, Any], ...]
    later: tuple[Experiment, ...]
    left_out: dict[str, str]


def see(
    what: Run | str | Path,
    *,
    only: Sequence[str] = (),
    budget_s: float = BUDGET_S,
    data: str = "",
    out: str | Path = "",
    trust_code: bool = False,
    console: Console | None = None,
) -> Seen:
    """Look into a network: run the experiments that fit into the budget and write the page.

    Args:
        what: a run, its folder or weights.safetensors, or a network's name (with fresh weights).
        only: names of experiments; default: all that can be done.
        budget_s: seconds for all of them together.
        data: other images than the run's own.
        out: folder to write into; default: `see` in the run's folder, else `see-NAME` here.
        trust_code: run the code that makes the network, where that is neither skipway's nor a library's.
        console: where progress and readings are printed; default: nowhere.

    Returns:
        A Seen.

    Raises:
        InputError: no such run, network, data or experiment, a network whose blocks are unknown, or a folder that
            cannot be written.
    """
    if not budget_s > 0:
        raise InputError(f"budget must be more than 0 seconds, got {budget_s:g}")
    names = [find_experiment(name).name for name in only] or list(EXPERIMENTS)
    started = time.monotonic()
    console = console or Console(quiet=True)
    with console.status("looking for the images"):
        subject = subject_of(what, data, num_images=NUM_IMAGES, trust_code=trust_code)
        pace = Pace(subject)
        planned = plan(pace, [EXPERIMENTS[name] for name in names], budget_s)
    folder = _folder(subject, out)
    console.print(told(subject, planned, budget_s), markup=False, highlight=False, soft_wrap=True)
    findings: list[Finding] = []
    try:
        for finding in _perform(pace, planned, started + budget_s, console):
            _write(folder, finding)
            findings.append(finding)
    finally:  # also of what there is when it is interrupted
        findings.sort(key=lambda f: names.index(f.experiment.name))
        made = Seen(subject.title, folder / "index.html", tuple(findings), planned.left_out)
        sections = [_section(subject.title, f) for f in findings]
        _write_text(made.page, page(f"skipway see: {subject.title}", _facts(subject), sections, planned.left_out))
    return made


def plan(pace: Pace, experiments: Sequence[Experiment], budget_s: float) -> Plan:
    """What is run first, what if time is left, and what not at all."""
    share = budget_s / max(len(experiments), 1)
    first, later, left_out = [], [], {}
    for experiment in experiments:
        settings, most = experiment.fit(pace, share), experiment.fit(pace, budget_s)
        if settings is not None and settings == most:
            first.append((experiment, settings))
        elif most is not None:
            later.append(experiment)
        elif experiment.fit(pace, ENDLESS) is not None:
            left_out[experiment.name] = TOO_LONG
        else:
            left_out[experiment.name] = "it cannot be asked of this network"
    return Plan(tuple(first), tuple(later), left_out)


def told(subject: Subject, planned: Plan, budget_s: float) -> str:
    """What is about to be done, in advance."""
    images = f"{len(subject.seen):,} images of validation"
    names = ", ".join(experiment.name for experiment, _ in planned.first)
    lines = [f"{subject.title}: in {_minutes(budget_s)} at most, on {images}: {names or 'nothing at once'}"]
    if planned.later:
        lines.append(f"then, in the time that is left: {', '.join(e.name for e in planned.later)}")
    lines += [f"without {name}: {why}" for name, why in planned.left_out.items()]
    return "\n".join(lines)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _perform(pace: Pace, planned: Plan, end: float, console: Console) -> Iterator[Finding]:
    """Each experiment's finding, with a bar while it is made; those that time runs out for go to `left_out`."""
    columns = TextColumn("{task.description:<12}"), BarColumn(), TimeElapsedColumn()
    queue: list[tuple[Experiment, Any]] = [*planned.first, *((e, None) for e in planned.later)]
    with Progress(*columns, console=console, transient=True) as bars:
        for number, (experiment, settings) in enumerate(queue):
            begun = time.monotonic()
            share = max((end - begun) / (len(queue) - number), MOMENT)
            if settings is None:  # a round share first, which is the same the next time
                settings = experiment.fit(pace, 2.0 ** math.floor(math.log2(share))) or experiment.fit(pace, share)
            if settings is None:
                planned.left_out[experiment.name] = TOO_LONG
                continue
            task = bars.add_task(experiment.name, total=1.0)
            watch = Watch(on_progress=_mover(bars, task), deadline=begun + WORK * share)
            result = perform(experiment, pace.subject, settings, watch=watch)
            reading, picture = experiment.read(result), svg(experiment.draw(result))
            bars.remove_task(task)
            console.print(said(experiment, reading), markup=False, highlight=False, soft_wrap=True)
            yield Finding(experiment, settings, result, reading, picture, time.monotonic() - begun)


def _mover(bars: Progress, task: Any) -> Callable[[float], None]:
    return lambda share: bars.update(task, completed=share)


def said(experiment: Experiment, reading: Reading) -> str:
    """An experiment's reading as the command prints it."""
    lines = [f"\n{experiment.title} [{reading.verdict}]", *(f"  {sentence}" for sentence in reading.sentences)]
    return "\n".join(lines)


def _section(title: str, finding: Finding) -> Section:
    experiment = finding.experiment
    kind = type(finding.settings).__name__
    code = (
        f"from skipway.insight.{experiment.name} import {experiment.name}, {kind}\n"
        "from skipway.insight.subject import subject_of\n\n"
        f"result = {experiment.name}(subject_of({title!r}), {finding.settings!r})"
    )
    words = experiment.title, experiment.paper, experiment.claim
    return Section(experiment.name, *words, finding.reading, finding.picture, code, finding.seconds)


def _facts(subject: Subject) -> str:
    weights = "trained" if subject.trained else "with fresh weights"
    count = sum(p.numel() for p in subject.network.parameters())
    return (
        f"{subject.spec.network.name}, {count:,} parameters, {weights}; {len(subject.seen):,} validation images "
        f"and {len(subject.train):,} training images of {subject.spec.data.path}"
    )


def _folder(subject: Subject, out: str | Path) -> Path:
    """Where to write; made. Raises InputError."""
    whose = Path(subject.title)
    named = whose.parent.name if whose.suffix == ".safetensors" and whose.parent.name else whose.name
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in named)
    folder = Path(out) if str(out) else subject.run.folder / "see" if subject.run else Path(f"see-{name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror or error}; name another with --out") from error
    return folder


def _write(folder: Path, finding: Finding) -> None:
    """The picture as SVG and PNG, the result as JSON."""
    experiment = finding.experiment
    _write_text(folder / f"{experiment.name}.svg", finding.picture)
    _write_bytes(folder / f"{experiment.name}.png", png(experiment.draw(finding.result)))
    record = {
        "experiment": experiment.name,
        "settings": to_plain(finding.settings),
        "reading": to_plain(finding.reading),
        "result": to_plain(finding.result),
    }
    _write_text(folder / f"{experiment.name}.json", to_text(record))


def _write_text(path: Path, text: str) -> None:
    _write_bytes(path, text.encode("utf-8", "backslashreplace"))


def _write_bytes(path: Path, content: bytes) -> None:
    try:
        with written_beside(path) as beside:
            beside.write_bytes(content)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}; name a folder with --out") from error
