"""Any experiment's result as one CSV: a row a number, with where it stands."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from skipway.insight.plain import to_plain


def csv_of(result: Any) -> str:
    """A table `field, place, value`: 'blocks.accuracy', '3', 0.91; places within places as '3.0'."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["field", "place", "value"])
    writer.writerows(_rows(to_plain(result), (), ()))
    return out.getvalue()


def _rows(value: Any, names: tuple[str, ...], places: tuple[int, ...]) -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _rows(inner, (*names, key), places)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _rows(inner, names, (*places, place))
    else:
        text = f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" else value  # no formula in a sheet
        yield ".".join(names), ".".join(map(str, places)), "" if value is None else text
