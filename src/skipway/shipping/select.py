"""Which image files a person means by files, folders and patterns."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from skipway.data.images.decode import is_image_name
from skipway.errors import InputError


def find_images(names: Sequence[str]) -> list[Path]:
    """The files behind names, each once, in the order given; folders and patterns give theirs sorted.

    Args:
        names: files (of any suffix), folders (searched whole for image files), patterns with *, ? and **.

    Raises:
        InputError: nothing named, or a name behind which there is nothing.
    """
    if not names:
        raise InputError("name at least one image, folder or pattern")
    found: list[Path] = []
    for name in names:
        path = Path(os.path.expanduser(name))
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if is_image_name(p.name) and p.is_file())
        elif path.exists():
            files = [path]
        else:
            files = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
        if not files:
            raise InputError(f"no images at {name}")
        found += files
    return list(dict.fromkeys(found))
