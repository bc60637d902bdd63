"""A folder of images: class folders, or train / val / test folders of class folders. Read only, never written."""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from skipway.data.files import HEADERS_UP_TO, DiskFiles, FileSource, Names, file_source
from skipway.data.images.decode import is_image_name
from skipway.data.sources import index
from skipway.data.sources.layout import arrange, is_litter, refuse
from skipway.data_spec import DataSpec
from skipway.errors import InputError


@dataclass
class Walk:
    """What lies below a folder: files with size in bytes and time of change in ns, folders with theirs.

    Hidden files and folders are passed over. A link to a folder that holds it is not followed.
    """

    root: str
    paths: list[str] = field(default_factory=list)
    stats: list[tuple[int, int]] = field(default_factory=list)
    folders: dict[str, int] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)

    def down(self, below: str = "", above: frozenset[tuple[int, int]] = frozenset()) -> None:
        """Walk a folder, by name."""
        place = os.path.join(self.root, below)
        try:
            own = os.stat(place)
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            self.bad[below] = error.strerror or "cannot be opened"
            return
        if (own.st_dev, own.st_ino) in above:
            return
        above |= {(own.st_dev, own.st_ino)}
        self.folders[below] = own.st_mtime_ns
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            if is_litter(entry.name):
                continue
            if entry.is_dir():
                self.down(path, above)
            else:
                self._take(path, entry)

    def _take(self, path: str, entry: os.DirEntry) -> None:
        try:
            facts = entry.stat()
        except OSError as error:
            self.bad[path] = index.NOTHING if entry.is_symlink() else (error.strerror or "cannot be read")
            return
        if not entry.is_file():
            self.bad[path] = "not a regular file"
        elif not facts.st_size:
            self.bad[path] = index.EMPTY
        else:
            self.paths.append(path)
            self.stats.append((facts.st_size, facts.st_mtime_ns))


def holds_images(root: Path, depth: int = 2) -> bool:
    """Whether an image lies in a folder below this one, or in one of those (below train, say)."""
    try:
        entries = [entry for entry in os.scandir(root) if not is_litter(entry.name)]
        inside = depth < 2 and any(is_image_name(entry.name) and entry.is_file() for entry in entries)
        return inside or (depth > 0 and any(holds_images(Path(e.path), depth - 1) for e in entries if e.is_dir()))
    except OSError:
        return False


def open_folder(root: Path, spec: DataSpec, *, fault: Callable[[str], None] = refuse) -> FileSource:
    """Open a folder of images; a big one is indexed, and the index kept for the next time.

    Args:
        root: `root/CLASS/**/image`, or `root/SPLIT/CLASS/**/image` with SPLIT train, val or test, by any common name.
        spec: how to read and group, and whether a bad file stops.
        fault: what to do about a class that cannot be used, as in `arrange`.

    Raises:
        InputError: no images, a class without images, a class that train lacks, or (as asked) a bad file.
    """
    known = index.load(root)
    if known is None:
        known = _walk(root, fault)
        if len(known.names) > HEADERS_UP_TO and fault is refuse:  # one with faults is to be refused again
            index.save(root, known)
    files = DiskFiles(root, known.names, known.fingerprint)
    groups = group_by_name(known.names, spec.group) if spec.group else None
    return file_source(files, known.labels, known.classes, known.splits, spec, groups=groups, bad=known.bad)


def _walk(root: Path, fault: Callable[[str], None]) -> index.Index:
    """The folder, looked at as it is now."""
    walk = Walk(str(root))
    walk.down()
    if root.name and walk.bad.get("") is not None:
        raise InputError(f"{root}: {walk.bad['']}")
    layout = arrange(walk.paths, [f for f in walk.folders if f], str(root), fault=fault)
    names = Names.of(walk.paths[i] for i in layout.order)
    stats = np.array([walk.stats[i] for i in layout.order], np.int64).reshape(-1, 2)
    digest = fingerprint(root, names, stats)
    bad = {**layout.bad, **walk.bad}
    folders, times = Names.of(walk.folders), np.fromiter(walk.folders.values(), np.int64, len(walk.folders))
    return index.Index(names, layout.labels, layout.classes, layout.splits, bad, stats, folders, times, digest)


def fingerprint(root: Path, names: Names, stats: np.ndarray) -> str:
    """A hash over where files lie, what they are called, their sizes and times."""
    where = os.fsencode(root.resolve()) + b"\0"
    return hashlib.sha256(where + names.blob.tobytes() + stats.tobytes()).hexdigest()


def group_by_name(names: Names, pattern: str) -> Tensor:
    """The group of each file, by a pattern whose first bracket is the group; a file without one is its own.

    Raises:
        InputError: no pattern, without a bracket, or one that no name matches.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"data.group '{pattern}' is no regular expression: {error}") from error
    if not compiled.groups:
        raise InputError(f"data.group '{pattern}' needs a bracket around the group, such as 'patient(\\d+)'")
    numbers: dict[str, int] = {}
    found, matched = [], 0
    for place, name in enumerate(names):
        match = compiled.search(name)
        key = match[1] if match and match[1] is not None else f"\0{place}"
        matched += key[:1] != "\0"
        found.append(numbers.setdefault(key, len(numbers)))
    if not matched:
        raise InputError(f"data.group '{pattern}' matches none of the file names, such as {names[0]}")
    return torch.tensor(found)
