"""What all verbs print with, and the codes they end with."""

import json
import sys
from typing import Any

from rich.console import Console

DONE, BAD_INPUT, STOPPED = 0, 2, 75

console = Console(width=None if sys.stdout.isatty() else 120, emoji=False)


def say(text: str, *, style: str = "", where: Console | None = None) -> None:
    """A line as it is: nothing in it is markup."""
    (where or console).print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any, *, indent: int | None = 1, ascii: bool = False) -> None:
    """One JSON object. `ascii`: escape what is not, where a file's name may hold what is no text."""
    print(json.dumps(value, indent=indent, ensure_ascii=ascii))
