"""Samples of shards in WebDataset's layout: members of a tar that share a name up to its first dot are one sample.

An image is one member, its label another: `.cls` (a number or a name), `.json` or `.txt`. Headers are read once, into
flat arrays that are kept in the cache, keyed by the shards' paths, sizes and times.
"""

import json
import os
import re
import tarfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from skipway.cache import cache_folder, keep_arrays, kept_arrays
from skipway.data.files import Names
from skipway.data.images.decode import is_image_name
from skipway.data.sources.layout import is_litter
from skipway.data.sources.tar_index import BROKEN, DiskBytes, Members, check_end, digest, tar_members, unsafe

FORMAT = "shards-index-2"
LABELS = ("cls", "json", "txt")
MAX_LABEL = 1 << 20  # bytes of a label member
_KEY = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)", re.DOTALL)
Label = int | str | tuple[int | str, ...]


def key_and_extension(name: str) -> tuple[str, str]:
    """WebDataset's: folders and the name up to its first dot, and what follows in lower case; "" where it has none."""
    match = _KEY.fullmatch(name)
    return (match[1], match[2].lower()) if match else (name, "")


def is_image(name: str) -> bool:
    """Whether a member is an image, or an array that `pack` wrote."""
    return is_image_name(name) or name.lower().endswith(".npy")


@dataclass(frozen=True)
class Samples:
    """What the shards hold.

    Args:
        rows: (N, 3) int64: shard, offset, bytes.
        names: of the samples.
        codes: (N,) int64, position in `labels`.
        groups: (N,) int64; -1: none.
        arrays: (N,) bool: .npy, not an encoded image.
        labels: each different label once.
        bad: samples left out -> reason.
    """

    rows: np.ndarray
    names: Names
    codes: np.ndarray
    groups: np.ndarray
    arrays: np.ndarray
    labels: list[Label]
    bad: dict[str, str]


@dataclass
class _Scan:
    """Collects samples, shard by shard."""

    reader: DiskBytes
    values: array = field(default_factory=lambda: array("q"))  # shard, offset, bytes, code, group, is array
    names: list[str] = field(default_factory=list)
    codes: dict[Label, int] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)

    def shard(self, part: int) -> None:
        """Take in one shard."""
        path = self.reader.paths[part]
        members, bad, end = Members(), {}, path.stat().st_size
        key, seen, images, labels = "", set(), [], {}
        try:
            with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                for name, info, fault in tar_members(tar, bad):
                    if info.isdir() or (is_litter(name) and not unsafe(name)):
                        continue
                    if info.offset_data + info.size > end:
                        fault = fault or "cut short: the shard ends before it"
                    if not members.take(name, (part, info.offset_data, info.size, info.size, 0, 0), fault):
                        continue
                    own, extension = key_and_extension(name)
                    if not extension:
                        continue
                    if own != key:
                        self._sample(part, key, images, labels, seen)
                        key, images, labels = own, [], {}
                    if is_image(name):
                        images.append((name, info.offset_data, info.size))
                    elif extension in LABELS:
                        labels[extension] = info.offset_data, info.size
                self._sample(part, key, images, labels, seen)
                check_end(file, tar.offset, bad)
        except BROKEN as error:
            bad["all"] = f"not a whole tar file: {error}"
        for name, reason in {**bad, **members.bad}.items():
            self.bad[f"{path.name}/{name}"] = reason

    def _sample(
        self,
        part: int,
        key: str,
        images: list[tuple[str, int, int]],
        labels: dict[str, tuple[int, int]],
        seen: set[str],
    ) -> None:
        """One sample is complete."""
        if not key:
            return
        place = f"{self.reader.paths[part].name}/{key}"
        if len(images) != 1 or key in seen:
            why = "its members lie apart" if key in seen else f"{len(images)} images; a sample has one"
            self.bad[place] = why
            return
        seen.add(key)
        try:
            texts = {kind: self.reader.read(part, *at) for kind, at in labels.items() if at[1] <= MAX_LABEL}
            label, name, group = read_label(texts)
        except (ValueError, RecursionError) as error:
            self.bad[place] = f"its label cannot be read: {error}"
            return
        file, offset, size = images[0]
        code = self.codes.setdefault(label, len(self.codes))
        self.values.extend((part, offset, size, code, group, file.lower().endswith(".npy")))
        self.names.append(name or f"{self.reader.paths[part].name}/{file}")


def read_label(texts: dict[str, bytes]) -> tuple[Label, str, int]:
    """A sample's label, its own name where one is told, and its group (-1: none).

    Args:
        texts: the bytes of its label members, by extension.

    Raises:
        ValueError: none, or none that can be read.
    """
    facts = json.loads(texts["json"]) if "json" in texts else {}
    facts = facts if isinstance(facts, dict) else {"label": facts}
    name, group = facts.get("name"), facts.get("group")
    label: Any = facts.get("class", facts.get("classes"))
    for kind in ("cls", "json", "txt"):
        if label is not None:
            break
        if kind == "json":
            label = next((facts[key] for key in ("label", "labels", "cls", "target") if key in facts), None)
        elif kind in texts:
            text = texts[kind].decode().strip()
            label = int(text) if re.fullmatch(r"\d{1,9}", text) else text
    if isinstance(label, list):
        label = tuple(sorted({_one(value) for value in label}, key=str))
    return (
        label if isinstance(label, tuple) else _one(label),
        name if isinstance(name, str) and name.isprintable() else "",
        group if isinstance(group, int) and group >= 0 else -1,
    )


def _one(label: Any) -> int | str:
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < 10**9:
        return label
    if isinstance(label, str) and label.isprintable() and 0 < len(label) <= 200:
        return label
    raise ValueError("there is none" if label is None else f"{str(label)[:40]!r} is no number from 0 and no name")


def samples_of(paths: Sequence[Path]) -> Samples:
    """The samples of some shards, from the kept index where it fits.

    Raises:
        OSError: a shard cannot be looked at.
    """
    facts = [(os.path.abspath(path), stat.st_size, stat.st_mtime_ns) for path in paths for stat in [path.stat()]]
    kept = cache_folder() / "index" / f"{digest(FORMAT, facts)[:24]}.shards.safetensors"
    if (known := _load(kept)) is not None:
        return known
    scan = _Scan(DiskBytes(paths))
    console = Console(stderr=True)
    hidden = not console.is_terminal
    for part in track(range(len(paths)), "looking through shards", console=console, transient=True, disable=hidden):
        scan.shard(part)
    values = np.array(scan.values, np.int64).reshape(-1, 6)
    rows, codes, groups = (np.ascontiguousarray(values[:, columns]) for columns in (slice(3), 3, 4))
    made = Samples(rows, Names.of(scan.names), codes, groups, values[:, 5] > 0, list(scan.codes), scan.bad)
    _save(kept, made)
    return made


def _save(kept: Path, made: Samples) -> None:
    """Keep the index; where it cannot be written, the shards are looked through again the next time."""
    arrays = {
        "rows": made.rows, "names": made.names.blob, "ends": made.names.ends, "codes": made.codes,
        "groups": made.groups, "arrays": made.arrays,
    }  # fmt: skip
    keep_arrays(kept, arrays, {"labels": made.labels, "bad": made.bad})


def _load(kept: Path) -> Samples | None:
    found = kept_arrays(kept)
    if found is None:
        return None
    t, facts = found
    try:
        labels = [tuple(label) if isinstance(label, list) else label for label in facts["labels"]]
        names = Names(t["names"], t["ends"])
        return Samples(t["rows"], names, t["codes"], t["groups"], t["arrays"], labels, facts["bad"])
    except (KeyError, TypeError):
        return None
