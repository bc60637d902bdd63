"""`open_source`: from the name of some data to a Source."""

import os
from pathlib import Path

from skipway.data.builtin import BUILTIN
from skipway.data.folder import FolderSource
from skipway.data.parquet import open_parquet
from skipway.data.source import Source
from skipway.errors import InputError, unknown
from skipway.spec import DataSpec


def open_source(spec: DataSpec) -> Source:
    """Open a data set: a built-in one by name, a folder of images, or a folder of parquet files.

    Built-in names win; write ./NAME for a folder of the same name.

    Raises:
        InputError: nothing there, nothing in it, or damaged beyond use.
    """
    if not spec.path:
        raise InputError(f"name the data: a folder, or one of {', '.join(BUILTIN)}")
    if not spec.path.isprintable():
        raise InputError(f"{spec.path!r} has characters that cannot be written down; rename the folder")
    path = Path(os.path.expanduser(spec.path))
    if spec.path in BUILTIN:
        source: Source = BUILTIN[spec.path]()
    elif not path.exists():
        looks_like_name = "/" not in spec.path and "." not in spec.path
        raise (unknown("data set", spec.path, BUILTIN) if looks_like_name else InputError(f"no such folder: {path}"))
    elif not path.is_dir():
        raise InputError(f"{path} is a file; name the folder that holds the images")
    elif any(path.glob("*.parquet")) or any(path.glob("data/*.parquet")):
        source = open_parquet(path, stop=spec.bad_files == "stop")
    else:
        source = FolderSource(path, stop=spec.bad_files == "stop")
    return source
