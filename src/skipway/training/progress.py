"""What a person sees while a network trains: bars, speed, time left, loss, the best so far."""

import itertools
import math
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from skipway.evaluation.task import OneLabel, Task
from skipway.training.world import ALONE, World


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

    def start_epoch(self, epoch: int, *, done: int = 0) -> None:
        """An epoch begins (counted from 1), or goes on after so many of its steps."""
        self._bars.reset(self._epoch, total=self.steps, description=f"epoch {epoch}/{self.epochs}", info="")
        self._bars.advance(self._run, done)
        self._bars.advance(self._epoch, done)

    def step(self, loss: Tensor | None, images_per_s: float) -> None:
        """A step is done. The loss is fetched from the device four times a second at most."""
        self._bars.advance(self._run)
        self._bars.advance(self._epoch)
        now = time.monotonic()
        if not self._bars.disable and now - self._shown > 0.25:
            self._shown = now
            shown = "" if loss is None else f"loss {loss.item():.3f}  "
            self._bars.update(self._epoch, info=f"{shown}{images_per_s:,.0f} images/s")

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
    """Raised between two batches after a signal, or when the time is up; says which."""


SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")  # Ctrl-C; what ends a process; what SLURM is asked to send before its limit
T = TypeVar("T")


class Stops:
    """While open, the first signal asks for a stop between two batches, and so does the clock.

    A second signal ends at once.

    Args:
        max_minutes: from now on; 0: no limit.
    """

    def __init__(self, max_minutes: float = 0.0) -> None:
        self.why = ""
        self._until = time.monotonic() + 60 * max_minutes if max_minutes else math.inf
        self._limit = f"--max-minutes {max_minutes:g}"
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stops":
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.why:
            raise KeyboardInterrupt
        self.why = signal.Signals(number).name

    @property
    def minutes_left(self) -> float:
        """Until the time is up, a moment at the least; 0: no limit."""
        return 0.0 if math.isinf(self._until) else max(self._until - time.monotonic(), 0.1) / 60

    def asked(self) -> bool:
        """Whether a stop was asked for."""
        if not self.why and time.monotonic() >= self._until:
            self.why = self._limit
        return bool(self.why)

    def watch(self, batches: Iterable[T], count: int, world: World = ALONE) -> Iterator[T]:
        """The same batches, until a stop is asked for in any of the processes, all of which have to watch.

        Args:
            batches: this process's, with those left out that cannot be read.
            count: how many there are at most.
            world: the processes, each of which has batches of its own.

        Raises:
            StopRequested: in all of them at the same batch.
        """
        left, own = world.agreed(count), iter(batches)
        while left > 0:
            if world.agreed(int(self.asked())):
                raise StopRequested(self.why or "as another process was asked to")
            left -= 1
            yield from itertools.islice(own, 1)
        yield from own
