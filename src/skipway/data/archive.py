"""zip and tar archives of class folders, read in place."""

from collections.abc import Callable
from pathlib import Path

from skipway.data.layout import refuse
from skipway.data.source import Source
from skipway.data_spec import DataSpec


def open_archive(path: Path, spec: DataSpec, *, fault: Callable[[str], None] = refuse) -> Source:
    """Open it. Raises InputError."""
    raise NotImplementedError
