"""Shards: tar files in WebDataset's layout, by folder, by pattern, or from the web; every sample by number.

`shards/{000..012}.tar` names a row of them, and so does a folder. Shards behind a URL are fetched into the cache when
they are first asked for. What `pack` wrote has a shards.json beside it, with classes and splits; in other shards they
come from the labels and from names such as train-000.tar.
"""

import itertools
import json
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skipway.data.files import FileSource, file_source
from skipway.data.images.reading import Reading
from skipway.data.sources.fetch import fetch, fetch_beside, local_path
from skipway.data.sources.folder import group_by_name
from skipway.data.sources.layout import SPLIT_NAMES
from skipway.data.sources.packed import npy_source
from skipway.data.sources.samples import LABELS, Samples, is_image, key_and_extension, samples_of
from skipway.data.sources.tar_index import BROKEN, RAW, DiskBytes, MemberFiles, digest, tar_members
from skipway.data_spec import DataSpec
from skipway.errors import InputError, for_example

FACTS = "shards.json"
FORMAT = "skipway-shards-1"
UNFINISHED = "packing.json"  # stands beside shards while `pack` writes them
LOOKED_AT = 64  # members of a tar file that say whether it is a shard
MOST = 100_000  # shards that a pattern may name


@dataclass(frozen=True)
class Listed:
    """Which shards.

    Args:
        paths: where they lie, in order.
        splits: of each; "" where its name says nothing.
        facts: what shards.json says; {} where there is none.
        bad: shards left out -> reason.
    """

    paths: list[Path]
    splits: list[str]
    facts: dict[str, Any]
    bad: dict[str, str]


def is_shard(path: Path) -> bool:
    """Whether a tar file holds samples (an image and its label as two members), not class folders."""
    images, labels = set(), set()
    try:
        with tarfile.open(path, "r:") as tar:
            for name, info, _ in itertools.islice(tar_members(tar, {}), LOOKED_AT):
                key, extension = key_and_extension(name)
                if info.isreg() and is_image(name):
                    images.add(key)
                elif info.isreg() and extension in LABELS and (extension != "txt" or "/" not in key):
                    labels.add(key)
    except BROKEN:
        return False
    return bool(images & labels)


def open_shards(spec: DataSpec) -> FileSource:
    """Open shards.

    Args:
        spec: its path is a tar file, a folder of them, or a pattern or URL of them; how to read and group.

    Raises:
        InputError: none there, half packed, one that cannot be fetched, labels that do not fit each other.
        ReadError: a bad sample, and they are to stop.
    """
    listed = list_shards(spec.path)
    try:
        found = samples_of(listed.paths)
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}") from error
    bad = {**listed.bad, **found.bad}
    if not len(found.names):
        raise InputError(
            f"{spec.path} holds no samples: each needs an image and a .cls, .json or .txt{for_example(bad)}"
        )
    classes, labels = _classes(found, listed.facts, spec.path)
    count = len(found.names)
    rows = np.empty((count, 6), np.int64)
    rows[:, :3], rows[:, 3], rows[:, 4], rows[:, 5] = found.rows, found.rows[:, 2], RAW, 0
    sizes = [(os.path.abspath(path), path.stat().st_size, path.stat().st_mtime_ns) for path in listed.paths]
    files = MemberFiles(DiskBytes(listed.paths), rows, found.names, digest(rows, found.names.blob, sizes))
    groups = group_by_name(found.names, spec.group) if spec.group else _groups(found)
    splits = _splits(listed, rows[:, 0], bad)
    if found.arrays.any():
        if not found.arrays.all():
            raise InputError(f"{spec.path} mixes .npy members and image files: pack them apart")
        whole = splits or {"all": torch.arange(count)}
        return npy_source(FileSource(files, labels, classes, whole, groups=groups, bad=bad), spec)
    source = file_source(files, labels, classes, splits, spec, groups=groups, bad=bad)
    if listed.facts.get("channels") == 1 and not source.deep:
        source = replace(source, reading=Reading.of(spec, 1))
    return source


def list_shards(text: str) -> Listed:
    """The shards behind a folder, a file, a pattern or a URL; what is on the web is fetched.

    Raises:
        InputError: none there, or not whole.
    """
    if "://" in text:
        urls = expand(text)
        beside = fetch_beside(urls[0], FACTS) if any(not local_path(url).exists() for url in urls) else None
        paths = fetch(urls)
        beside = beside or paths[0].with_name(FACTS)
        return _with_facts(paths, beside, whole=False)
    path = Path(os.path.expanduser(text))
    if path.is_dir():
        paths = sorted([*path.glob("*.tar"), *path.glob("*/*.tar")])
        if (path / UNFINISHED).exists():
            raise InputError(f"{path} is half packed: run the same `skipway data pack` again, it starts over")
        return _with_facts(paths, path / FACTS, whole=True)
    paths = [path] if path.exists() else [Path(os.path.expanduser(name)) for name in expand(text)]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(paths)} shards that {text} names are not there, first {missing[0]}"
        )
    return _with_facts(paths, paths[0].parent / FACTS, whole=False)


def expand(pattern: str) -> list[str]:
    """A pattern's names: {000..012} counts (with zeros in front where the first has them), {a,b} lists.

    Raises:
        InputError: a brace that is neither, or more than 100,000 names.
    """
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices: list[Sequence[str]] = [
        [piece] if i % 2 == 0 else _choices(piece, pattern) for i, piece in enumerate(pieces)
    ]
    count = int(np.prod([float(len(choice)) for choice in choices]))
    if count > MOST:
        raise InputError(f"{pattern} names {count:,} shards; up to {MOST:,} are read")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(piece: str, pattern: str) -> Sequence[str]:
    if match := re.fullmatch(r"(\d{1,12})\.\.(\d{1,12})", piece):
        first, last = int(match[1]), int(match[2])
        if abs(last - first) >= MOST:
            raise InputError(f"{pattern} names more than the {MOST:,} shards that are read")
        width = len(match[1]) if match[1].startswith("0") else 0
        return [f"{i:0{width}}" for i in range(first, last + (1 if last >= first else -1), 1 if last >= first else -1)]
    if "," in piece:
        return piece.split(",")
    raise InputError(f"{pattern}: {{{piece}}} must be a row of numbers such as {{000..012}}, or a list {{a,b}}")


def _with_facts(paths: list[Path], beside: Path, *, whole: bool) -> Listed:
    """The shards with what shards.json says of them, else with what their names say."""
    facts = _read_facts(beside)
    by_name: dict[str, tuple[str, int]] = {}
    for split, entry in facts.get("splits", {}).items():
        by_name |= {shard["name"]: (split, shard["bytes"]) for shard in entry["shards"]}
    if whole and (missing := sorted(set(by_name) - {path.name for path in paths})):
        raise InputError(f"{beside.parent} lacks {len(missing)} of its {len(by_name)} shards, first {missing[0]}")
    by_folder = len({path.parent for path in paths}) > 1 or any(path.parent != beside.parent for path in paths)
    kept, splits, bad = [], [], {}
    for path in paths:
        split, size = by_name.get(path.name, (split_of(path, by_folder), path.stat().st_size))
        if by_name and path.name not in by_name:
            bad[path.name] = f"not listed in {FACTS}"
        elif path.stat().st_size != size:
            bad[path.name] = f"{path.stat().st_size:,} bytes, {size:,} when it was packed: copy it again"
        else:
            kept.append(path)
            splits.append("" if split == "all" else split)
    if not kept:
        first = "".join(f": {name}: {reason}" for name, reason in list(bad.items())[:1])
        raise InputError(f"there are no shards in {beside.parent}{first}")
    return Listed(kept, splits, facts, bad)


def _read_facts(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        shards = [shard for entry in facts["splits"].values() for shard in entry["shards"]]
        typed = [(shard["name"], str) for shard in shards] + [(shard["bytes"], int) for shard in shards]
        if not all(isinstance(value, kind) for value, kind in [*typed, *((name, str) for name in facts["classes"])]):
            raise TypeError
        known = facts["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged: pack again, or move it away to go by the shards' own labels") from error
    if not known:
        raise InputError(f"{path} is of format {facts['format']!r}; this version reads {FORMAT}")
    return facts


def split_of(path: Path, by_folder: bool) -> str:
    """The split that a shard's name, or (as asked) its folder's, tells; "" where none does."""
    words = [*re.split(r"[-_.]", path.stem.lower()), *([path.parent.name.lower()] if by_folder else [])]
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def _splits(listed: Listed, parts: np.ndarray, bad: dict[str, str]) -> dict[str, Tensor]:
    """As in Source; a shard that tells no split beside others that do is passed over."""
    of_part = np.array(listed.splits)
    known = [split for split in ("train", "val", "test") if (of_part == split).any()]
    if known:
        for path, split in zip(listed.paths, listed.splits, strict=True):
            if not split:
                bad[path.name] = f"stands beside {' and '.join(known)}, so it is passed over"
    splits = {split: torch.from_numpy(np.flatnonzero(of_part[parts] == split)) for split in known}
    return {split: indices for split, indices in splits.items() if len(indices)}


def _groups(found: Samples) -> Tensor | None:
    """The groups that were packed; a sample without one is its own."""
    if (found.groups < 0).all():
        return None
    own = found.groups.max() + 1 + np.arange(len(found.groups))
    return torch.from_numpy(np.where(found.groups < 0, own, found.groups))


def _classes(found: Samples, facts: dict[str, Any], title: str) -> tuple[tuple[str, ...], Tensor]:
    """Class names, and the labels: (N,) int64, or (N, K) uint8 where any sample tells several."""
    several = any(isinstance(label, tuple) for label in found.labels)
    rows: list[tuple[int | str, ...]] = [label if isinstance(label, tuple) else (label,) for label in found.labels]
    where = _where({value for row in rows for value in row}, facts, len(found.names), title)
    classes = tuple(facts["classes"]) if facts else tuple(str(value) for value in where)
    try:
        if not several:
            return classes, torch.tensor([where[row[0]] for row in rows])[torch.from_numpy(found.codes)]
        table = torch.zeros(len(rows), len(classes), dtype=torch.uint8)
        for code, row in enumerate(rows):
            table[code, [where[value] for value in row]] = 1
        return classes, table[torch.from_numpy(found.codes)]
    except KeyError as error:
        raise InputError(f"{title}: label {error} is not among the {len(classes)} classes in {FACTS}") from error


def _where(values: set[int | str], facts: dict[str, Any], samples: int, title: str) -> dict[int | str, int]:
    """Each value's position among the classes."""
    if facts:
        names = facts["classes"]
        return {**{i: i for i in range(len(names))}, **{name: i for i, name in enumerate(names)}}
    kinds = {type(value) for value in values}
    if len(kinds) > 1:
        raise InputError(f"labels in {title} are numbers in places and names in others")
    if str in kinds and len(values) > max(1000, samples // 2):
        raise InputError(f"{title} has {len(values):,} different texts for {samples:,} images: captions, not classes")
    return {value: i for i, value in enumerate(sorted(values, key=lambda value: (str(type(value)), value)))}
