"""How much memory this process may take: the machine's, or less where a control group (a container, a batch job) has a
limit of its own. Linux keeps those in files, of two versions."""

import contextlib
import os
from pathlib import Path

GROUPS, MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
LIMITS = {1: "memory.limit_in_bytes", 2: "memory.max"}
KILLS = {1: "memory.oom_control", 2: "memory.events.local"}


def memory() -> int:
    """Bytes of memory that this process may take."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        machine = 8 << 30
    return min([machine, *limits()])


def limits() -> list[int]:
    """Bytes that the control groups of this process may take, its own and those around it."""
    found = []
    for version, folder in _groups():
        for group in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # "max": none
                found.append(int((group / LIMITS[version]).read_text()))
            if group == MOUNTED:
                break
    return [limit for limit in found if limit > 0]


def kills() -> int:
    """How many processes of its control group the system has killed for want of memory, since that was made."""
    count = 0
    for version, folder in _groups():
        with contextlib.suppress(OSError, ValueError):
            rows = dict(row.split() for row in (folder / KILLS[version]).read_text().splitlines())
            count += int(rows.get("oom_kill", 0))
    return count


def group_name() -> str:
    """Names the control group whose kills are counted; "" where there is none."""
    return " ".join(str(folder) for _, folder in _groups())


def _groups() -> list[tuple[int, Path]]:
    """The version and folder of each control group for memory that this process is in."""
    try:
        rows = [row.split(":", 2) for row in GROUPS.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in (row for row in rows if len(row) == 3):
        version = 1 if "memory" in controllers.split(",") else 2
        if version == 2 and controllers:
            continue
        for root in ("memory", "") if version == 1 else ("", "unified"):
            place = MOUNTED / root / path.lstrip("/")
            if not place.is_dir():
                place = MOUNTED / root  # in a container, whose own group is what it sees at the top
            if (place / LIMITS[version]).is_file() or (place / KILLS[version]).is_file():
                found.append((version, place))
                break
    return found
