"""Columns of a table by their distinct values.

A million rows then cost eight bytes each, and whatever is asked of a column is asked of its distinct values only.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from skipway.errors import InputError


@dataclass(frozen=True)
class Column:
    """A column by its distinct values.

    Args:
        name: what its table calls it.
        title: the table, as a message says it.
        codes: (N,) int64 positions in `values`; -1 where the cell is empty.
        values: text, numbers, bools, or tuples of those where a cell holds several.
        classes: all class names, in order, where the table declares them.
    """

    name: str
    title: str
    codes: np.ndarray
    values: Sequence[Any]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.codes)

    def __str__(self) -> str:
        return f"column '{self.name}' of {self.title}"

    def at(self, rows: np.ndarray) -> "Column":
        """Some of its rows, (n,) int64."""
        return replace(self, codes=self.codes[rows])

    def used(self) -> list[int]:
        """The codes that occur, sorted."""
        found = np.unique(self.codes)
        return found[found >= 0].tolist()


class Cells:
    """Makes a column out of cells that come one by one."""

    def __init__(self, name: str, title: str):
        self.name, self.title = name, title
        self.values: list[Any] = []
        self._codes = array("q")
        self._known: dict[Any, int] = {}

    def code(self, cell: Any) -> int:
        """The code of a value; None, "" and NaN are empty: -1."""
        if cell is None or cell == "" or cell != cell:
            return -1
        cell = tuple(cell) if isinstance(cell, list) else cell
        key = cell if isinstance(cell, (str, tuple)) else (type(cell), cell)  # True is not 1
        try:
            code = self._known.setdefault(key, len(self.values))
        except TypeError as error:
            what = f"column '{self.name}' of {self.title} holds {str(cell)[:60]}"
            raise InputError(f"{what}: neither text nor a number, nor a list of them") from error
        if code == len(self.values):
            self.values.append(cell)
        return code

    def add(self, cell: Any) -> None:
        """The next cell."""
        self._codes.append(self.code(cell))

    def column(self) -> Column:
        """All cells so far."""
        return Column(self.name, self.title, np.array(self._codes, np.int64), self.values)


def column_of(name: str, title: str, cells: Iterable[Any]) -> Column:
    """A column from its cells."""
    taken = Cells(name, title)
    for cell in cells:
        taken.add(cell)
    return taken.column()


def declare(column: Column, classes: Sequence[str]) -> Column:
    """A column of class numbers, or of lists of them, that stand for these names; -1 is no label.

    Raises:
        InputError: a number without a name.
    """

    def name_of(number: Any) -> str | None:
        if type(number) is not int or not -1 <= number < len(classes):
            raise InputError(f"{column} must lie in 0 ... {len(classes) - 1} (-1: no label), got {number!r}")
        return classes[number] if number >= 0 else None

    cells = Cells(column.name, column.title)
    new = [-1] * (len(column.values) + 1)
    for code in column.used():
        value = column.values[code]
        new[code] = cells.code([n for n in map(name_of, value) if n] if isinstance(value, tuple) else name_of(value))
    return replace(column, codes=np.array(new, np.int64)[column.codes], values=cells.values, classes=tuple(classes))


def join(columns: Sequence[Column], title: str) -> Column:
    """Columns one below the other; the first that declares classes does so for all."""
    cells = Cells(columns[0].name, title)
    codes = [np.array([*map(cells.code, column.values), -1], np.int64)[column.codes] for column in columns]
    declared = next((column.classes for column in columns if column.classes), ())
    return Column(cells.name, title, np.concatenate(codes), cells.values, declared)


def named(columns: Sequence[str], names: Sequence[str]) -> str:
    """The column that goes by one of these names, the first of them first, in any case; "" where none does."""
    lower = {column.lower(): column for column in reversed(columns)}
    return next((lower[name] for name in names if name in lower), "")
