"""Processes that work on untrusted files, each bounded in time and memory, and killed where it passes the bound.

Results come in the order of the tasks. A worker serves its tasks one by one over a pipe of its own (no lock is
shared, so killing one can never block another) and notes in shared memory which item it is at since when.
"""

import contextlib
import ctypes
import faulthandler
import gc
import itertools
import mmap
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch

TIME_LIMIT_S = 5.0
MEMORY_LIMIT = 1 << 30  # bytes beyond what a worker holds when it starts
_FORKS = sys.platform.startswith("linux")


@dataclass(frozen=True)
class Overrun:
    """What comes in place of a result: the item passed a bound, or ended its process."""

    reason: str


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_workers(asked: int) -> int:
    """-1: as many as there are cores, 8 at most."""
    return asked if asked >= 0 else min(cores(), 8)


class SharedArray:
    """An array of zeros that workers started later see and may write.

    Args:
        shape, dtype: of the array.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any):
        size = max(int(np.prod(shape)) * np.dtype(dtype).itemsize, 1)
        self._memory = mmap.mmap(-1, size) if _FORKS else _context().RawArray("b", size)
        self._shape, self._dtype = shape, dtype
        self.array = self._view()

    def _view(self) -> np.ndarray:
        return np.frombuffer(self._memory, self._dtype, int(np.prod(self._shape))).reshape(self._shape)

    def __getstate__(self) -> tuple[Any, ...]:  # a spawned worker gets the memory, not a copy of the array
        return self._memory, self._shape, self._dtype

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._memory, self._shape, self._dtype = state
        self.array = self._view()


@dataclass
class _Worker:
    """One process: its pipe, and the tasks it was sent and has not answered, oldest first."""

    process: Any
    pipe: Connection
    tasks: deque = field(default_factory=deque)  # (number, items, {position: Overrun})
    answers: dict[int, list[Any]] = field(default_factory=dict)


class Pool:
    """Workers for one job.

    Args:
        job: item -> result, both small enough to send; it runs in the workers.
        workers: how many processes; 0: in this one, unbounded.
        time_limit_s: what one item may take, by the clock.
        memory_limit: bytes that a worker may take beyond what it starts with.
    """

    def __init__(
        self,
        job: Callable[[Any], Any],
        *,
        workers: int,
        time_limit_s: float = TIME_LIMIT_S,
        memory_limit: int = MEMORY_LIMIT,
    ):
        self._job, self._time_limit_s, self._memory_limit = job, time_limit_s, memory_limit
        self._shared_clock = SharedArray((max(workers, 1), 2), np.float64)
        self._clock = self._shared_clock.array  # position of the item, when it began (0: idle)
        self._workers: list[_Worker | None] = [None] * workers
        self._numbers = itertools.count()
        self._deaths = 0  # one after the other, of workers that were at nothing

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def close(self) -> None:
        """End the workers."""
        for place, worker in enumerate(self._workers):
            if worker is not None:
                worker.pipe.close()
                worker.process.kill()
                worker.process.join(1)
                self._workers[place] = None

    def map(self, tasks: Iterable[Sequence[Any]], *, ahead: int = 8) -> Generator[list[Any], None, None]:
        """The results of each task, a list of items, in order.

        Args:
            tasks: lists of items; each list goes to one worker.
            ahead: how many tasks are under way beyond the one waited for.

        Yields:
            One result an item; an Overrun where it passed a bound.
        """
        if not self._workers:
            yield from ([self._job(item) for item in task] for task in tasks)
            return
        waiting: deque[tuple[int, int]] = deque()  # (worker, number), in order
        tasks = iter(tasks)
        try:
            while True:
                for task in itertools.islice(tasks, ahead + 1 - len(waiting)):
                    number = next(self._numbers)
                    place = number % len(self._workers)
                    self._send(place, (number, list(task), {}))
                    waiting.append((place, number))
                if not waiting:
                    return
                yield self._receive(*waiting.popleft())
        finally:
            for place, number in waiting:  # what was begun and is no longer wanted
                with contextlib.suppress(Exception):
                    self._receive(place, number)

    def _send(self, place: int, task: tuple[int, list[Any], dict[int, Overrun]]) -> None:
        worker = self._workers[place] or self._start(place)
        worker.tasks.append(task)
        with contextlib.suppress(OSError):  # it died: _receive starts another and sends again
            worker.pipe.send(task)

    def _receive(self, place: int, number: int) -> list[Any]:
        """The results of a task; a worker that hangs or died is replaced meanwhile."""
        while True:
            worker = self._workers[place]
            assert worker is not None
            if number in worker.answers:
                results = worker.answers.pop(number)
                if isinstance(results, Exception):
                    raise results
                return results
            if wait([worker.pipe], 0.2):
                try:
                    answered, results = worker.pipe.recv()
                    worker.tasks.popleft()
                    worker.answers[answered] = results
                    continue
                except (EOFError, OSError):
                    worker.process.join(1)
                    code = worker.process.exitcode
                    signalled = f" (signal {-code})" if code and code < 0 else ""
                    self._replace(place, f"ended its reader{signalled}")
            began = self._clock[place, 1]
            if began and time.monotonic() - began > self._time_limit_s:
                self._replace(place, f"took more than {self._time_limit_s:g} s to read")

    def _replace(self, place: int, reason: str) -> None:
        """Kill a worker and have another do what it owed, without the item it was at."""
        old = self._workers[place]
        assert old is not None
        old.process.kill()
        old.process.join(1)  # one that still dumps its memory need not be waited for
        old.pipe.close()
        position, began = int(self._clock[place, 0]), self._clock[place, 1]
        self._clock[place] = 0
        self._deaths = 0 if began else self._deaths + 1
        if self._deaths > 3:
            raise RuntimeError("the processes that read images end before they begin")
        new = self._start(place)
        new.answers = old.answers
        for number, items, known in list(old.tasks):
            if began and not new.tasks:  # the oldest is the one it was at
                known = {**known, position: Overrun(reason)}
            self._send(place, (number, items, known))

    def _start(self, place: int) -> _Worker:
        context = _context()
        ours, theirs = context.Pipe()
        siblings = [worker.pipe for worker in self._workers if worker is not None] if _FORKS else []
        inherited = [*siblings, ours] if _FORKS else []
        arguments = (theirs, inherited, self._job, self._shared_clock, place, self._memory_limit)
        process = context.Process(target=_work, args=arguments, daemon=True)
        if not any(self._workers):
            _give_back_freed_memory()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)  # workers call no threaded code
            process.start()
        theirs.close()
        worker = _Worker(process, ours)
        self._workers[place] = worker
        return worker


def _context() -> Any:
    return multiprocessing.get_context("fork" if _FORKS else "spawn")


def _work(
    pipe: Connection,
    inherited: list[Connection],
    job: Callable[[Any], Any],
    clocks: SharedArray,
    place: int,
    memory_limit: int,
) -> None:
    """A worker's life: tasks in, results out, until the pipe or the parent ends."""
    clock = clocks.array[place]
    for other in inherited:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _quieten()
    gc.freeze()  # what was there before is not looked at again, so its pages stay shared
    torch.set_num_threads(1)
    _limit_memory(memory_limit)
    while True:
        try:
            number, items, known = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        results: Any = []
        for position, item in enumerate(items):
            clock[:] = position, time.monotonic()
            try:
                results.append(known[position] if position in known else job(item))
            except MemoryError:
                results.append(Overrun(f"needs more than {memory_limit / 2**30:g} GiB to read"))
            except Exception as error:  # for the main process to raise
                results = error
                break
        clock[1] = 0
        pipe.send((number, results))


def _give_back_freed_memory() -> None:
    """So that workers don't inherit what this process freed: it would be copied when it is used again."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _quieten() -> None:
    """End with the parent; what C libraries print of broken files goes nowhere, since the caller names them."""
    faulthandler.disable()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _limit_memory(limit: int) -> None:
    """Let this process map so many bytes more than it does now."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (now + limit, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
