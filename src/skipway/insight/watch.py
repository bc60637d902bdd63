"""How long work is watched and stopped: progress, partial results, cancelling, a time limit."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any


class Cancelled(Exception):
    """The work was stopped from outside; what it had told until then stands."""


@dataclass(frozen=True)
class Watch:
    """What work tells and asks while it goes on.

    Args:
        on_progress: told the share that is done, in [0, 1].
        on_partial: told a result of what is done so far, of the experiment's own kind.
        cancelled: asked often; True stops the work.
        deadline: of time.monotonic(), after which work that can end early does, with what it has.
    """

    on_progress: Callable[[float], None] = lambda share: None
    on_partial: Callable[[Any], None] = lambda result: None
    cancelled: Callable[[], bool] = lambda: False
    deadline: float = field(default=float("inf"))

    def tell(self, share: float) -> None:
        """Say how much is done. Raises Cancelled."""
        self.on_progress(share)
        if self.cancelled():
            raise Cancelled

    def partial(self, result: Any) -> None:
        """Hand out what there is so far."""
        self.on_partial(result)

    @property
    def late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self.deadline

    def part(self, start: float, end: float) -> "Watch":
        """The watch of a part of the work, from one share of it to another."""
        return replace(self, on_progress=lambda share: self.on_progress(start + share * (end - start)))


QUIET = Watch()
