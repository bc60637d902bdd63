"""From a plan to its loader: images that are decoded once, with a bar meanwhile and a question before a large cache."""

import sys
import time
from collections.abc import Iterable, Iterator

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.prompt import Confirm
from torch import Tensor

from skipway.data.augmentation.crop import source_size
from skipway.data.loader import Batch, Loader, make_loader
from skipway.data.preprocess import Preprocess, normalised, scored_size
from skipway.errors import InputError
from skipway.training.plan import Plan

SLOW = 0.25  # share of an epoch's time from which waiting for images is worth a word


def open_loaders(plan: Plan, preprocess: Preprocess, console: Console) -> tuple[Loader, Loader]:
    """The loaders of training images and of all others; what is asked for in every epoch is kept, where that can be.

    They are one and the same, but where random crops are cut out of training images that are larger, and where
    the network is scored at a size of its own.

    Args:
        plan: whose source and settings.
        preprocess: whose fit applies.
        console: where to show progress, and to ask.

    Raises:
        InputError: a cache was asked for and cannot be made.
    """
    train, val = plan.splits.train, plan.splits.val
    scored = preprocess.resized(scored_size(plan.spec.data))
    held = source_size(plan.spec.augment, plan.source.size, plan.spec.data.image_size)
    if held == scored.image_size:
        loader = _open(plan, scored, console, torch.cat([train, val]))
        return loader, loader
    others = _open(plan, scored, console, val)
    larger = _open(plan, preprocess.resized(held), console, train)
    others.bad.update(larger.bad)
    larger.bad = others.bad  # one list of what could not be read
    return larger, others


def _open(plan: Plan, preprocess: Preprocess, console: Console, again_and_again: Tensor) -> Loader:
    """One loader, and a bar while it decodes."""
    columns = (TextColumn("decoding"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("decoding", total=None)

        def ask(question: str) -> bool:
            bar.stop()
            answer = Confirm.ask(question, console=console, default=True)
            bar.start()
            return answer

        return make_loader(
            plan.source,
            preprocess,
            plan.spec.data,
            wanted=again_and_again if plan.spec.train.epochs > 1 else None,
            confirm=ask if console.is_terminal and sys.stdin.isatty() else None,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def settle_preprocess(plan: Plan, loader: Loader) -> tuple[Preprocess, list[str]]:
    """The preprocessing of a new run, and a sentence where its normalisation was not measured.

    Args:
        plan: whose spec, and whose given weights.
        loader: of training images, which may be larger than the network's.
    """
    given = plan.given.normalisation if plan.given else None
    settled, said = normalised(loader, plan.splits.train, plan.spec.data, given)
    return settled.resized(scored_size(plan.spec.data)), [said] if said else []


class Waiting:
    """How long training waits for its images; said once, where it is a good part of the time."""

    def __init__(self) -> None:
        self.seconds, self._epochs, self._said = 0.0, 0, False

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches."""
        left = iter(batches)
        while True:
            started = time.perf_counter()
            batch = next(left, None)
            self.seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def notes(self, trained: float, loader: Loader) -> list[str]:
        """What is to be said after an epoch.

        Args:
            trained: seconds of its steps.
            loader: whose images they were.
        """
        share, self.seconds = self.seconds / max(trained, 1e-9), 0.0
        self._epochs += 1
        if share < SLOW or self._epochs == 1 or self._said:  # in the first, processes that read start
            return []
        self._said = True
        way_out = "" if loader.in_memory else "; --cache on decodes them once, more --workers use more processor cores"
        return [f"{share:.0%} of the epoch's time went by waiting for images{way_out}"]


def in_step(batches: Iterable[Batch], count: int, *, least: int, together: bool) -> Iterator[tuple[int, Batch | None]]:
    """So many numbers from 0 on, each with its batch; None where there is nothing to learn from in it.

    Args:
        batches: those with images that could be read.
        count: how many there should be.
        least: images without which a batch teaches nothing: batch norm needs two where others of it were unreadable.
        together: other processes wait at each of them, so that there must be something in all: then a batch comes
            again in place of one without images.

    Raises:
        InputError: not one batch has images.
    """
    left, last = iter(batches), None
    ahead = next(left, None)
    for number in range(count):
        if ahead is not None and ahead.number == number:
            enough = together or len(ahead.labels) >= least
            last = ahead
            yield number, ahead if enough else None
            ahead = next(left, None)
        elif not together:
            yield number, None
        elif last is None and ahead is None:
            raise InputError("none of the training images of this process can be read")
        else:
            yield number, ahead or last
