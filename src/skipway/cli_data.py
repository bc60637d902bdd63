"""The verbs about data alone: `skipway doctor`, and `skipway data ...`. They are hung into the command in cli.py."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from skipway.flags import DataFlags, PreviewFlags, settings_of
from skipway.terminal import console, print_json, say

if TYPE_CHECKING:
    from skipway.data.doctor.examine import Diagnosis
    from skipway.data_spec import DataSpec

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
    from skipway import tables
    from skipway.data import exclude
    from skipway.data.doctor.report import check_place, write_report
    from skipway.data_spec import DataSpec

    spec = DataSpec(path=data, **settings_of(flags, None).get("data", {}))
    if html is not None:
        check_place(html)
    if fix_list is not None:
        exclude.check_place(fix_list)
    found = _examined(spec)
    if json:
        print_json(found.to_dict(), ascii=True)
    else:
        console.print(tables.diagnosis(found), soft_wrap=True)
    if html is not None:
        write_report(found, html)
    if fix_list is not None:
        exclude.write_list(fix_list, found.leave_out, data=data)
    for file in (html, fix_list):
        if file is not None:
            print(f"written to {file}", file=sys.stderr)
    return found.exit_code


def _examined(spec: "DataSpec") -> "Diagnosis":
    """The diagnosis; on a terminal, bars on standard error meanwhile."""
    from skipway.data.doctor.examine import doctor as examine

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    silent = not sys.stderr.isatty()
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=silent) as bars:

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        return examine(spec, progress=show)


@data.command
def pack(
    data: str,
    out: Path,
    /,
    *,
    shard_size_mb: float = 256,
    seed: int = 0,
    flags: DataFlags | None = None,  # pyrefly: ignore[invalid-annotation]
) -> int:
    """Write DATA as shards into OUT: tar files in WebDataset's layout, each a fair sample, for big disks and networks.

    Image files are copied byte for byte; DATA is only read. `skipway train OUT` trains on them.

    **Examples**

    `skipway data pack photos/ shards/`

    `skipway data pack scans/ shards/ --shard-size-mb 1000 --group 'patient(\\d+)'`

    Parameters
    ----------
    data
        A built-in set, a folder, a table, an archive: whatever `skipway train` takes.
    out
        A new folder. It appears when it is whole.
    shard_size_mb
        Millions of bytes; a shard ends with the sample that reaches them.
    seed
        Of the deal of samples to shards.
    """
    from skipway.data.sources.pack import pack as write
    from skipway.data_spec import DataSpec

    spec = DataSpec(path=data, **settings_of(flags, None).get("data", {}))
    packed = write(spec, out, shard_size_mb=shard_size_mb, seed=seed)
    samples = ", ".join(f"{split} {count:,}" for split, count in packed.samples.items())
    said = f"{packed.folder}: {samples} in {packed.shards:,} shards, {packed.bytes / 1e6:,.1f} MB"
    say(said)
    for name, reason in packed.bad.items():
        say(f"left out: {name}: {reason}", style="yellow")
    return 0


@data.command
def preview(
    data: str,
    /,
    *,
    out: Path = Path("preview.png"),
    seed: int = 0,
    flags: PreviewFlags | None = None,  # pyrefly: ignore[invalid-annotation]
) -> int:
    """Draw training images of DATA: as they are, as the network's size wants them, and as six epochs change them.

    **Examples**

    `skipway data preview photos/`

    `skipway data preview fashion-sample --randaugment 2 --cutout 0.25 --out changed.png`

    Parameters
    ----------
    data
        Whatever `skipway train` takes.
    out
        A .png file. Where it exists, the next free name is taken: nothing is written over.
    seed
        Which images, and the draws: those of a run with this seed.
    """
    from skipway.compose import compose
    from skipway.data.preview import preview as draw

    spec = compose(data, settings=settings_of(flags, None))
    with console.status("drawing"):
        file = draw(spec.data, augment=spec.augment, out=out, seed=seed)
    say(f"drawn in {file}")
    return 0
