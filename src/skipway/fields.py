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
        if kind is float:
            value = _as_float(label, value)
            object.__setattr__(spec, f.name, value)
        if get_origin(kind) is Literal:
            if not isinstance(value, str) or value not in get_args(kind):
                raise unknown(label, value[:200] if isinstance(value, str) else shown(value), get_args(kind))
        elif get_origin(kind) is tuple:
            item = get_args(kind)[0]
            value = tuple(_as_float(label, v) if item is float else v for v in sequence(label, value))
            object.__setattr__(spec, f.name, value)
            if any(type(v) is not item for v in value):
                raise InputError(f"{label} must be a list of {item.__name__}, got {shown(value)}")
        elif type(value) is not kind:
            raise InputError(f"{label} must be {_KINDS[kind]}, got {shown(value)}")
        _check_bounds(label, value, f.metadata.get("low"), f.metadata.get("high"))


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def shown(value: Any) -> str:
    """A value as a message can show it, in one line of bearable length."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out whole numbers of up to 4300 digits
        text = f"a {type(value).__name__} of too many digits"
    return text if len(text) <= 200 else f"{text[:200]}..."


def sequence(label: str, value: Any) -> tuple[Any, ...]:
    """A list or tuple as a tuple. Raises InputError for anything else."""
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{label} must be a list, got {shown(value)}")
    return tuple(value)


def _as_float(label: str, value: Any) -> Any:
    """A whole number as a float, anything else as it is."""
    try:
        return float(value) if type(value) is int else value
    except OverflowError:
        raise InputError(f"{label} must be a finite number, got {shown(value)}") from None


def _check_bounds(label: str, value: Any, low: float | None, high: float | None) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{label} must be a finite number, got {value}")
    if (low is not None and value < low) or (high is not None and value > high):
        allowed = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
        raise InputError(f"{label} must be {allowed}, got {shown(value)}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InputError(f"{label} must fit into 64 bits, got {shown(value)}")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputError(f"{label} must be text that UTF-8 can hold, got {shown(value)}") from None
