"""Where skipway keeps what it fetched or was told, beside the user's own files."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$SKIPWAY_CACHE, else ~/.cache/skipway."""
    return Path(os.environ.get("SKIPWAY_CACHE") or Path.home() / ".cache/skipway")
