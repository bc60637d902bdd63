"""Code of the user's that a network is made by: run where the user named it, asked about where a run names it.

A run folder may come from anyone, and `python:module:function` in it would run whatever goes by that name here. So
a name is trusted once its user has typed it (or said --trust-code), together with the place that it was found in.
"""

import importlib.machinery
import json
import os
import sys
from pathlib import Path

from skipway.cache import cache_folder
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
    return str(found.origin or list(found.submodule_search_locations or []))


def trust(spec: object) -> None:
    """Remember that the user named this code. Other networks need no trust."""
    if isinstance(spec, ForeignSpec) and spec.library == "python":
        entry = [spec.name, find_code(spec)]
        known = _known()
        if entry not in known:
            path = cache_folder() / NAME
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps([*known, entry], indent=1))


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
    place = find_code(spec)
    if not trust_code and [spec.name, place] not in _known():
        raise InputError(
            f"the run's network is made by code, {spec.name}, found here in {place}. If that is the code you mean "
            "and you trust it, add --trust-code (in Python: trust_code=True)"
        )


def _known() -> list[list[str]]:
    """Pairs of name and place."""
    path: Path = cache_folder() / NAME
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return known if isinstance(known, list) else []
