"""Files that are there whole or not at all, also after the power went: written beside their place, synced, moved."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

Content = bytes | Iterable[bytes | memoryview]  # whole, or piece by piece


def write_whole(target: Path, content: Content) -> None:
    """Put a file in its place.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    beside = target.with_name(f".{target.name}.tmp")
    try:
        write_synced(beside, content)
        os.replace(beside, target)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    sync(target.parent)


def write_synced(path: Path, content: Content) -> None:
    """Write a file through to the disk. Raises OSError."""
    with path.open("wb") as file:
        file.writelines([content] if isinstance(content, bytes) else content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk. Raises OSError."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
