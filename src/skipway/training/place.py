"""Which run folder a spec belongs into: the one named, an unfinished one of an equal spec, or the next free."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from skipway.data.memory import group_name, kills
from skipway.errors import InputError
from skipway.run import LOCK, Run
from skipway.spec import RunSpec, differences
from skipway.training.vault import Vault

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

BASE = Path("runs")
# In a run that goes on in the folder that was named.
MAY_CHANGE = ("train.epochs", "train.device", "train.track", "speed.micro_batch")
ROOM = 64 << 20  # bytes that must be free before a run starts


@dataclass(frozen=True)
class Place:
    """A run folder, and what is in it: nothing yet, a run to go on with, or a finished one, with which settings.

    Args:
        folder: where.
        resume: whether it holds a run to go on with.
        finished: what to say of a finished one.
        changed: the settings with which it goes on that are not those it began with.
    """

    folder: Path
    resume: bool = False
    finished: str = ""
    changed: tuple[str, ...] = ()


def find_place(spec: RunSpec, out: Path | None) -> Place:
    """Where a run of this (resolved) spec belongs.

    Args:
        spec: the resolved spec.
        out: the folder that was asked for, if any.

    Raises:
        InputError: the folder holds a run of another spec, is no run folder, or cannot be written.
    """
    if out is None:
        run = unfinished(BASE, spec)
        if run and Vault(run.folder).names():
            return Place(run.folder, resume=True)
        folder = next_folder(BASE, spec.data.path, spec.network.name)
    elif (out / "spec.toml").is_file():
        return _existing(Run.open(out), spec)
    else:
        folder = out
    data = Path(spec.data.path).expanduser().resolve()
    if data.is_dir() and folder.resolve().is_relative_to(data):
        raise InputError(
            f"{folder} lies inside the data, where its pictures would be taken for images; name another --out"
        )
    _check_writable(folder)
    return Place(folder)


@dataclass(frozen=True)
class Before:
    """How the process before this one left a run folder.

    Args:
        cut_off: without a word, as one that was killed does.
        short_of_memory: and the system killed one in this control group for want of memory meanwhile.
    """

    cut_off: bool = False
    short_of_memory: bool = False


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[Before]:
    """Hold a run folder for this process alone; where nothing was written into a new one, it goes away again.

    Raises:
        InputError: another process holds it.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK
    with _locked(lock) as file:
        before = _left(file.read())
        with contextlib.suppress(OSError):  # a full disk is told by what must be written
            file.seek(0)
            file.truncate()
            file.write(json.dumps({"group": group_name(), "kills": kills()}))
            file.flush()
        try:
            yield before
        finally:
            with contextlib.suppress(OSError):  # the first folder that is not empty ends it
                lock.unlink()
                for path in created:
                    path.rmdir()


def _locked(lock: Path) -> TextIO:
    """The lock file, open and held. Raises InputError where another process holds it."""
    while True:
        if lock.is_symlink() or (lock.exists() and not lock.is_file()):
            raise InputError(f"{lock} is no file of ours; remove it, or choose another --out")
        number = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        file = os.fdopen(number, "r+", encoding="utf-8", errors="replace")
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise InputError(f"{lock.parent} is being trained by another process; choose another --out") from error
        except OSError:
            return file  # a file system without locks
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(number), os.stat(lock)):
                return file
        file.close()  # the one who held it before took it away meanwhile


def _left(text: str) -> Before:
    """What a lock says that was left behind; it is taken away at each end that is one."""
    try:
        said = json.loads(text)
        short = said["group"] == group_name() != "" and kills() > said["kills"]
    except (ValueError, KeyError, TypeError):
        return Before(cut_off=bool(text))
    return Before(cut_off=True, short_of_memory=short)


def _existing(run: Run, spec: RunSpec) -> Place:
    changed = differences(run.spec, spec)
    shown = "; ".join(changed[:4]) + ("; ..." if len(changed) > 4 else "")
    if run.finished:
        return Place(run.folder, finished=f" with other settings ({shown})" if changed else " with these settings")
    fixed = [row for row in changed if row.partition(":")[0] not in MAY_CHANGE]
    if fixed:
        may = ", ".join(name.partition(".")[2].replace("_", "-") for name in MAY_CHANGE)
        raise InputError(
            f"{run.folder} holds an unfinished run with other settings ({shown}); choose another --out. "
            f"It can go on with other {may}, workers, cache and safety settings alone"
        )
    if Vault(run.folder).names():
        return Place(run.folder, resume=True, changed=tuple(changed))
    return Place(run.folder)


def _check_writable(folder: Path) -> None:
    """Refuse a place that cannot be written before any work is done."""
    above = folder
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise InputError(f"{folder} cannot be made: {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"no permission to write in {above}; choose another --out")
    free = shutil.disk_usage(above).free
    if free < ROOM:
        raise InputError(f"no space for a run in {above}: {free / 1e6:.0f} MB free, {ROOM / 1e6:.0f} MB wanted")


def next_folder(base: Path, data: str, network: str) -> Path:
    """The first free `base/<data>-<network>-<n>`."""
    stem = run_stem(data, network)
    taken = [int(m[1]) for p in _children(base) if (m := re.fullmatch(re.escape(stem) + r"-(\d+)", p.name))]
    return base / f"{stem}-{max(taken, default=0) + 1}"


def run_stem(data: str, network: str) -> str:
    """`<data>-<network>` as a folder's name."""
    name = Path(data).expanduser().resolve().name if "/" in data or data in (".", "..") else data
    return re.sub(r"[^\w.+-]+", "_", f"{name}-{network}")


def unfinished(base: Path, spec: RunSpec) -> Run | None:
    """The newest run below `base` that is not finished and was made from an equal spec."""
    found = []
    for folder in _children(base):
        try:
            run = Run.open(folder)
            if not run.finished and not differences(run.spec, spec):
                found.append((folder.stat().st_mtime, run))
        except InputError:
            continue  # not a run, or one that cannot be read: not ours to continue
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _children(base: Path) -> list[Path]:
    return [p for p in base.iterdir() if p.is_dir()] if base.is_dir() else []
