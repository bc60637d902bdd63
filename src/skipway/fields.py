"""Fields of a spec: made with a help text and bounds, checked in one place."""

import dataclasses
import math
from dataclasses import field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from skipway.errors import InputError, unknown


def option(default: Any, text: str, *, low: float | None = None, high: float | None = None) -> Any:
    """A field with its help text and its bounds (both inclusive)."""
    return field(default=default, metadata={"help": text, "low": low, "high": high})


def check(spec: Any, where: str) -> None:
    """Check types, choices and bounds of every field; whole numbers become floats where a float is meant.

    Raises:
        InputError: naming the field, what came and what is allowed.
    """
    hints = get_type_hints(type(spec))
    for f in dataclasses.fields(spec):
        value, kind, label = getattr(spec, f.name), hints[f.name], f"{where}.{f.name}"
        if kind is float and type(value) is int:
            value = float(value)
            object.__setattr__(spec, f.name, value)
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise unknown(label, str(value), [str(a) for a in get_args(kind)])
        elif get_origin(kind) is tuple:
            item = get_args(kind)[0]
            value = tuple(float(v) if item is float and type(v) is int else v for v in sequence(label, value))
            object.__setattr__(spec, f.name, value)
            if any(type(v) is not item for v in value):
                raise InputError(f"{label} must be a list of {item.__name__}, got {value!r}")
        elif type(value) is not kind:
            raise InputError(f"{label} must be {_KINDS[kind]}, got {value!r}")
        _check_bounds(label, value, f.metadata.get("low"), f.metadata.get("high"))


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def sequence(label: str, value: Any) -> tuple[Any, ...]:
    """A list or tuple as a tuple. Raises InputError for anything else."""
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{label} must be a list, got {value!r}")
    return tuple(value)


def _check_bounds(label: str, value: Any, low: float | None, high: float | None) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{label} must be a finite number, got {value}")
    if (low is not None and value < low) or (high is not None and value > high):
        allowed = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
        raise InputError(f"{label} must be {allowed}, got {value}")
