"""From a plan to its loader: images that are decoded once, with a bar meanwhile and a question before a large cache."""

import sys

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.prompt import Confirm
from torch import Tensor

from skipway.data.augmentation.crop import source_size
from skipway.data.loader import Loader, make_loader
from skipway.data.preprocess import Preprocess, normalised, scored_size
from skipway.training.plan import Plan


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
