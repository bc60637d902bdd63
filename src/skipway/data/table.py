"""Tables of image paths and labels."""

from collections.abc import Callable
from pathlib import Path

from skipway.data.layout import refuse
from skipway.data.source import Source
from skipway.data_spec import DataSpec


def open_table(path: Path, spec: DataSpec) -> Source:
    """Open it. Raises InputError."""
    raise NotImplementedError
