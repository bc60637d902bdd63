"""The verbs about data alone: `skipway doctor`, and `skipway data ...`. They are hung into the command in cli.py."""

import json as json_text
import sys
from pathlib import Path
from typing import Any

from cyclopts import App
from rich.console import Console

from skipway.flags import DataFlags, settings_of

console = Console(width=None if sys.stdout.isatty() else 120)
data = App(name="data", help="Look at data, and pack it.")


def doctor(
    data: str,
    /,
    *,
    json: bool = False,
    html: Path | None = None,
    fix_list: Path | None = None,
    flags: DataFlags | None = None,  # pyrefly: ignore[invalid-annotation]
) -> int:
    """Find what is wrong with DATA before the first epoch: broken files, duplicates, leaks, lopsided classes.

    Files are only read. Exit code: 0 nothing to do, 10 warnings, 11 errors.

    **Examples**

    `skipway doctor photos/`

    `skipway doctor photos/ --html report.html --fix-list leave-out.txt`

    `skipway doctor scans/ --group 'patient(\\d+)' --json`

    Parameters
    ----------
    data
        A built-in set, a folder, a table, an archive: whatever `skipway train` takes.
    json
        Print one JSON object.
    html
        A new file for the report with pictures.
    fix_list
        A file for the names to leave out; `--exclude` gives it to training.
    """
    raise NotImplementedError
