"""Where skipway keeps what it fetched, decoded or was told, beside the user's own files; and how files come there.

A file is written beside its place and moved there when it is whole, so that none is ever half there.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def cache_folder() -> Path:
    """$SKIPWAY_CACHE, else skipway in the XDG cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    if own := os.environ.get("SKIPWAY_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "skipway"


@contextlib.contextmanager
def written_beside(place: Path) -> Iterator[Path]:
    """A path to write to, which takes its place when the block ends well and goes away when it does not.

    Raises:
        OSError: it cannot be written.
    """
    beside = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        yield beside
        os.replace(beside, place)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def sweep(folder: Path) -> None:
    """Make a folder of the cache, and remove what processes that were killed left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*.tmp"):
        if not _alive(left.suffixes[-2][1:]):
            with contextlib.suppress(OSError):
                left.unlink()


def _alive(process: str) -> bool:
    if os.name == "nt":
        return True  # there is no harmless question
    try:
        os.kill(int(process), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except OSError:
        return True  # another user's
    return True


def keep_arrays(place: Path, arrays: Mapping[str, "np.ndarray"], facts: Mapping[str, Any]) -> None:
    """Keep arrays, and facts as JSON; where that cannot be, they are made again the next time."""
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    text = {key: json.dumps(value) for key, value in facts.items()}
    dense = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    with contextlib.suppress(OSError, SafetensorError):
        sweep(place.parent)
        with written_beside(place) as beside:
            save_file(dense, beside, text)


def kept_arrays(place: Path) -> tuple[dict[str, "np.ndarray"], dict[str, Any]] | None:
    """The arrays and facts that were kept there, mapped; None where there are none, or they are damaged."""
    if not place.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(place, framework="pt") as file:  # PyTorch's reader maps, NumPy's copies
            facts = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            return {key: file.get_tensor(key).numpy() for key in file.keys()}, facts  # noqa: SIM118
    except (OSError, SafetensorError, ValueError):
        return None
