"""Tables that hold the images themselves: parquet files as on the Hugging Face hub, and what `datasets` saves to disk.

Images that are all of one size and fit into 2 GiB are decoded into memory. Larger sets of them are decoded once: the
pixels are kept in a file of the cache, behind a name made of the files they came from, and mapped the next time.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skipway.data.files import file_source
from skipway.data.source import ArraySource, Source
from skipway.data.sources import decoded
from skipway.data.sources.arrow import (
    ArrowFiles,
    Part,
    class_names,
    holds_labels,
    is_bytes,
    need_pyarrow,
    parquet_part,
    stream_part,
)
from skipway.data.sources.columns import join, named
from skipway.data.sources.labels import IMAGES, SPLITS, find_labels, find_splits, make_groups, make_labels
from skipway.data.sources.layout import SPLIT_NAMES
from skipway.data_spec import DataSpec
from skipway.errors import InputError, unknown

ENDS = 1 << 16  # bytes of both ends of a file that its fingerprint is made of, beside its size and time of change


def open_parquet(folder: Path, spec: DataSpec) -> Source:
    """Open a folder of `train-*.parquet`, `validation-*.parquet`, `test-*.parquet` (also below `data/`).

    Args:
        folder: where the files lie; where no name says train, val or test, it is one undivided set.
        spec: which columns, how to read, and whether a bad image stops.

    Raises:
        InputError: pyarrow is missing, or the files hold no images and labels.
    """
    need_pyarrow()
    files = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
    words = [re.split(r"[-_.]", file.stem.lower()) for file in files]
    splits = [next((SPLIT_NAMES[word] for word in parts if word in SPLIT_NAMES), "") for parts in words]
    given = [split for split in ("train", "val", "test") if split in splits]
    pairs = [(file, split) for split in given or [""] for file, own in zip(files, splits, strict=True) if own == split]
    passed = [file for file, split in zip(files, splits, strict=True) if given and not split]
    bad = {file.name: f"stands beside {' and '.join(given)}, so it is passed over" for file in passed}
    return _open([parquet_part(file, split) for file, split in pairs], folder, spec, bad)


def holds_images(file: Path) -> bool:
    """Whether a parquet file has a column of bytes. Raises InputError."""
    need_pyarrow()
    return any(is_bytes(column.type) for column in parquet_part(file, "").schema)


def open_parquet_file(file: Path, spec: DataSpec) -> Source:
    """Open one parquet file of images, as a set undivided unless a column divides it. Raises InputError."""
    need_pyarrow()
    return _open([parquet_part(file, "")], file, spec, {})


def open_saved(folder: Path, spec: DataSpec) -> Source:
    """Open what `save_to_disk` of the `datasets` library wrote: one set, or a folder for each split. It is mapped.

    Raises:
        InputError: pyarrow is missing, or files are, or they hold no images and labels.
    """
    need_pyarrow()
    if not (folder / "dataset_dict.json").is_file():
        return _open(_saved(folder, ""), folder, spec, {})
    names = _facts(folder / "dataset_dict.json").get("splits")
    if not isinstance(names, list) or not names:
        raise InputError(f"{folder / 'dataset_dict.json'} names no splits")
    splits = {str(name): SPLIT_NAMES.get(str(name).lower(), "") for name in names}
    given = [split for split in ("train", "val", "test") if split in splits.values()]
    if not given:
        raise InputError(f"{folder} has the splits {', '.join(splits)}, of which none is train, val or test; name one")
    bad = {name: f"stands beside {' and '.join(given)}, so it is passed over" for name in splits if not splits[name]}
    parts = [
        part for split in given for name in splits if splits[name] == split for part in _saved(folder / name, split)
    ]
    return _open(parts, folder, spec, bad)


def _saved(folder: Path, split: str) -> list[Part]:
    """The files of one saved set."""
    files = [entry.get("filename") for entry in _facts(folder / "state.json").get("_data_files") or []]
    features = _facts(folder / "dataset_info.json").get("features") or {}
    if not files or not all(isinstance(name, str) for name in files):
        raise InputError(f"{folder / 'state.json'} names no data files")
    return [stream_part(folder / name, split, features) for name in files]


def _facts(file: Path) -> dict[str, Any]:
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}; save the set again with save_to_disk") from error
    if not isinstance(facts, dict):
        raise InputError(f"{file} is not what save_to_disk writes")
    return facts


def _open(parts: Sequence[Part], path: Path, spec: DataSpec, bad: dict[str, str]) -> Source:
    """The source over some tables."""
    title = path.name
    image, labels = _columns(parts, spec, title)
    columns = {name: [part.column(name) for part in parts] for name in labels}
    counts = [len(column) for column in columns[labels[0]]]
    if not sum(counts):
        raise InputError(f"{path} holds no rows")
    splits, missing = _splits(parts, counts, (image, spec.group, *labels), title)
    whole = [join(columns[name], title) for name in labels]
    found = make_labels(whole, spec.separator, splits)
    groups = make_groups(join([part.column(spec.group) for part in parts], title)) if spec.group else None
    bad = bad | {f"{title}[{row}]": "names no split" for row in missing.tolist()}
    bad |= {f"{title}[{row}]": "no label" for row in np.flatnonzero(found.missing).tolist()}
    kept = {name: torch.from_numpy(rows[~found.missing[rows]]) for name, rows in splits.items()}
    kept = {name: rows for name, rows in kept.items() if len(rows)}
    if not kept:
        raise InputError(f"no row of {path} has a label")
    key = _fingerprint([part.path for part in parts], image)
    pixels = decoded.load(key, spec)
    if pixels is None:
        files = ArrowFiles.of((batch.column(0) for part in parts for batch in part.batches([image])), title, key)
        source = file_source(files, found.labels, found.classes, kept, spec, groups=groups, bad=bad)
        pixels = decoded.decode_all(source, spec)
        if pixels is None:
            return source
    array = ArraySource(pixels.images, found.labels, found.classes, kept, title, bad, groups, key)
    return decoded.in_memory(pixels, array, spec)


def _columns(parts: Sequence[Part], spec: DataSpec, title: str) -> tuple[str, tuple[str, ...]]:
    """The image column and those of labels; every table has them. Raises InputError."""
    schema, features = parts[0].schema, parts[0].features
    for name in filter(None, (spec.image, spec.group, *spec.label)):
        if name not in schema.names:
            raise unknown(f"column of {title}", name, schema.names)
    images = [column.name for column in schema if is_bytes(column.type)]
    if not images or (spec.image and spec.image not in images):
        listed = ", ".join(schema.names)
        raise InputError(
            f"{title} needs a column of images, as bytes or {{bytes, path}}, and one of labels; it has {listed}"
        )
    fit = [column.name for column in schema if holds_labels(column.type)]
    guesses = [name for name in fit if name != spec.group and name.lower() not in SPLITS]
    declared = [name for name in guesses if class_names(features.get(name))]
    labels = find_labels(spec.label, declared if len(declared) == 1 else guesses, schema.names, title)
    image = spec.image or named(images, IMAGES) or images[0]
    for part in parts:
        for name in filter(None, (image, spec.group, *labels)):
            if part.schema.names.count(name) != 1:
                raise unknown(f"column of {part.path} (each once)", name, part.schema.names)
            kind = part.schema.field(name).type
            if not (is_bytes(kind) if name == image else holds_labels(kind)):
                raise InputError(f"column '{name}' of {part.path} is of type {kind}, which does not do for its part")
    return image, labels


def _splits(
    parts: Sequence[Part], counts: Sequence[int], taken: Sequence[str], title: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Rows by split, as files or else a column say, and the rows of which it says nothing."""
    if not parts[0].split:
        fit = [{c.name for c in part.schema if holds_labels(c.type)} - {*taken} for part in parts]
        names = [name for name in parts[0].schema.names if all(name in own for own in fit)]
        return find_splits(names, lambda name: join([part.column(name) for part in parts], title), sum(counts))
    ends = np.cumsum([0, *counts])
    rows: dict[str, list[np.ndarray]] = {}
    for part, start, end in zip(parts, ends[:-1], ends[1:], strict=True):
        rows.setdefault(part.split, []).append(np.arange(start, end))
    return {split: np.concatenate(found) for split, found in rows.items()}, np.zeros(0, np.int64)


def _fingerprint(files: Sequence[Path], image: str) -> str:
    """Changes where the images may have: places, sizes, times, and what both ends of each file hold."""
    digest = hashlib.sha256(image.encode())
    for file in files:
        facts = file.stat()
        digest.update(f"\0{os.path.abspath(file)}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(ENDS))
            opened.seek(max(facts.st_size - ENDS, 0))
            digest.update(opened.read())
    return digest.hexdigest()
