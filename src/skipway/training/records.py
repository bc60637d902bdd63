"""The epoch under way: its losses, rates and counts, and the lines of steps.jsonl they become."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from skipway.run import Run
from skipway.training.checkpoint import Position
from skipway.training.step import Update


@dataclass
class Records:
    """What is known of an epoch so far.

    Args:
        run: whose steps.jsonl the steps go to.
        first_step: of the epoch, over the whole run, from 0.
        epoch: counted from 1.
        batches: used so far.
        rows: the steps that are written.
        fresh: updates that are not.
        right: () images that were right, of those seen.
        seen: how many.
        seconds: before this process went on with it.
    """

    run: Run
    first_step: int
    epoch: int
    batches: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    fresh: list[Update] = field(default_factory=list)
    right: Tensor | float = 0.0
    seen: int = 0
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Updates so far."""
        return len(self.rows) + len(self.fresh)

    def add(self, update: Update) -> None:
        """One update more."""
        self.fresh.append(update)
        self.right = self.right + update.right
        self.seen += update.seen

    def write(self) -> list[dict[str, Any]]:
        """Bring the fresh steps to steps.jsonl, which waits for the device. Returns them."""
        if not self.fresh:
            return []
        losses = torch.stack([update.loss for update in self.fresh]).tolist()
        first = self.first_step + len(self.rows)
        new = [
            {"epoch": self.epoch, "step": first + i, "loss": loss, "lr": update.lr}
            for i, (loss, update) in enumerate(zip(losses, self.fresh, strict=True), 1)
        ]
        self.run.append_lines("steps.jsonl", new)
        self.rows += new
        self.fresh = []
        return new

    def position(self, before: Position, *, seconds: float) -> Position:
        """Where the run stands within the epoch; `seconds`: spent in it by this process."""
        return replace(
            before,
            batches=self.batches,
            steps=len(self.rows),
            right=float(self.right),
            seen=self.seen,
            seconds=self.seconds + seconds,
        )

    @property
    def last_loss(self) -> Tensor | None:
        """Of the last update, where it has not been fetched from the device yet."""
        return self.fresh[-1].loss if self.fresh else None

    @property
    def losses(self) -> list[float]:
        """Of the steps that are written."""
        return [row["loss"] for row in self.rows]


def begin(run: Run, position: Position, steps_per_epoch: int) -> Records:
    """The records of the epoch that a position lies in, with the steps that were made of it.

    Lines of steps and epochs that did not reach the checkpoint are dropped from the files.
    """
    epoch, first = position.epoch + 1, position.epoch * steps_per_epoch
    steps = [row for row in run.steps() if row["step"] <= first + position.steps]
    run.write_lines("steps.jsonl", steps)
    run.write_lines("metrics.jsonl", [row for row in run.metrics() if row["epoch"] <= position.epoch])
    made = [row for row in steps if row["epoch"] == epoch]
    return Records(run, first, epoch, position.batches, made, [], position.right, position.seen, position.seconds)
