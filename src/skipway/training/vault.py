"""Checkpoints in their folder: written so that a kill at any moment leaves a whole one, and checked when read.

    checkpoints/
      newest                          the name of the checkpoint to go on from
      epoch-0003-batch-000120/
        state.safetensors  position.json       (state-00001-of-00002.safetensors ... where processes share out weights)
        manifest.json                 SHA-256 and size of each file beside it

A checkpoint is written into a hidden folder, file by file through to the disk, the manifest last; the folder takes its
name; the pointer moves; only then do older ones go.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipway.durable import sync, write_synced, write_whole
from skipway.run import CHECKPOINTS

POINTER, MANIFEST = "newest", "manifest.json"
OURS = re.compile(r"epoch-\d{5,}(-batch-\d{7,})?")
LEFT = re.compile(rf"\.({OURS.pattern}(\.old)?|{POINTER})\.tmp")
PATIENCE = 10.0  # seconds until a folder that another machine made is to be seen
Writer = Callable[[Path], object]  # writes a file at a path
Meet = Callable[[Any], list[Any]]
Seal = dict[str, str | int]
Manifest = dict[str, Seal]


@dataclass(frozen=True)
class Found:
    """What a vault holds.

    Args:
        folder: the checkpoint to go on from; None where no whole one is left.
        damaged: the ones passed over, each with what is wrong with it.
    """

    folder: Path | None
    damaged: tuple[str, ...] = ()


class Vault:
    """The checkpoints of a run folder.

    Args:
        run_folder: where the run is.
        meet: where each of several processes writes files of its own: what one has to say -> what each of them has, the
            first one's first. None: one process writes all of it.
        is_first: whether this is the one that gives names and removes.
    """

    def __init__(self, run_folder: Path, meet: Meet | None = None, *, is_first: bool = True):
        self.folder, self.meet, self.is_first = run_folder / CHECKPOINTS, meet, is_first

    def names(self) -> list[str]:
        """Of all checkpoints, whole or not, the oldest first; what else is there is not ours."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir() and OURS.fullmatch(path.name))

    def write(self, name: str, files: Mapping[str, Writer], *, keep: int) -> None:
        """Add a checkpoint, which becomes the newest; older ones than the last `keep` go, and later ones (damaged, or
        of a course that was left) too.

        Args:
            name: sorts after those that were made before it.
            files: what writes each.
            keep: how many stay, at least 1.

        Raises:
            OSError: it cannot be written; those that were there still are.
        """
        beside = self.folder / f".{name}.tmp"
        try:
            self._together(self._begin if self.is_first else None, beside)
            manifest = self._together(_put, beside, files)
            self._together(self._give_name if self.is_first else None, beside, manifest, name)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        if not self.is_first:
            return
        sync(self.folder)
        write_whole(self.folder / POINTER, name.encode())
        self._sweep()
        names = self.names()
        before = [other for other in names if other < name]
        for old in (*before[: -(keep - 1) or None], *(other for other in names if other > name)):
            shutil.rmtree(self.folder / old, ignore_errors=True)

    def _together(self, job: Callable[..., Manifest | None] | None, *arguments: Any) -> Manifest:
        """What the job gives in all processes, joined. Raises OSError in each of them where it does so in one."""
        if self.meet is None:
            return (job(*arguments) if job else None) or {}
        given, error = None, ""
        try:
            given = job(*arguments) if job else None
        except OSError as raised:
            error = f"{raised}"
        said = self.meet((given, error))
        if wrong := [f"process {rank}: {why}" for rank, (_, why) in enumerate(said) if why]:
            raise OSError("; ".join(wrong))
        return {name: seal for part, _ in said for name, seal in (part or {}).items()}

    def _begin(self, beside: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        beside.mkdir()

    def _give_name(self, beside: Path, manifest: Manifest, name: str) -> None:
        """The manifest, last, then the name."""
        write_synced(beside / MANIFEST, json.dumps(manifest, indent=1).encode())
        sync(beside)
        if (self.folder / name).exists():  # damaged, or of the same bits
            os.rename(self.folder / name, self.folder / f".{name}.old.tmp")
        os.rename(beside, self.folder / name)

    def find(self) -> Found:
        """The newest whole checkpoint: the one pointed to where it is whole, else the newest of the others."""
        damaged = []
        names = self.names()
        pointed = self._pointed()
        if pointed and pointed not in names:
            damaged.append(f"{self.folder / POINTER} names {pointed!r}, which is not there")
        for name in sorted(names, key=lambda name: (name == pointed, name), reverse=True):
            wrong = _damage(self.folder / name)
            if not wrong:
                return Found(self.folder / name, tuple(damaged))
            damaged.append(f"{self.folder / name}: {wrong}")
        return Found(None, tuple(damaged))

    def _pointed(self) -> str:
        try:
            with (self.folder / POINTER).open(encoding="utf-8") as file:
                return file.read(100).strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def _sweep(self) -> None:
        """Remove what a save that was cut off left behind."""
        for left in self.folder.glob(".*.tmp"):
            if not LEFT.fullmatch(left.name):
                continue
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _put(beside: Path, files: Mapping[str, Writer]) -> Manifest:
    """Write files through to the disk, and seal them."""
    until = time.monotonic() + PATIENCE
    while not beside.is_dir():  # a shared disk may take a moment to show what another machine made
        if time.monotonic() > until:
            raise OSError(
                f"{beside} is not there; where each process writes its part, the run folder must be on a disk that all "
                "of them share"
            )
        time.sleep(0.05)
    for file, write in files.items():
        write(beside / file)
        sync(beside / file)
    return {file: _seal(beside / file) for file in files}


def _seal(path: Path) -> Seal:
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage(folder: Path) -> str:
    """What is wrong with a checkpoint; "" where nothing is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, seal in manifest.items():
            if Path(name).name != name or not (folder / name).is_file():
                return f"{MANIFEST} names {name[:100]!r}, which is no file in it"
            size = (folder / name).stat().st_size
            if size != seal["bytes"]:
                return f"{name} has {size:,} bytes in place of {seal['bytes']:,}"
            if sha256(folder / name) != seal["sha256"]:
                return f"{name} does not have the SHA-256 of {MANIFEST}"
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is damaged"
    return "" if manifest else f"{MANIFEST} is empty"
