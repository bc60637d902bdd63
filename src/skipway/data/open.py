"""`open_source`: from the name of some data to a Source."""

import os
from collections.abc import Callable
from pathlib import Path

from skipway.data.builtin import BUILTIN
from skipway.data.exclude import without
from skipway.data.source import Source
from skipway.data.sources.layout import refuse
from skipway.data_spec import DataSpec
from skipway.errors import InputError, unknown

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def open_source(spec: DataSpec, *, fault: Callable[[str], None] = refuse) -> Source:
    """Open a data set: built in or torchvision's by name, a folder, a table, arrays, an archive, shards.

    Built-in names win; write ./NAME for a folder of the same name.

    Args:
        spec: which, and how to read it.
        fault: what to do about a class that cannot be used: raise, or take note (the doctor does).

    Raises:
        InputError: nothing there, nothing in it, or damaged beyond use.
    """
    source = _open(spec, fault)
    return without(source, Path(spec.exclude).expanduser()) if spec.exclude else source


def _open(spec: DataSpec, fault: Callable[[str], None]) -> Source:
    """The whole set."""
    if not spec.path:
        raise InputError(f"name the data: a folder, a file, or one of {', '.join(BUILTIN)}")
    if not spec.path.isprintable():
        raise InputError(f"{spec.path!r} has characters that cannot be written down; rename the folder")
    if spec.path in BUILTIN:
        return BUILTIN[spec.path]()
    if spec.path.startswith("torchvision:"):
        from skipway.data.sources.torchvision_sets import open_torchvision

        return open_torchvision(spec)
    if "://" in spec.path or ("{" in spec.path and ".." in spec.path):
        from skipway.data.sources.shards import open_shards

        return open_shards(spec)
    path = Path(os.path.expanduser(spec.path))
    if not path.exists():
        looks_like_name = "/" not in spec.path and "." not in spec.path
        raise (unknown("data set", spec.path, BUILTIN) if looks_like_name else InputError(f"no such folder: {path}"))
    return _open_folder(path, spec, fault) if path.is_dir() else _open_file(path, spec, fault)


def _open_folder(path: Path, spec: DataSpec, fault: Callable[[str], None]) -> Source:
    """A folder: images in class folders, whatever lies beside them; else parquet or Arrow files, or shards."""
    from skipway.data.sources.folder import holds_images, open_folder

    if holds_images(path):
        return open_folder(path, spec, fault=fault)
    if any(path.glob("*.parquet")) or any(path.glob("data/*.parquet")):
        from skipway.data.sources.parquet import open_parquet

        return open_parquet(path, spec)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        from skipway.data.sources.parquet import open_saved

        return open_saved(path, spec)
    if any(path.glob("*.tar")) or any(path.glob("*/*.tar")):
        from skipway.data.sources.shards import open_shards

        return open_shards(spec)
    return open_folder(path, spec, fault=fault)


def _open_file(path: Path, spec: DataSpec, fault: Callable[[str], None]) -> Source:
    """A file: a table, arrays, an archive, or one shard."""
    name = path.name.lower()
    if name.endswith(TABLES):
        from skipway.data.sources.table import open_table

        return open_table(path, spec)
    if name.endswith(".npz"):
        from skipway.data.sources.arrays import open_arrays

        return open_arrays(path, spec)
    if name.endswith(".tar"):
        from skipway.data.sources.shards import is_shard, open_shards

        if is_shard(path):
            return open_shards(spec)
    if name.endswith(ARCHIVES):
        from skipway.data.sources.archive import open_archive

        return open_archive(path, spec, fault=fault)
    kinds = ", ".join([*TABLES, ".npz", *ARCHIVES])
    raise InputError(f"{path} is a file of no kind that holds a data set; name a folder of images, or one of {kinds}")
