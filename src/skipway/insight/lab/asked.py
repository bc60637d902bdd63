"""What the page sends, checked: bodies within limits, JSON objects, settings by their spec, edits from their text."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from skipway.errors import InputError, unknown
from skipway.fields import check, shown
from skipway.insight.edits import Edit, parse
from skipway.insight.plain import from_plain

S = TypeVar("S")
JSON_BYTES = 1 << 18
NUM_EDITS = 2048


class TooLarge(InputError):
    """A body beyond its limit."""


async def body_of(request: Request, limit: int) -> bytes:
    """The body, read no further than its limit. Raises TooLarge."""
    said = request.headers.get("content-length", "0")
    parts, size = [], int(said) if said.isdigit() else 0
    if size <= limit:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                break
            parts.append(part)
    if size > limit:
        allowed = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit >> 10} KiB"
        raise TooLarge(f"that is larger than the {allowed} that are taken")
    return b"".join(parts)


async def json_of(request: Request, known: Sequence[str]) -> dict[str, Any]:
    """The body as a JSON object with no other fields than the known ones. Raises InputError."""
    try:
        table = json.loads(await body_of(request, JSON_BYTES) or b"{}")
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("the request is no JSON") from None
    if not isinstance(table, dict):
        raise InputError("the request must be a JSON object")
    for key in table:
        if key not in known:
            raise unknown("field", str(key)[:80], known)
    return table


def settings_of(value: Any, defaults: S, where: str) -> S:
    """Settings from a JSON object: what it leaves out stays as in the defaults. Raises InputError."""
    kind = type(defaults)
    fields = [f.name for f in dataclasses.fields(kind)]  # pyrefly: ignore[bad-argument-type]
    if not isinstance(value, dict):
        raise InputError(f"{where} must be an object of settings, got {shown(value)}")
    for key in value:
        if key not in fields:
            raise unknown(f"setting of {where}", str(key)[:80], fields)
    table = {name: value.get(name, getattr(defaults, name)) for name in fields}
    if any(f.metadata for f in dataclasses.fields(kind)):  # pyrefly: ignore[bad-argument-type]
        made = kind(**table)  # which checks itself, with bounds
        check(made, where)
        return made
    try:
        return from_plain(_plain(table), kind)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the settings of {where} cannot be read: {error}") from None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def edits_of(value: Any) -> tuple[Edit, ...]:
    """Edits from a list of texts. Raises InputError."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise InputError("edits must be a list of texts, as 'block:stage1.block2'")
    if len(value) > NUM_EDITS:
        raise InputError(f"{len(value):,} edits are more than the {NUM_EDITS:,} that are taken")
    return tuple(parse(text) for text in value)


def whole(value: Any, label: str, low: int, high: int) -> int:
    """A whole number within bounds. Raises InputError."""
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"{label} must be a whole number from {low} to {high}, got {shown(value)}")
    return value


def number(value: Any, label: str, low: float, high: float) -> float:
    """A number within bounds. Raises InputError."""
    if type(value) not in (int, float) or not low <= value <= high:
        raise InputError(f"{label} must be a number from {low:g} to {high:g}, got {shown(value)}")
    return float(value)
