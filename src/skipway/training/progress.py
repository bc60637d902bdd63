"""What a person sees while a network trains: bars, speed, time left, loss, the best so far."""

import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from skipway.evaluation.task import OneLabel, Task


class View:
    """The live view of one run. On a terminal two bars move; elsewhere each epoch is one line.

    Args:
        title: what is trained.
        epochs: how many in all.
        steps: how many an epoch.
        notes: what was chosen, said once.
        done: epochs that earlier runs of the command did.
        console: where to show it.
        task: whose scores an epoch has.
    """

    def __init__(
        self,
        title: str,
        *,
        epochs: int,
        steps: int,
        notes: Sequence[str],
        done: int,
        console: Console | None = None,
        task: Task | None = None,
    ):
        self.console, self.task = console or Console(emoji=False), task or OneLabel()
        self.epochs, self.steps, self.done = epochs, steps, done
        self._bars = Progress(
            TextColumn("{task.description:>16}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[info]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._shown = 0.0
        self.say(title, style="bold")
        for note in notes:
            self.say(f"  {note}", style="dim")

    def __enter__(self) -> "View":
        self._bars.start()
        info = {"info": ""}
        self._run = self._bars.add_task("run", total=self.epochs * self.steps, completed=self.done * self.steps, **info)
        self._epoch = self._bars.add_task("", total=self.steps, **info)
        train, val = self.task.train_title, self.task.title
        header = f"{'train loss':>10} {train:>9}  {'val loss':>9} {val:>9}  {'images/s':>9} {'time':>7}"
        self.say(f"{'epoch':>7}  {header}", style="bold")
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, text: str, *, style: str = "") -> None:
        """A line that stays."""
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def start_epoch(self, epoch: int) -> None:
        """An epoch begins (counted from 1)."""
        self._bars.reset(self._epoch, total=self.steps, description=f"epoch {epoch}/{self.epochs}", info="")

    def step(self, loss: Tensor, images_per_s: float) -> None:
        """A step is done. The loss is fetched from the device four times a second at most."""
        self._bars.advance(self._run)
        self._bars.advance(self._epoch)
        now = time.monotonic()
        if not self._bars.disable and now - self._shown > 0.25:
            self._shown = now
            self._bars.update(self._epoch, info=f"loss {loss.item():.3f}  {images_per_s:,.0f} images/s")

    def end_epoch(self, row: dict[str, Any], best_score: float, *, is_best: bool) -> None:
        """An epoch is done; `row` as in metrics.jsonl."""
        train, val = row[f"train_{self.task.train_name}"], row[f"val_{self.task.name}"]
        text = (
            f"{row['epoch']:>3}/{self.epochs:<3}  {row['train_loss']:>10.4f} {train:>9.2%}  "
            f"{row['val_loss']:>9.4f} {val:>9.2%}  {row['images_per_s']:>9,.0f} {row['time_s']:>6.1f}s"
        )
        self.say(text + ("  best" if is_best else ""), style="green" if is_best else "")
        self._bars.update(self._run, info=f"best {best_score:.2%}")


class StopRequested(Exception):
    """Raised between two steps after Ctrl-C or SIGTERM."""


class StopSignals:
    """While open, the first SIGINT or SIGTERM asks for a stop between two steps; a second one ends at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def check(self) -> None:
        """Raise StopRequested if a stop was asked for."""
        if self.requested:
            raise StopRequested
