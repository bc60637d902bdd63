"""What an experiment is: one function from a subject to plain data, a picture of it, and what it says in words.

Each experiment is a file that ends with an `EXPERIMENT`; experiments.py lists them. Results are frozen dataclasses of
numbers, words and tuples, kept by (weights, images, settings), so that the same question is answered once.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch

from skipway import __version__
from skipway.cache import cache_folder, sweep, written_beside
from skipway.insight.plain import from_plain, to_text
from skipway.insight.subject import Subject
from skipway.insight.watch import QUIET, Watch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

S = TypeVar("S")
R = TypeVar("R")
Asked = TypeVar("Asked", contravariant=True)
Found = TypeVar("Found", covariant=True)


class Doing(Protocol[Asked, Found]):
    """What an experiment does: (subject, settings, watch=watch) -> result."""

    def __call__(self, subject: Subject, settings: Asked, /, *, watch: Watch) -> Found: ...  # noqa: D102


@dataclass(frozen=True)
class Reading:
    """What a result says.

    Args:
        sentences: in plain language, with the numbers.
        verdict: of the paper's claim by this network: "agrees", "disagrees", or "open" where it cannot be said.
    """

    sentences: tuple[str, ...]
    verdict: str


@dataclass(frozen=True)
class Experiment(Generic[S, R]):
    """One question to a network.

    Args:
        name: of the experiment and its file: "lesion".
        title: of its picture.
        paper: whose figure it is.
        claim: what the paper says, in a sentence.
        settings: the defaults; a frozen dataclass of plain values.
        result: the class of its results.
        run: (subject, settings, watch=watch) -> result; asks the watch often, hands out partial results.
        draw: result -> figure.
        read: result -> reading.
        fit: (pace, seconds) -> settings that take about so long at most, or None where it cannot be done in that
            time, or not with this network.
    """

    name: str
    title: str
    paper: str
    claim: str
    settings: S
    result: type[R]
    run: Doing[S, R]
    draw: Callable[[R], "Figure"]
    read: Callable[[R], Reading]
    fit: Callable[["Pace", float], "S | None"]


class Pace:
    """How fast a subject goes here, measured when first asked.

    Attributes:
        subject: whose.
    """

    def __init__(self, subject: Subject):
        self.subject = subject

    @cached_property
    def forward_s(self) -> float:
        """Seconds a forward pass takes for one image, in batches of up to 100; rounded up to a power of two.

        So the settings that fit a budget are the same the next time, and what was found is found again.
        """
        x = self.subject.seen.inputs[:100]
        with torch.no_grad():
            self.subject.network(x[:10])
            start = time.perf_counter()
            self.subject.network(x)
        return 2.0 ** math.ceil(math.log2((time.perf_counter() - start) / len(x)))

    @property
    def step_s(self) -> float:
        """Seconds forward and backward take for one image, about."""
        return 3 * self.forward_s


def perform(experiment: Experiment[S, R], subject: Subject, settings: S | None = None, *, watch: Watch = QUIET) -> R:
    """An experiment's result, from the cache where it was answered before.

    Args:
        experiment, subject: the question, and to whom.
        settings: default: the experiment's own.
        watch: progress, partial results, cancelling.

    Raises:
        InputError: it cannot be asked of this network.
        Cancelled: the watch said so.
    """
    settings = experiment.settings if settings is None else settings
    place = _place(experiment, subject, settings)
    kept = _kept(place, experiment.result)
    if kept is not None:
        watch.tell(1.0)
        return kept
    result = experiment.run(subject, settings, watch=watch)
    if not watch.late:  # what was cut short by time is not the answer
        try:
            sweep(place.parent)
            with written_beside(place) as beside:
                beside.write_text(to_text(result))
        except OSError:
            pass  # it is made again the next time
    return result


def _place(experiment: Experiment, subject: Subject, settings: Any) -> Path:
    key = "\0".join([experiment.name, __version__, to_text(settings), subject.fingerprint()])
    return cache_folder() / "insight" / f"{experiment.name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def _kept(place: Path, kind: type[R]) -> R | None:
    try:
        return from_plain(json.loads(place.read_text()), kind)
    except (OSError, ValueError, TypeError, KeyError):
        return None
