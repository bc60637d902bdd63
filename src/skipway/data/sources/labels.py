"""Columns of a table -> classes and labels, splits and groups, whatever the table came from.

Classes go by name: where one split declares or lists them in another order than another, names decide.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skipway.data.sources.columns import Column, named
from skipway.data.sources.layout import SPLIT_NAMES
from skipway.errors import InputError, unknown

IMAGES = ("image", "img", "path", "file", "filename", "file_name", "filepath", "file_path", "image_path", "image_file")
LABELS = ("label", "labels", "class", "category", "target", "y")
SPLITS = ("split", "subset", "partition", "fold", "set")
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
ON_OFF = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1, "false": 0, "true": 1}


def find_labels(asked: Sequence[str], guesses: Sequence[str], columns: Sequence[str], title: str) -> tuple[str, ...]:
    """Which columns hold the labels: those asked for, else by their usual names, else the only one there is.

    Args:
        asked: --label.
        guesses: the columns that may.
        columns: all of them.
        title: what to call the table in a message.

    Raises:
        InputError: no such column, or it is unclear which.
    """
    for name in asked:
        if name not in columns:
            raise unknown(f"column of {title}", name, columns)
    if asked:
        return tuple(dict.fromkeys(asked))
    found = named(guesses, LABELS) or (guesses[0] if len(guesses) == 1 else "")
    if not found:
        raise InputError(f"{title}: which column holds the labels? Name it with --label; it has {', '.join(columns)}")
    return (found,)


def find_splits(
    columns: Sequence[str], read: Callable[[str], Column], count: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The splits by a column that names them; without one, all rows are one undivided set.

    Args:
        columns: names of those that may.
        read: name -> the column.
        count: rows.

    Returns:
        Rows of "train", "val", "test" (those that occur) or "all", and the rows that name no split, int64.

    Raises:
        InputError: a column called "split", or one that has train, val or test in places, holds anything else.
    """
    for name in SPLITS:
        if (found := named(columns, (name,))) and is_split(column := read(found)):
            return split_rows(column)
    return {"all": np.arange(count)}, np.zeros(0, np.int64)


@dataclass(frozen=True)
class Labels:
    """What label columns say.

    Args:
        classes: names; a label is a position in them.
        labels: (N,) int64, or (N, K) uint8 of 0 and 1; 0 where a row has none.
        missing: (N,) bool, the rows without a label; never where an image may have several.
    """

    classes: tuple[str, ...]
    labels: Tensor
    missing: np.ndarray


def make_labels(columns: Sequence[Column], separator: str, splits: dict[str, np.ndarray]) -> Labels:
    """Classes and labels.

    One column of names or numbers gives a label a row. One whose cells hold several (lists, or text with a separator)
    and several columns of 0 and 1 give any number of labels a row; an empty cell then is none.

    Args:
        columns: (N,) each.
        separator: text between the labels of a cell; "": a cell is one label.
        splits: name -> row numbers; where there is a train split, the classes are those that it has.

    Raises:
        InputError: no labels, mixed types, values that are no labels, or a class that train lacks.
    """
    if len(columns) > 1:
        hot = np.stack([_on_off(column)[column.codes] for column in columns], 1)
        classes = tuple(column.name for column in columns)
        return Labels(classes, torch.from_numpy(hot), np.zeros(len(hot), bool))
    [column] = columns
    cells = _cells(column, separator)
    several = bool(separator) or any(isinstance(column.values[code], tuple) for code in cells)
    classes = _classes(column, cells, splits)
    where = {name: position for position, name in enumerate(classes)}
    if several:
        hot = np.zeros((len(column.values) + 1, len(classes)), np.uint8)
        for code, names in cells.items():
            hot[code, [where[name] for name in names]] = 1
        return Labels(classes, torch.from_numpy(hot[column.codes]), np.zeros(len(column), bool))
    positions = np.full(len(column.values) + 1, -1)
    for code, names in cells.items():
        positions[code] = where[names[0]] if names else -1
    numbers = positions[column.codes]
    return Labels(classes, torch.from_numpy(numbers.clip(0)), numbers < 0)


def _on_off(column: Column) -> np.ndarray:
    """Code -> 0 or 1, uint8; empty cells (the last code) are 0."""
    table = np.zeros(len(column.values) + 1, np.uint8)
    for code in column.used():
        text = str(column.values[code]).strip()
        if text not in ON_OFF:
            raise InputError(f"{column} must be 0 or 1 in every row (several label columns: multi-label), got '{text}'")
        table[code] = ON_OFF[text]
    return table


def _cells(column: Column, separator: str) -> dict[int, tuple[str, ...]]:
    """Code -> the class names that such a cell says."""
    cells: dict[int, tuple[Any, ...]] = {}
    for code in column.used():
        value = column.values[code]
        parts = value.split(separator) if separator and isinstance(value, str) else value
        cells[code] = tuple(parts) if isinstance(parts, (list, tuple)) else (parts,)
    if column.classes:
        return cells
    examples: dict[str, Any] = {}
    shapes: dict[bool, Any] = {}
    for code, parts in cells.items():
        shapes.setdefault(isinstance(column.values[code], tuple), column.values[code])
        for part in parts:
            examples.setdefault(_kind(part, column), part)
    for mixed in (examples, shapes):
        if len(mixed) > 1:
            listed = " and ".join(map(repr, mixed.values()))
            raise InputError(f"{column} mixes labels of different types, such as {listed}")
    return {code: tuple(filter(None, map(_text, parts))) for code, parts in cells.items()}


def _kind(value: Any, column: Column) -> str:
    for kind, types in (("text", str), ("bool", bool), ("number", (int, float))):
        if isinstance(value, types):
            return kind
    raise InputError(f"{column} holds {str(value)[:60]}: neither text nor a number, nor a list of them")


def _text(value: Any) -> str:
    """A label as a class name; whole numbers without a point."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _classes(column: Column, cells: dict[int, tuple[str, ...]], splits: dict[str, np.ndarray]) -> tuple[str, ...]:
    """The class names in order: as declared, else those of train (where there is one), numbers by size."""
    train = splits.get("train")
    deciding = column.used() if train is None else column.at(train).used()
    names = column.classes or tuple(sorted({name for code in deciding for name in cells[code]}))
    for split, rows in splits.items():
        extra = sorted({name for code in column.at(rows).used() for name in cells[code]} - set(names))
        if extra:
            listed = f"{', '.join(extra[:8])}{', ...' if len(extra) > 8 else ''}"
            raise InputError(f"{column}: {split} has classes that train lacks: {listed}")
    if not names:
        raise InputError(f"{column} holds no label in any row")
    for name in names:
        if not name.isprintable():
            raise InputError(f"{column} holds the class {name!r}, whose characters cannot be written down")
    if not column.classes and all(map(NUMBER.fullmatch, names)):
        names = tuple(sorted(names, key=Decimal))
    return names


def is_split(column: Column) -> bool:
    """Whether a column tells splits apart: by its name, or by one value at least."""
    texts = (str(column.values[code]).strip().lower() for code in column.used())
    return column.name.lower() == SPLITS[0] or any(text in SPLIT_NAMES for text in texts)


def split_rows(column: Column) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A split column -> rows of train, val and test, and the rows that name none."""
    texts = {code: str(column.values[code]).strip().lower() for code in column.used()}
    others = sorted({text for text in texts.values() if text not in SPLIT_NAMES})
    if others:
        listed = ", ".join(others[:8])
        raise InputError(f"{column} holds {listed}; a split is one of {', '.join(SPLIT_NAMES)}")
    names = ("train", "val", "test")
    table = np.full(len(column.values) + 1, -1)
    for code, text in texts.items():
        table[code] = names.index(SPLIT_NAMES[text])
    found = table[column.codes]
    splits = {name: np.flatnonzero(found == number) for number, name in enumerate(names)}
    return {name: rows for name, rows in splits.items() if len(rows)}, np.flatnonzero(found < 0)


def make_groups(column: Column) -> Tensor:
    """A group column -> (N,) int64 numbers; a row without a group is its own."""
    groups = column.codes.copy()
    alone = groups < 0
    groups[alone] = len(column.values) + np.arange(alone.sum())
    return torch.from_numpy(groups)
