"""WebDataset shards."""

from collections.abc import Callable
from pathlib import Path

from skipway.data.layout import refuse
from skipway.data.source import Source
from skipway.data_spec import DataSpec


def is_shard(path: Path) -> bool:
    """Whether a tar file holds samples, not class folders."""
    raise NotImplementedError


def open_shards(spec: DataSpec) -> Source:
    """Open it. Raises InputError."""
    raise NotImplementedError
