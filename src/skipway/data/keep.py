"""Decode once, keep: in memory where a set fits, else in a file of the cache."""

from typing import Any

from torch import Tensor

from skipway.data.loader import Confirm, Loader


def keep_decoded(loader: Loader, wanted: Tensor, *, confirm: Confirm | None = None, progress: Any = None) -> None:
    """Decode the wanted samples and have the loader take them from there."""
