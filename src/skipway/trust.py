"""Code of the user's that a network is made by: run where the user named it, asked about where a run names it.

A run folder may come from anyone, and `python:module:function` in it would run whatever goes by that name here. So
a name is trusted once its user has typed it for training (or trained with --trust-code), together with the place where
the module lies and its content: other code under that name is asked about again.
"""

import contextlib
import hashlib
import importlib.machinery
import json
import os
import sys
from pathlib import Path

from skipway.cache import cache_folder, sweep, written_beside
from skipway.errors import InputError
from skipway.foreign_spec import ForeignSpec

NAME = "trusted-code.json"


def find_code(spec: ForeignSpec) -> str:
    """Where the module of a python: network lies; nothing of it is run.

    Raises:
        InputError: there is no such module in the current folder or on the path.
    """
    top = spec.path.split(":")[0].split(".")[0]
    found = importlib.machinery.PathFinder.find_spec(top, [os.getcwd(), *sys.path])
    if found is None:
        raise InputError(
            f"network {spec.name}: there is no module {top} in this folder or on Python's path; "
            f"go where {top}.py is, or put its folder on PYTHONPATH"
        )
    return code_place(found)


def code_place(found: importlib.machinery.ModuleSpec | None) -> str:
    """A module's file, or a package's folders, as text."""
    return str(found and (found.origin or [*(found.submodule_search_locations or [])]))


def trust(spec: object) -> None:
    """Remember that the user named this code; where that cannot be written down, it is asked about again."""
    if isinstance(spec, ForeignSpec) and spec.library == "python":
        entry, known = _entry(spec), _known()
        if entry not in known:
            with contextlib.suppress(OSError):
                sweep(cache_folder())
                with written_beside(cache_folder() / NAME) as beside:
                    beside.write_text(json.dumps([*known, entry], indent=1))


def _entry(spec: ForeignSpec) -> list[str]:
    """Name, place, and a hash of the module's file, or of all of a package's."""
    place = Path(find_code(spec))
    files = sorted(place.parent.rglob("*.py")) if place.name == "__init__.py" else [place] if place.is_file() else []
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return [spec.name, str(place), digest.hexdigest()]


def check_trust(spec: object, *, trust_code: bool) -> None:
    """Refuse code that nobody here has named.

    Args:
        spec: a network's.
        trust_code: the user says that it may run.

    Raises:
        InputError: with what to say.
    """
    if not isinstance(spec, ForeignSpec) or spec.library != "python":
        return
    entry = _entry(spec)
    if not trust_code and entry not in _known():
        raise InputError(
            f"the network is made by code, {spec.name}, found here in {entry[1]}; nobody named it here, or it changed "
            "since. If that is the code you mean and you trust it, add --trust-code (in Python: trust_code=True)"
        )


def _known() -> list[list[str]]:
    """What was named here: name, place, hash."""
    path: Path = cache_folder() / NAME
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return []
    return known if isinstance(known, list) else []
