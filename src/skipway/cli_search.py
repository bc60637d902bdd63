"""The verbs that look for settings: `skipway find-lr` and `skipway tune`. They are hung into the command in cli.py."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from skipway.flags import WANTED, Flags, Wanted, settings_of
from skipway.terminal import STOPPED, console, print_json, say

if TYPE_CHECKING:
    from skipway.spec import RunSpec
    from skipway.training.tune import Tuning

SHOWN = 10
Listed = Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")]


def find_lr(
    data: str | None = None,
    /,
    *,
    steps: int = 150,
    low: float = 0,
    high: float = 0,
    out: Path | None = None,
    json: bool = False,
    wanted: Wanted = WANTED,
    flags: Flags | None = None,  # pyrefly: ignore[invalid-annotation]
) -> int:
    """Find a learning rate for a run: some steps of its training at rates that rise until the loss diverges.

    The loss is drawn over the rates into a picture; the numbers are written beside it. No run is touched.

    **Examples**

    `skipway find-lr photos/ --network resnet18`

    `skipway find-lr cifar10 --optimizer adamw --batch-size 256 --out adamw.png`

    Parameters
    ----------
    data
        Whatever `skipway train` takes. Default: the recipe's.
    steps
        Of training, at most.
    low
        The first rate. Default: a thousandth of the optimizer's usual one.
    high
        The last rate. Default: 100 times the optimizer's usual one.
    out
        A .png file. Default: find-lr-DATA-NETWORK.png; where it exists, the next free name is taken.
    json
        Print one JSON object.
    """
    from skipway.training.find_lr import check_out
    from skipway.training.find_lr import find_lr as find

    if out is not None:
        check_out(out)
    spec, _ = _asked(data, wanted, flags)
    with _bar(steps) as show:
        found = find(spec, steps=steps, low=low, high=high, progress=show)
    picture, numbers = found.save(out)
    if json:
        files = {"picture": str(picture), "numbers": str(numbers)}
        print_json(dataclasses.asdict(found) | files, ascii=True)
        return 0
    ended = f"diverged at {found.rates[-1]:.2g}" if found.diverged else f"did not diverge up to {found.rates[-1]:.2g}"
    say(f"{found.title}: {len(found.rates)} steps from a rate of {found.rates[0]:.2g} on")
    say(f"the loss fell fastest at {found.steepest:.2g}, was smallest at {found.minimum:.2g}, and {ended}")
    say(f"suggestion: --lr {found.suggestion:g}  ({found.why})", style="bold")
    say(f"drawn in {picture}, numbers in {numbers}")
    return 0


def tune(
    data: str | None = None,
    /,
    *,
    search: Listed = None,
    trials: int = 20,
    jobs: int = 1,
    study: Path | None = None,
    json: bool = False,
    wanted: Wanted = WANTED,
    flags: Flags | None = None,  # pyrefly: ignore[invalid-annotation]
) -> int:
    """Search for settings: trials are runs, chosen by Optuna, compared on validation; the test split is not touched.

    The same command goes on with the search after Ctrl-C, a kill, or with more --trials. Poor trials are ended early.
    --max-minutes is the time of the whole search.

    **Examples**

    `skipway tune photos/ --epochs 10`

    `skipway tune cifar10 --search lr=1e-3..1:log --search optimizer=sgd,adamw --search batch_size=32..256:step32`

    `skipway tune photos/ --search network=resnet18,resnet34 mixup=0..0.4 --trials 40 --jobs 2 --study mine.db`

    Parameters
    ----------
    data
        Whatever `skipway train` takes. Default: the recipe's.
    search
        Any setting by its flag's name: NAME=LOW..HIGH, with :log or :step8 behind it, or NAME=ONE,OTHER.
        Default: lr, weight_decay and label_smoothing.
    trials
        How many in all, those of earlier commands included.
    jobs
        Processes, each with a trial at a time. More commands on one study share its trials too.
    study
        The SQLite file that remembers, ending in .db. Default: runs/tune-DATA-NETWORK.db; the runs lie in the folder
        of that name without its ending.
    json
        Print one JSON object.
    """
    from skipway.training.trial import Voice
    from skipway.training.tune import tune as look

    spec, settings = _asked(data, wanted, flags)
    told = Console(stderr=True, emoji=False, width=console.width) if json else console
    with told.status("looking at the data") as status:
        voice = Voice(lambda line: say(line, where=told), lambda text: status.update(escape(text)))
        found = look(spec, settings=settings, search=search or (), trials=trials, jobs=jobs, study=study, voice=voice)
    picture = _draw(found, f"{_counted(found)}: {spec.network.name} on {spec.data.path}")
    if json:
        print_json(_as_json(found, picture), ascii=True)
    else:
        _tell(found, picture)
    return STOPPED if found.stopped else 0


@contextlib.contextmanager
def _bar(steps: int) -> Iterator[Callable[[int, int, float], None]]:
    """On a terminal, a bar on standard error; what moves it."""
    columns = (TextColumn("finding a rate"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"))
    silent = not sys.stderr.isatty()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True, disable=silent) as bar:
        task = bar.add_task("", total=steps, loss="", visible=False)  # seen once it moves: data may be decoded first
        yield lambda done, total, loss: bar.update(task, completed=done, total=total, loss=f"{loss:.3f}", visible=True)


def _asked(data: str | None, wanted: Wanted, flags: Any) -> "tuple[RunSpec, dict[str, dict[str, Any]]]":
    """The spec that was asked for, and what the flags said."""
    from skipway.training.asked import asked_spec

    settings = settings_of(flags, wanted.network)
    spec = asked_spec(
        data or "",
        network=wanted.network,
        recipe=wanted.recipe,
        config=wanted.config,
        settings=settings,
        trust_code=wanted.trust_code,
    )
    return spec, settings


def _draw(found: "Tuning", title: str) -> Path | None:
    """The picture, in the folder of the trials; none where no trial has a score."""
    from skipway.cache import written_beside
    from skipway.training.tune_picture import draw

    if not any(trial.score is not None for trial in found.trials):
        return None
    place = found.study.with_suffix("") / "tune.png"
    with written_beside(place) as beside:
        beside.write_bytes(draw(found, title))
    return place


def _tell(found: "Tuning", picture: Path | None) -> None:
    """The best trials, how many of which kind, what to do with the best one."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("run", no_wrap=True)
    for name in (f"val {found.metric}", "epochs", *(field.name for field in found.searched)):
        table.add_column(name, justify="right")
    for trial in found.ranked[:SHOWN]:
        values = [trial.values.get(field.name) for field in found.searched]
        shown = [f"{value:.3g}" if type(value) is float else escape(str(value)) for value in values]
        table.add_row(escape(Path(trial.run).name), f"{trial.score or 0:.2%}", str(trial.epochs), *shown)
    if found.ranked:
        console.print(table)
    states = [trial.state for trial in found.trials]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    again = sum(bool(trial.same_as) for trial in found.trials)
    known = f" ({again} with values that had been tried, and were not run again)" if again else ""
    say(f"{_counted(found)}: {', '.join(counts)}{known}")
    if best := found.best:
        say(f"best: {best.run}, validation {found.metric} {best.score or 0:.2%}", style="bold")
        say("  being the best of several on validation, it flatters a little; the test split was not touched:")
        say(f"  skipway evaluate {best.run}")
        say("  and to train with its settings again, longer or by another seed:")
        say(f"  skipway train --config {best.run}/spec.toml --epochs N")
    say(f"study {found.study}" + (f", picture {picture}" if picture else ""))
    if found.stopped:
        say("stopped; the same command goes on from there", style="yellow")


def _counted(found: "Tuning") -> str:
    return f"{len(found.trials)} trial{'' if len(found.trials) == 1 else 's'}"


def _as_json(found: "Tuning", picture: Path | None) -> dict[str, Any]:
    return {
        "study": str(found.study),
        "metric": found.metric,
        "search": [field.text for field in found.searched],
        "stopped": found.stopped,
        "best": dataclasses.asdict(found.best) if found.best else None,
        "trials": [dataclasses.asdict(trial) for trial in found.trials],
        "picture": str(picture) if picture else None,
    }
