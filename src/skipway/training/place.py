"""Which run folder a spec belongs into: the one named, an unfinished one of an equal spec, or the next free."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from skipway.errors import InputError
from skipway.run import Run, next_folder, unfinished
from skipway.spec import RunSpec, differences
from skipway.training.checkpoint import NAME

BASE = Path("runs")
ROOM = 64 << 20  # bytes that must be free before a run starts


@dataclass(frozen=True)
class Place:
    """A run folder, and what is in it: nothing yet, a run to go on with, or a finished one."""

    folder: Path
    resume: bool = False
    finished: bool = False


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
        if run and (run.folder / NAME).is_file():
            return Place(run.folder, resume=True)
        folder = next_folder(BASE, spec.data.path, spec.network.name)
    elif (out / "spec.toml").is_file():
        return _existing(Run.open(out), spec)
    else:
        folder = out
    _check_writable(folder)
    return Place(folder)


def _existing(run: Run, spec: RunSpec) -> Place:
    if run.finished:
        return Place(run.folder, finished=True)
    changed = differences(run.spec, spec)
    if changed:
        shown = "; ".join(changed[:4]) + ("; ..." if len(changed) > 4 else "")
        raise InputError(f"{run.folder} holds an unfinished run with other settings ({shown}); choose another --out")
    if (run.folder / NAME).is_file():
        return Place(run.folder, resume=True)
    if run.metrics():
        raise InputError(f"{run.folder} has lost its {NAME} and cannot go on; choose another --out")
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
