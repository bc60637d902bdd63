"""Where skipway keeps what it fetched, decoded or was told, beside the user's own files."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$SKIPWAY_CACHE, else skipway in the XDG cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    if own := os.environ.get("SKIPWAY_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "skipway"
