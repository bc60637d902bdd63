"""A training run to be killed: it marks what it is doing where its killer sees it, and notes each step as it is made."""

import hashlib
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import skipway
from skipway.data import keep
from skipway.evaluation import task
from skipway.nn.weight_files import read_safetensors
from skipway.training import checkpoint, loop
from skipway.training.checkpoint import Position
from skipway.training.loop import Trainer
from skipway.training.parts import read_parts
from skipway.training.step import Learner
from skipway.training.vault import Vault
from skipway.training.world import WorldError

PHASES = ("save", "validation", "resume", "step")
MARKED: list[tuple[Any, str, str]] = [
    (Trainer, "_save", "save"),
    (Vault, "write", "save"),
    (Trainer, "_validate", "validation"),
    (loop, "load_newest", "resume"),
    (loop, "begin", "resume"),
    (Learner, "update", "step"),
]
LOST = 7  # exit code of a process whose partner was killed


class Marks:
    """A byte for each phase in a file that two processes map."""

    def __init__(self, path: Path):
        if not path.exists():
            path.write_bytes(bytes(len(PHASES)))
        with path.open("r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), len(PHASES))

    def __getitem__(self, phase: str) -> bool:
        return self._bytes[PHASES.index(phase)] > 0

    def now(self) -> list[str]:
        """The phases under way."""
        return [phase for phase in PHASES if self[phase]]

    def clear(self) -> None:
        """None is."""
        self._bytes[:] = bytes(len(PHASES))

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """It is under way; it may be more than once at a time."""
        place = PHASES.index(phase)
        self._bytes[place] += 1
        try:
            yield
        finally:
            self._bytes[place] -= 1


@dataclass(frozen=True)
class Job:
    """A run.

    Args:
        data, out: as in skipway.train.
        settings: the same.
        marks, log: where it marks its phases, and notes its steps.
        slow_s: what each fsync takes more than it would; a batch of validation ten times that.
        streamed: images are read from their files in each epoch.
        forget: a part of the state that is not put back, to show that the check would notice.
        world: how many processes train together.
    """

    data: str
    out: str
    settings: dict[str, dict[str, Any]]
    marks: str
    log: str
    slow_s: float = 0.0
    streamed: bool = False
    forget: str = ""
    world: int = 1


def run(job: Job, rank: int = 0, port: int = 0) -> None:
    """Train, or go on; one process of `job.world`."""
    os.setsid()  # its workers die with it
    if job.world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job.world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    torch.set_num_threads(1)
    if rank == 0:
        marks = Marks(Path(job.marks))
        for holder, name, phase in MARKED:
            _mark(holder, name, marks, phase)
    if job.streamed:
        keep.IN_MEMORY = -1
    if job.slow_s:
        _slow_down(job.slow_s)
    if job.forget:
        _forget(job.forget)
    _note_steps(Path(job.log), rank)
    try:
        skipway.train(job.data, settings=job.settings, out=job.out, console=Console(file=sys.stdout))
    except WorldError:
        os._exit(LOST)  # another one was killed


def _slow_down(seconds: float) -> None:
    """A disk that takes its time, and validation, as of many images."""
    fsync, averaged = os.fsync, task.averaged

    def slowly(*arguments: Any) -> Any:
        time.sleep(10 * seconds)
        return averaged(*arguments)

    def slow(fd: Any) -> None:
        time.sleep(seconds)
        fsync(fd)

    os.fsync = slow
    task.averaged = slowly  # pyrefly: ignore[bad-assignment]


def _mark(holder: Any, name: str, marks: Marks, phase: str) -> None:
    own: Callable = getattr(holder, name)

    def marked(*arguments: Any, **named: Any) -> Any:
        with marks.during(phase):
            return own(*arguments, **named)

    setattr(holder, name, marked)


def _note_steps(log: Path, rank: int) -> None:
    """A line a step: number, process, loss, and the samples it was made of."""
    update = Learner.update

    def noted(self: Learner, batch: Any, epoch: int, step: int, **more: Any) -> Any:
        made = update(self, batch, epoch, step, **more)
        line = f"{step * 100 + rank} {float(made.loss).hex()} {','.join(map(str, batch.indices.tolist()))}\n"
        number = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(number, line.encode())
        os.close(number)
        return made

    Learner.update = noted


def _forget(part: str) -> None:
    """Leave a part of the state out when a run goes on."""
    load, restore = loop.load_newest, checkpoint.restore
    prefixes = {"averaged weights": "average.", "optimizer": "optimizer."}

    def without(learner: Learner, tensors: Mapping[str, Tensor], path: str) -> None:
        own = checkpoint.state_of(learner)
        if part == "batch norm":
            tensors = {k: own[k] if k.startswith("network.") and "running" in k else v for k, v in tensors.items()}
        elif part in prefixes:
            prefix = prefixes[part]
            tensors = {k: own.get(k, v) for k, v in tensors.items() if not k.startswith(prefix) or k in own}
        restore(learner, tensors, path)

    def loaded(run_folder: Path, learner: Learner) -> tuple[Position, list[str]]:
        position, damaged = load(run_folder, learner)
        if part == "schedule":
            factor, first = learner.factor, position.steps
            learner.factor = lambda step: factor(max(step - first, 0))
        if part == "sampler position":
            position = replace(position, batches=0)
        return position, damaged

    checkpoint.restore, loop.load_newest = without, loaded


def fingerprint(folder: Path) -> str:
    """SHA-256 over weights, buffers, average and optimizer of the newest checkpoint, and over the best weights."""
    found = Vault(folder).find().folder
    assert found is not None
    digest = hashlib.sha256()
    for tensors in (read_parts(found), read_safetensors(folder / "weights.safetensors")[0]):
        for key in sorted(tensors):
            digest.update(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)}".encode())
            digest.update(tensors[key].numpy().tobytes())
    return digest.hexdigest()


def steps_of(log: Path) -> dict[int, set[str]]:
    """What was noted of each step of each process, by 100 x step + rank; one entry each, where it was always the same."""
    found: dict[int, set[str]] = {}
    for line in log.read_text().splitlines():
        number, _, rest = line.partition(" ")
        found.setdefault(int(number), set()).add(rest)
    return found
