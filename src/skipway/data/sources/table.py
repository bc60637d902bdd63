"""Tables of image paths and labels: CSV, TSV, JSON Lines, parquet. The images lie wherever the paths say.

Paths count from the table's folder. A table is the user's own, so a path may lead anywhere.
"""

import contextlib
import csv
import itertools
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from skipway.data.files import DiskFiles, Names, file_source
from skipway.data.source import Source
from skipway.data.sources.columns import Cells, Column, named
from skipway.data.sources.folder import fingerprint, group_by_name
from skipway.data.sources.index import EMPTY
from skipway.data.sources.labels import IMAGES, SPLITS, find_labels, find_splits, make_groups, make_labels
from skipway.data_spec import DataSpec
from skipway.errors import InputError, unknown

FIRST = 100  # rows looked at to find the columns and what they hold


@dataclass(frozen=True)
class Table:
    """A table that is read column by column.

    Args:
        path: the file.
        columns: their names.
        first: a few rows, column -> cell.
        read: names -> these columns, whole.
    """

    path: Path
    columns: tuple[str, ...]
    first: Sequence[dict[str, Any]]
    read: Callable[[Sequence[str]], dict[str, Column]]


def open_table(path: Path, spec: DataSpec) -> Source:
    """Open a table.

    Args:
        path: .csv, .tsv, .jsonl, .ndjson or .parquet; parquet may hold the images themselves.
        spec: which columns hold images, labels and groups, and how to read. A column called split (or the like) that
            says train, val or test divides the set.

    Raises:
        InputError: it cannot be read, it is unclear which column is which, or nothing can be used.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from skipway.data.sources.parquet import holds_images, open_parquet_file

        return open_parquet_file(path, spec) if holds_images(path) else _open(_parquet(path), spec)
    return _open(_json_lines(path) if suffix in (".jsonl", ".ndjson") else _separated(path), spec)


def _open(table: Table, spec: DataSpec) -> Source:
    title = table.path.name
    if not table.first:
        raise InputError(f"{table.path} has no rows")
    image = _image_column(table, spec)
    by_column = spec.group in table.columns
    if spec.group and not by_column and "(" not in spec.group:
        raise unknown(f"column of {title}", spec.group, table.columns)
    others = [name for name in table.columns if name and name not in (image, spec.group)]
    guesses = [name for name in others if name.lower() not in SPLITS]
    labels = find_labels(spec.label, guesses, table.columns, title)
    maybe_splits = [name for name in others if name not in labels and name.lower() in SPLITS]
    columns = table.read([*dict.fromkeys([image, *labels, *maybe_splits, *[spec.group] * by_column])])
    splits, missing = find_splits(maybe_splits, columns.__getitem__, len(columns[image]))
    rows, stats, bad = _usable(table.path, columns[image], [columns[name] for name in labels], splits)
    bad |= {f"row {row + 1} of {title}": "names no split" for row in missing.tolist()}
    found = make_labels([columns[name].at(rows) for name in labels], spec.separator, _within(splits, rows))
    bad |= {columns[image].values[code]: f"no label in {title}" for code in columns[image].codes[rows[found.missing]]}
    good, rows = torch.from_numpy(~found.missing), rows[~found.missing]
    if not len(rows):
        raise InputError(f"no row of {table.path} has both an image and a label")
    codes = columns[image].codes[rows]
    names = Names.of(columns[image].values[code] for code in codes)
    digest = fingerprint(table.path.parent, names, stats[codes])
    groups = make_groups(columns[spec.group].at(rows)) if by_column else None
    if spec.group and not by_column:
        groups = group_by_name(names, spec.group)
    parts = {split: torch.from_numpy(part) for split, part in _within(splits, rows).items()}
    files = DiskFiles(table.path.parent, names, digest)
    return file_source(files, found.labels[good], found.classes, parts, spec, groups=groups, bad=bad)


def _within(splits: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """The splits in positions among some rows; empty ones go."""
    parts = {split: np.flatnonzero(np.isin(rows, part)) for split, part in splits.items()}
    return {split: part for split, part in parts.items() if len(part)}


def _usable(
    path: Path, image: Column, labels: Sequence[Column], splits: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Which rows name a file that is there, once, in a split.

    Returns:
        Row numbers; (distinct paths, 2) int64 size in bytes and time of change in ns; name -> why it is left out.

    Raises:
        InputError: no file is there, or an image stands twice with different labels or in different splits.
    """
    title = path.name
    split_of = np.full(len(image), -1)
    for number, rows in enumerate(splits.values()):
        split_of[rows] = number
    stats = np.zeros((len(image.values), 2), np.int64)
    bad: dict[str, str] = {}
    absent = np.ones(len(image.values) + 1, bool)  # the last: of cells without a path
    for code, name in enumerate(image.values):
        stats[code], reason = _look(path.parent, name, image)
        absent[code] = bool(reason)
        if reason:
            bad[str(name)] = reason
    if absent.all():
        name = next(iter(image.values), "")
        raise InputError(
            f"none of the files that {image} names can be used, such as {path.parent / str(name)}: "
            f"{bad.get(str(name), 'empty')}; paths count from the table's folder (--image names another column)"
        )
    again = _repeats(image, [*(("labels", column.codes) for column in labels), ("splits", split_of)], title)
    bad |= {f"row {row + 1} of {title}": "lists an image again" for row in np.flatnonzero(again).tolist()}
    bad |= {f"row {row + 1} of {title}": "names no image" for row in np.flatnonzero(image.codes < 0).tolist()}
    return np.flatnonzero(~absent[image.codes] & ~again & (split_of >= 0)), stats, bad


def _repeats(image: Column, beside: Sequence[tuple[str, np.ndarray]], title: str) -> np.ndarray:
    """The rows that name an image that an earlier one names, (N,) bool.

    Raises:
        InputError: what stands beside it is not the same.
    """
    _, first, code = np.unique(image.codes, return_index=True, return_inverse=True)
    origin = first[code]
    again = (origin != np.arange(len(image))) & (image.codes >= 0)
    for what, values in beside:
        differs = np.flatnonzero(again & (values != values[origin]))
        if len(differs):
            row = int(differs[0])
            raise InputError(
                f"{image.values[image.codes[row]]} stands in {title} with different {what}, in rows {origin[row] + 1} "
                f"and {row + 1}; give each image one row (several labels in one cell: --separator)"
            )
    return again


def _look(folder: Path, name: Any, image: Column) -> tuple[tuple[int, int], str]:
    """Size and time of a file, and why it cannot be used."""
    if not isinstance(name, str):
        raise InputError(f"{image} must hold paths, got {name!r}")
    try:
        facts = os.stat(os.path.join(folder, name))
    except (OSError, ValueError) as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        return (0, 0), "no such file" if missing else getattr(error, "strerror", None) or "no path that can be"
    if not stat.S_ISREG(facts.st_mode):
        return (0, 0), "not a regular file"
    return (facts.st_size, facts.st_mtime_ns), "" if facts.st_size else EMPTY


def _is_file(folder: Path, name: str) -> bool:
    try:
        return os.path.isfile(os.path.join(folder, name))
    except ValueError:
        return False


def _image_column(table: Table, spec: DataSpec) -> str:
    """The column of paths: as asked, by its usual names, else the first that names files."""
    title, folder = table.path.name, table.path.parent
    if any(name and _is_file(folder, name) for name in table.columns):
        raise InputError(f"the first line of {table.path} must name the columns, such as image,label")
    if spec.image and spec.image not in table.columns:
        raise unknown(f"column of {title}", spec.image, table.columns)
    found = spec.image or named(table.columns, IMAGES)
    for name in table.columns if not found else ():
        cells = [row.get(name) for row in table.first]
        if any(isinstance(cell, str) and cell and _is_file(folder, cell) for cell in cells):
            return name
    if found:
        return found
    listed = ", ".join(table.columns)
    raise InputError(f"{title}: no column names files that are there; name one with --image; it has {listed}")


def _separated(path: Path) -> Table:
    """A CSV or TSV file."""
    rows = _rows(path)
    header = tuple(name.strip() for name in next(rows, ()))
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise InputError(f"{path} has two columns called '{twice[0]}'; rename one")
    first = [dict(zip(header, row, strict=True)) for row in itertools.islice(rows, FIRST)]

    def read(names: Sequence[str]) -> dict[str, Column]:
        cells = [(header.index(name), Cells(name, path.name)) for name in names]
        for row in itertools.islice(_rows(path), 1, None):
            for place, column in cells:
                column.add(row[place])
        return {column.name: column.column() for _, column in cells}

    return Table(path, header, first, read)


def _rows(path: Path) -> Iterator[list[str]]:
    """The rows of a CSV file, of one length; the first is the header, and blank lines are passed over."""
    with _text(path) as file:
        line = file.readline()
        file.seek(0)
        counts = {mark: line.count(mark) for mark in (",", ";", "\t")}
        mark = "\t" if path.suffix.lower() == ".tsv" else max(counts, key=counts.__getitem__)
        spaced = f"{mark} " in line and f"{mark} " != line.strip()  # the header says that rows are written so, too
        reader = csv.reader(file, delimiter=mark, skipinitialspace=spaced, strict=True)
        width = 0
        try:
            for row in reader:
                width = width or len(row)
                if row and len(row) != width:
                    raise InputError(f"line {reader.line_num} of {path} has {len(row)} fields, the header {width}")
                if row:
                    yield row
        except csv.Error as error:
            raise InputError(f"line {reader.line_num} of {path} cannot be read as CSV: {error}") from error


def _json_lines(path: Path) -> Table:
    """A file of one JSON object a line."""
    first = list(itertools.islice(_objects(path), FIRST))
    columns = tuple(dict.fromkeys(name for row in first for name in row))

    def read(names: Sequence[str]) -> dict[str, Column]:
        cells = [Cells(name, path.name) for name in names]
        for row in _objects(path):
            for column in cells:
                column.add(row.get(column.name))
        return {column.name: column.column() for column in cells}

    return Table(path, columns, first, read)


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    with _text(path) as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError) as error:
                raise InputError(f"line {number} of {path} is not JSON: {error}") from error
            if row is not None and not isinstance(row, dict):
                raise InputError(
                    f'line {number} of {path} is not a JSON object, such as {{"image": ..., "label": ...}}'
                )
            if row is not None:
                yield row


@contextlib.contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """A text file, opened."""
    try:
        with path.open("rb") as file:
            if b"\0" in file.read(4096):
                raise InputError(f"{path} is not a text file, whatever its name says")
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; save it as 'CSV UTF-8'") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _parquet(path: Path) -> Table:
    """A parquet file of paths."""
    from skipway.data.sources.arrow import holds_labels, need_pyarrow, parquet_part

    need_pyarrow()
    part = parquet_part(path, "")
    columns = tuple(column.name for column in part.schema if holds_labels(column.type))
    first = next(iter(part.batches(list(columns))), None)
    rows = first.slice(0, FIRST).to_pylist() if first is not None else []
    return Table(path, columns, rows, lambda names: {name: part.column(name) for name in names})
