"""A list of files to leave out: what `doctor --fix-list` writes and `--exclude` takes.

One name a line, as the data names its samples. A line that begins with # is a remark. A name that one plain line
cannot hold (a line break, an odd beginning, bytes that are no text) stands as a JSON string, in double quotes.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch

from skipway.cache import written_beside
from skipway.data.source import Source, only
from skipway.errors import InputError

FIRST_LINE = "# skipway: files to leave out, one name a line; names with line breaks are JSON strings"


def write_list(path: Path, names: Iterable[str], *, data: str) -> None:
    """Write a list; only another such list is written over.

    Args:
        path: the file.
        names: of samples.
        data: where they come from, for the second line.

    Raises:
        InputError: something else lies there, or it cannot be written.
    """
    check_place(path)
    lines = [FIRST_LINE, f"# from {json.dumps(data)}", *(_line(name) for name in names)]
    try:
        with written_beside(path) as beside:
            beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"the list cannot be written to {path}: {error.strerror or error}") from error


def check_place(path: Path) -> None:
    """Raise InputError where a list may not be written: over anything but another list, or where there is no folder."""
    if not path.parent.is_dir():
        raise InputError(f"no such folder: {path.parent}")
    if not path.exists():
        return
    try:
        is_list = path.is_file() and path.read_bytes()[: len(FIRST_LINE)] == FIRST_LINE.encode()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not is_list:
        raise InputError(f"{path} is there already and is no list of files to leave out; choose another name")


def read_list(path: Path) -> list[str]:
    """The names of a list. Raises InputError where it cannot be read."""
    names = []
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise InputError(f"data.exclude {path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or line.startswith("#"):
            continue
        if line.startswith('"'):
            try:
                line = json.loads(line)
            except ValueError as error:
                raise InputError(f"line {number} of {path} begins as a JSON string and is none: {error}") from error
        names.append(line)
    return names


def without(source: Source, path: Path) -> Source:
    """A source whose splits lack the samples that a list names. What the list names in vain is noted in `bad`.

    Raises:
        InputError: the list cannot be read, names nothing of the data, or names all of it.
    """
    names = set(read_list(path))
    if not names:
        return source
    left_out = torch.tensor([source.name(index) in names for index in range(len(source))], dtype=torch.bool)
    if not left_out.any():
        raise InputError(f"data.exclude {path} names no sample of the data (the first is called {source.name(0)})")
    splits = only(source.splits or {"all": torch.arange(len(source))}, ~left_out)
    if not splits:
        raise InputError(f"data.exclude {path} names all samples of the data: nothing is left")
    bad = {name: reason for name, reason in source.bad.items() if name not in names}
    lacking = sorted(names - {source.name(index) for index in left_out.nonzero()[:, 0].tolist()} - set(source.bad))
    if lacking:
        bad[str(path)] = f"names {len(lacking):,} of {len(names):,} files that the data lacks, such as {lacking[0]}"
    return cast(Source, dataclasses.replace(cast(Any, source), splits=splits, bad=bad))


def _line(name: str) -> str:
    plain = name.isprintable() and name == name.strip() and not name.startswith(("#", '"'))
    return name if plain else json.dumps(name)
