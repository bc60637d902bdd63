"""TensorBoard, MLflow and W&B beside the built-in JSON lines: three ways to look at the same numbers.

A tracker keeps its files in the run folder and never asks the network for anything. The JSON lines are the truth: a
tracker is told of an epoch once, after its checkpoint, and trackers.json says up to which one; a run that goes on
tells it what it missed. One that fails is named and left, and the run goes on.
"""

import contextlib
import importlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from skipway.errors import InputError
from skipway.run import Run
from skipway.training.tracker_files import KINDS, Tracker

NAME = "trackers.json"
NEEDS = {
    "tensorboard": ("tensorboard", "torch.utils.tensorboard"),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "wandb": ("wandb",),
}
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}  # both would call home
LOGGERS = ("mlflow", "alembic", "wandb")


class Trackers:
    """All that a run reports to. Methods say which tracker failed, a sentence each; it hears no more of the run."""

    def __init__(self, run: Run, opened: Mapping[str, Tracker], epochs: Mapping[str, int]):
        self.run = run
        self._open = dict(opened)
        self._epochs = dict(epochs)  # the last one that each was told of
        self._ids = {name: tracker.id for name, tracker in opened.items()}
        self._names: set[str] = set()
        self._step = 0

    def epoch(self, steps: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> list[str]:
        """An epoch whose checkpoint is written.

        Args:
            steps: its rows of steps.jsonl.
            row: its row of metrics.jsonl; its values stand at its last step.
        """
        rows = [(step["step"], _numbers(step, without=("epoch", "step"))) for step in steps]
        self._step = rows[-1][0] if rows else self._step
        rows = [*rows[:-1], (self._step, _numbers(row) | (rows[-1][1] if rows else {}))]
        self._names |= set(rows[-1][1])

        def log(name: str, tracker: Tracker) -> None:
            if row["epoch"] > self._epochs[name]:
                self._epochs[name] = row["epoch"]
                self._write()  # before: what is cut off here is missing there, and not there twice
                tracker.log(rows)

        return self._each(log)

    def finish(self, summary: Mapping[str, Any]) -> list[str]:
        """The end of training, or where it was stopped. `summary` as in summary.json; the curves are drawn."""
        values = {name: value for name, value in _numbers(summary).items() if name not in self._names}
        picture = self.run.folder / "curves.png"
        rows, drawn = [(self._step, values)], picture if picture.is_file() else None
        failed = self._each(lambda _, tracker: tracker.finish(summary["status"], rows, drawn))
        self._open.clear()
        return failed

    def close(self) -> None:
        """The end where something went wrong; after `finish` there is nothing to do."""
        self.finish({"status": "failed"})

    def catch_up(self) -> list[str]:
        """Tell of the epochs in the JSON lines that were not told yet."""
        failed, steps = [], self.run.steps()
        for row in self.run.metrics():
            failed += self.epoch([step for step in steps if step["epoch"] == row["epoch"]], row)
        return failed

    def _each(self, tell: Callable[[str, Tracker], None]) -> list[str]:
        failed = []
        for name, tracker in list(self._open.items()):
            try:
                with _quiet():
                    tell(name, tracker)
            except Exception as error:  # whatever the library does: a disk that is full, ...
                del self._open[name]
                failed.append(_failed(name, error))
        return failed

    def _write(self) -> None:
        state = {name: {"id": self._ids[name], "epoch": epoch} for name, epoch in self._epochs.items()}
        self.run.write_text(NAME, json.dumps(state, indent=1))


def need_trackers(names: Sequence[str]) -> None:
    """Import what trackers are made of.

    Raises:
        InputError: a library is missing; the message has the command that installs it.
    """
    os.environ.update(QUIET)
    for name in dict.fromkeys(names):
        try:
            with _quiet():
                for module in NEEDS[name]:
                    importlib.import_module(module)
        except ImportError as error:
            raise InputError(f"--track {name} needs {error.name or name}: pip install 'skipway[{name}]'") from error


def open_trackers(names: Sequence[str], run: Run, *, resume: bool) -> tuple[Trackers, list[str]]:
    """Begin the records of a run, or go on with them.

    Args:
        names: out of train_spec.TRACKERS.
        run: its folder holds the first checkpoint, and no records of epochs without one.
        resume: go on where there are records.

    Returns:
        The trackers, and which of them could not be opened, a sentence each.

    Raises:
        InputError: a library is missing, or trackers.json is damaged.
    """
    need_trackers(names)
    known = _read(run) if resume else {}
    opened: dict[str, Tracker] = {}
    failed = []
    for name in dict.fromkeys(names):
        try:
            with _quiet():
                opened[name] = KINDS[name](run, known[name]["id"] if name in known else "")
        except Exception as error:  # whatever the library does
            failed.append(_failed(name, error))
    epochs = {name: known[name]["epoch"] if name in known else 0 for name in opened}
    made = Trackers(run, opened, epochs)
    if opened:
        made._write()
    return made, failed + made.catch_up()


def _read(run: Run) -> dict[str, Any]:
    path = run.folder / NAME
    if not path.exists():
        return {}
    try:
        state = json.loads(run.read_text(NAME))
        return {name: {"id": str(state[name]["id"]), "epoch": int(state[name]["epoch"])} for name in state}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error!r}; without it trackers begin anew") from error


def _failed(name: str, error: Exception) -> str:
    said = " ".join(str(error).split())[:200]
    return f"{name} failed and is left out from here on: {type(error).__name__}: {said}"


def _numbers(row: Mapping[str, Any], without: Sequence[str] = ()) -> dict[str, float]:
    """The numbers of a row by their names; null is no number."""
    numbers = {name: value for name, value in row.items() if type(value) in (int, float)}
    return {name: float(value) for name, value in numbers.items() if name not in without}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no chatter of the libraries."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
