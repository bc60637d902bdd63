"""One trial of a search after another, each an ordinary run; what a process of `skipway tune` does."""

import io
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from skipway.errors import InputError
from skipway.run import Run
from skipway.training.loop import Hooks
from skipway.training.progress import StopRequested, Stops
from skipway.training.study import Claimed, Order, claim, last_of_each, opened, put_back, settle
from skipway.training.train import train

STATES = {0: "running", 1: "finished", 2: "pruned", 3: "failed", 4: "waiting"}  # Optuna's numbers


@dataclass(frozen=True)
class Voice:
    """Who is told: a line for each trial that ended, and what is going on."""

    line: Callable[[str], None] = lambda _: None
    now: Callable[[str], None] = lambda _: None


def work(order: Order, voice: Voice) -> bool:
    """Do trials until there are as many as were asked for. Returns whether it was stopped before."""
    with opened(order) as study, Stops(order.spec.safety.max_minutes) as stop:
        try:
            while not stop.asked() and (claimed := claim(study, order)) is not None:
                if _known(study, order, claimed):
                    continue
                if not _try(study, order, claimed, voice, stop.minutes_left):
                    return True
        except KeyboardInterrupt:
            return True
        return bool(stop.why)


def _known(study: Any, order: Order, claimed: Claimed) -> bool:
    """Whether these values were tried before, with the same outcome: a run is a function of its settings."""
    for other in last_of_each(study):
        told = other.user_attrs
        if other.params != claimed.trial.params or not other.state.is_finished() or "same_as" in told:
            continue
        score = other.value if STATES[other.state] == "finished" else None
        reason = "pruned" if STATES[other.state] == "pruned" else told.get("reason", "")
        settle(study, order, claimed, score, reason, {"same_as": told["run"]})
        return True
    return False


def _try(study: Any, order: Order, claimed: Claimed, voice: Voice, minutes: float) -> bool:
    """Train a trial's run, new or begun, for so long (0: no limit). Returns False where this process is to stop."""
    epochs = _Epochs(order, claimed, voice)
    folder = order.folder / claimed.run
    try:
        voice.now(f"{claimed.run}  {in_words(claimed.trial.params)}")
        spec = order.spec_of(claimed.trial.params)
        if (folder / "spec.toml").is_file():
            epochs.catch_up(Run(folder).metrics())
        quiet = Console(file=io.StringIO())
        hooks = Hooks(epochs, score_test=False, max_minutes=minutes)
        run = train(spec, out=folder, console=quiet, trust_code=True, hooks=hooks)
        if not epochs.pruned and not run.finished:
            put_back(study, order, claimed)
            return False
        epochs.catch_up(run.metrics())
    except StopRequested:  # raised by `epochs`
        pass
    except (InputError, torch.OutOfMemoryError) as error:
        reason = " ".join(str(error).split())[:500]
        settle(study, order, claimed, None, reason, {})
        voice.line(f"{claimed.run:<10}  failed: {reason}")
        return True
    except KeyboardInterrupt:
        put_back(study, order, claimed)
        return False
    best = max(epochs.scores.values())
    score, reason = (None, "pruned") if epochs.pruned else (best, "")
    settle(study, order, claimed, score, reason, {"epochs": len(epochs.scores), "best": best})
    ending = f"pruned after {len(epochs.scores)} of {spec.train.epochs} epochs" if epochs.pruned else ""
    voice.line(f"{claimed.run:<10}  {best:>7.2%}  {in_words(claimed.trial.params)}  {ending}".rstrip())
    return True


class _Epochs:
    """Hears of each epoch of a trial, tells the study, and ends a run whose score is below the median of the others'.

    Attributes:
        scores: epoch -> validation score.
        pruned: whether the run was ended.
    """

    def __init__(self, order: Order, claimed: Claimed, voice: Voice):
        self.order, self.trial, self.run, self.voice = order, claimed.trial, claimed.run, voice
        self.scores: dict[int, float] = {}
        self.pruned = False
        self.parent = os.getppid()

    def __call__(self, row: dict[str, Any]) -> None:
        """`row` as in metrics.jsonl. Raises StopRequested where the run is to end."""
        self.catch_up([row])
        epochs = self.trial.params.get("epochs", self.order.resolved.train.epochs)
        at = f"epoch {row['epoch']}/{epochs}, {self.scores[row['epoch']]:.2%}"
        self.voice.now(f"{self.run}  {in_words(self.trial.params)}  {at}")
        if row["epoch"] < epochs and self.trial.should_prune():
            self.pruned = True
            raise StopRequested
        if multiprocessing.parent_process() is not None and os.getppid() != self.parent:
            raise KeyboardInterrupt  # nobody waits for this process any more

    def catch_up(self, rows: Sequence[dict[str, Any]]) -> None:
        """Epochs that are done; those told before are passed over."""
        for row in rows:
            if row["epoch"] not in self.scores:
                self.scores[row["epoch"]] = row[f"val_{self.order.metric}"]
                self.trial.report(self.scores[row["epoch"]], row["epoch"])


def in_words(values: Mapping[str, Any]) -> str:
    """Searched values in a line: `lr 0.0312  optimizer sgd`."""
    return "  ".join(
        f"{name} {value:.3g}" if type(value) is float else f"{name} {value}" for name, value in values.items()
    )
