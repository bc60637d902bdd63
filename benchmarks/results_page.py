"""results.md: a section for each benchmark, put in place of what stands under its heading; figures, and machines."""

import datetime
import os
import platform
import re
import statistics
from collections.abc import Iterable
from pathlib import Path

import torch

from skipway.training.machine import device_name

PAGE = Path(__file__).parent / "results.md"


def put_section(heading: str, section: str) -> None:
    """Write a section into results.md, and say so.

    Args:
        heading: its line, with the two hashes.
        section: what stands below it.
    """
    PAGE.write_text(replaced(PAGE.read_text(), heading, section))
    print(f"written to {PAGE}")


def replaced(text: str, heading: str, section: str) -> str:
    """A page with the section under this heading in place of the one it has, or at its end."""
    made = f"{heading}\n\n{section}\n"
    found = re.search(rf"^{re.escape(heading)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if not found:
        return f"{text.rstrip()}\n\n{made}"
    return f"{text[: found.start()]}{made}\n{text[found.end() :]}".rstrip() + "\n"


def spread(values: Iterable[float], digits: int = 0) -> str:
    """The median, and in brackets the extremes."""
    values = list(values)
    low, middle, high = (f"{v:,.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def machine() -> str:
    """What figures hold for, and of which day they are."""
    device = device_name(torch.device("cpu"))
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{device}, {os.cpu_count()} cores, {versions}, {datetime.date.today()}"
