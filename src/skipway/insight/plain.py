"""Results as plain data: dataclasses of numbers, words, tuples and tables to JSON and back."""

import dataclasses
import json
import math
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """What JSON can hold: dataclasses as objects, tuples as lists, numbers that are none as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_text(value: Any) -> str:
    """As JSON text."""
    return json.dumps(to_plain(value))


def from_plain(value: Any, kind: type[T]) -> T:
    """The inverse of to_plain; null for a float gives NaN. Raises TypeError or ValueError where it does not fit."""
    return _made(value, kind)


def _made(value: Any, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _made(value, next(a for a in arguments if a is not type(None)))
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if not isinstance(value, dict) or set(value) != {f.name for f in dataclasses.fields(kind)}:
            raise TypeError(f"no {kind}")
        return kind(**{k: _made(v, hints[k]) for k, v in value.items()})
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_made(v, arguments[0]) for v in value)
        return tuple(_made(v, a) for v, a in zip(value, arguments, strict=True))
    if origin is dict:
        return {_made(k, arguments[0]): _made(v, arguments[1]) for k, v in value.items()}
    if kind is float:
        return float("nan") if value is None else float(value)
    if kind is int and isinstance(value, str):  # a table's key
        return int(value)
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
