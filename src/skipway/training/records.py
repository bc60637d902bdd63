"""The epoch under way: its losses, rates and counts, and the lines of steps.jsonl they become."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from skipway.run import Run
from skipway.training.checkpoint import Position
from skipway.training.step import Update
from skipway.training.world import ALONE, World


@dataclass
class Records:
    """What is known of an epoch so far.

    Args:
        run: whose steps.jsonl the steps go to.
        world: the processes that have parts of each step; the first one writes.
        first_step: of the epoch, over the whole run, from 0.
        epoch: counted from 1.
        batches: used so far.
        rows: the steps that are written.
        fresh: of updates that are not: loss, rate, this process's share of the batch.
        right: () images that were right, of those seen.
        seen: how many.
        seconds: before this process went on with it.
    """

    run: Run
    world: World
    first_step: int
    epoch: int
    batches: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    fresh: list[tuple[Tensor, float, float]] = field(default_factory=list)
    right: Tensor | float = 0.0
    seen: int = 0
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Updates so far."""
        return len(self.rows) + len(self.fresh)

    def add(self, update: Update, share: float = 1.0) -> None:
        """One update more, and this process's share of it."""
        self.fresh.append((update.loss, update.lr, share))
        self.right = self.right + update.right
        self.seen += update.seen

    def write(self) -> list[dict[str, Any]]:
        """Bring the fresh steps to steps.jsonl, which waits for the device and the other processes. Returns them."""
        if not self.fresh:
            return []
        losses = torch.stack([loss for loss, _, _ in self.fresh])
        if self.world.size > 1:
            losses = self.world.total(losses.cpu() * torch.tensor([share for _, _, share in self.fresh]))
        first = self.first_step + len(self.rows)
        new = [
            {"epoch": self.epoch, "step": first + i, "loss": loss, "lr": lr}
            for i, (loss, (_, lr, _)) in enumerate(zip(losses.tolist(), self.fresh, strict=True), 1)
        ]
        if self.world.is_first:
            self.run.append_lines("steps.jsonl", new)
        self.rows += new
        self.fresh = []
        return new

    def counts(self) -> tuple[float, int]:
        """How many images were right, and of how many, over all processes."""
        right, seen = self.world.total(torch.tensor([float(self.right), self.seen], dtype=torch.float64)).tolist()
        return right, int(seen)

    def position(self, before: Position, *, seconds: float) -> Position:
        """Where the run stands within the epoch; `seconds`: spent in it by this process."""
        right, seen = self.counts()
        now = replace(before, batches=self.batches, steps=len(self.rows), right=right, seen=seen)
        return replace(now, seconds=self.seconds + seconds)

    @property
    def last_loss(self) -> Tensor | None:
        """Of the last update, where it has not been fetched from the device yet."""
        return self.fresh[-1][0] if self.fresh else None

    @property
    def losses(self) -> list[float]:
        """Of the steps that are written."""
        return [row["loss"] for row in self.rows]


def begin(run: Run, position: Position, steps_per_epoch: int, world: World = ALONE) -> Records:
    """The records of the epoch that a position lies in, with the steps that were made of it.

    Lines of steps and epochs that did not reach the checkpoint are dropped from the files.
    """
    epoch, first = position.epoch + 1, position.epoch * steps_per_epoch

    def kept() -> list[dict[str, Any]]:
        steps = [row for row in run.steps() if row["step"] <= first + position.steps]
        run.write_lines("steps.jsonl", steps)
        run.write_lines("metrics.jsonl", [row for row in run.metrics() if row["epoch"] <= position.epoch])
        return [row for row in steps if row["epoch"] == epoch]

    made = world.first_does(kept)
    right, seen = (position.right, position.seen) if world.is_first else (0.0, 0)
    return Records(run, world, first, epoch, position.batches, made, [], right, seen, position.seconds)
