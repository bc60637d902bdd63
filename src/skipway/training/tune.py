"""The search for settings: trials are ordinary runs, chosen by Optuna (TPE), compared by their validation scores alone.

Each trial is a run folder beside the study file. Whatever ends a search (Ctrl-C, a kill, a power cut), the same
command goes on: runs that were under way go on from their last epoch. The test split is not scored.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from skipway.compose import Settings
from skipway.data.pool import cores
from skipway.data.source import is_multilabel
from skipway.errors import InputError
from skipway.spec import RunSpec
from skipway.training.asked import asked_spec
from skipway.training.facts import data_facts
from skipway.training.place import BASE, find_place, run_stem
from skipway.training.plan import make_plan
from skipway.training.progress import Stops
from skipway.training.search import Searched, parse, usual
from skipway.training.study import Order, last_of_each, opened, optuna
from skipway.training.trial import STATES, Voice, work
from skipway.trust import trust

TRIALS = 20


@dataclass(frozen=True)
class Trial:
    """One try of a search.

    Args:
        run: the run folder.
        state: finished, pruned (its score was below the median's), failed, running or waiting.
        score: the best validation score, in [0, 1]; None where there is none.
        epochs: whole epochs that it was trained.
        values: of the searched fields, by name.
        reason: why it failed.
        same_as: the run whose score this is, where its values had been tried; then it has no folder of its own.
    """

    run: str
    state: str
    score: float | None
    epochs: int
    values: dict[str, Any]
    reason: str = ""
    same_as: str = ""


@dataclass(frozen=True)
class Tuning:
    """How a search stands.

    Args:
        study: the file.
        metric: the validation score: accuracy or map.
        searched: the fields.
        stopped: whether this command was stopped before the end.
        trials: in the order in which they began.
    """

    study: Path
    metric: str
    searched: tuple[Searched, ...]
    stopped: bool
    trials: tuple[Trial, ...]

    @property
    def ranked(self) -> list[Trial]:
        """The finished trials that were runs of their own, the best first."""
        done = [t for t in self.trials if t.state == "finished" and t.score is not None and not t.same_as]
        return sorted(done, key=lambda t: -(t.score or 0.0))

    @property
    def best(self) -> Trial | None:
        """The finished trial with the highest score."""
        return next(iter(self.ranked), None)


def tune(
    data: str | Path | RunSpec,
    *,
    network: str | None = None,
    settings: Settings | None = None,
    search: Sequence[str] = (),
    trials: int = TRIALS,
    jobs: int = 1,
    study: str | Path | None = None,
    voice: Voice | None = None,
) -> Tuning:
    """Search for the settings with the best validation score, or go on with such a search.

    Args:
        data: whatever `train` takes, or a complete RunSpec.
        network: a zoo name or another library's; default: the default recipe's.
        settings: section -> field -> value, the same in all trials: {"train": {"epochs": 5}}.
        search: fields by name with their values: "lr=1e-3..1:log", "batch_size=32..256:step32",
            "optimizer=sgd,adamw"; none: lr, weight_decay and label_smoothing.
        trials: how many in all, those of earlier calls included.
        jobs: processes, a trial each at a time; more calls on the same study work at it too.
        study: the SQLite file, ending in .db; default: runs/tune-DATA-NETWORK.db. Runs lie in the folder of that
            name without its ending.
        voice: who is told how it goes; several processes print their lines instead. Default: nobody.

    Returns:
        The trials; `best` is one of them. `stopped` after Ctrl-C: the same call then goes on.

    Raises:
        InputError: data, settings, search or study cannot be used, or all trials failed.

    Example:
        >>> skipway.tune("photos", search=["lr=0.01..1:log"], trials=10).best  # doctest: +SKIP
    """
    order = _order(asked_spec(data, network=network, settings=settings), settings or {}, search, trials, study)
    if jobs < 1:
        raise InputError(f"--jobs must be at least 1, got {jobs}")
    with opened(order):
        pass  # which refuses what cannot be gone on with
    stopped = work(order, voice or Voice()) if jobs == 1 else _crew(order, jobs)
    result = _result(order, stopped=stopped)
    failed = [trial for trial in result.trials if trial.state == "failed"]
    if not stopped and failed and len(failed) == len(result.trials):
        raise InputError(f"all {len(failed)} trials failed; {failed[0].run}: {failed[0].reason}")
    return result


def _order(asked: RunSpec, settings: Settings, search: Sequence[str], trials: int, study: str | Path | None) -> Order:
    """Everything is looked at before the first trial."""
    optuna()
    if trials < 1:
        raise InputError(f"--trials must be at least 1, got {trials}")
    file = Path(study) if study else BASE / f"tune-{run_stem(asked.data.path, asked.network.name)}.db"
    if file.suffix != ".db" or set("?{}#%") & set(str(file)):
        raise InputError(f"a study is a file that ends in .db, without any of ? {{ }} # % in its path; got {file}")
    if study and not file.parent.is_dir():
        raise InputError(f"no such folder: {file.parent}")
    plan = make_plan(asked)
    searched = parse(search, asked) or usual(plan.spec)
    for choice in (c for field in searched if field.name == "network" for c in field.choices):
        trust(asked_spec(asked, network=str(choice)).network)
    metric = "map" if is_multilabel(plan.source) else "accuracy"
    own = {key: value for key, value in settings.get("network", {}).items() if key != "name"}
    order = Order(asked, plan.spec, searched, own, file, trials, metric, data_facts(plan))
    if not file.exists():
        if order.folder.exists() and any(order.folder.glob("trial-*")):
            raise InputError(
                f"{order.folder} holds the trials of a study that is gone ({file}); choose another --study"
            )
        find_place(plan.spec, order.folder / "trial-0")  # which refuses a place that cannot be written
    return order


def _crew(order: Order, jobs: int) -> bool:
    """Processes that each do `work`. Returns whether they were stopped. Ctrl-C reaches this process alone, which
    passes it on once."""
    context = multiprocessing.get_context("spawn")
    share = max(1, cores() // jobs)

    def start(number: int) -> Any:
        made = context.Process(target=_member, args=(order, share, number), daemon=False)
        made.start()
        return made

    with Stops() as stop:
        crew, spare, told = [start(number) for number in range(jobs)], 2 * jobs + 2, False
        try:
            while any(member.is_alive() for member in crew):
                time.sleep(0.1)
                if stop.why and not told:
                    told = True
                    for member in crew:
                        member.terminate()
                for number, member in enumerate(crew):
                    if member.exitcode not in (None, 0, 75) and not stop.why and spare:
                        crew[number], spare = start(number), spare - 1
        finally:
            for member in crew:
                member.kill()
                member.join()
        if not spare:
            raise InputError("the processes of the search died again and again; out of memory? Try fewer --jobs")
    return bool(stop.why) or any(member.exitcode == 75 for member in crew)


def _member(order: Order, threads: int, number: int) -> None:
    """One process of several: its share of the cores, and a card of its own where there are several."""
    if hasattr(os, "setsid"):
        os.setsid()
    torch.set_num_threads(threads)
    if (cards := torch.cuda.device_count()) > 1 and order.spec.train.device == "auto":
        torch.cuda.set_device(number % cards)
    console = Console(emoji=False, stderr=True)
    stopped = work(order, Voice(partial(console.print, markup=False, highlight=False, soft_wrap=True)))
    sys.exit(75 if stopped else 0)


def _result(order: Order, *, stopped: bool) -> Tuning:
    with opened(order) as study:
        trials = []
        for trial in last_of_each(study):
            told, state = trial.user_attrs, STATES[trial.state]
            run = str(order.folder / told.get("run", f"trial-{trial.number}"))
            reason = told.get("reason", "its process died again and again") if state == "failed" else ""
            same = str(order.folder / told["same_as"]) if "same_as" in told else ""
            score = told.get("best", trial.value)
            done = told.get("epochs", len(trial.intermediate_values))
            trials.append(Trial(run, state, score, done, dict(trial.params), reason, same))
    return Tuning(order.file, order.metric, order.searched, stopped, tuple(trials))
