"""What is wrong with a data set, told before the first epoch. Files are only ever read.

Every image is decoded once (thumbnails.py), every check looks at the table of what was seen (doctor_checks.py,
doctor_copies.py), and each thing found is a Finding. `quick_doctor` does without decoding.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from skipway.data.doctor.case import SEVERITIES, Case, Finding
from skipway.data.doctor.checks import CHECKS, HEADER_CHECKS
from skipway.data.doctor.copies import Copies, exact_copies, find_copies, to_leave_out
from skipway.data.doctor.statistics import statistics_of
from skipway.data.doctor.thumbnails import glance_at, look_at
from skipway.data.open import open_source
from skipway.data.source import Source, usable
from skipway.data_spec import DataSpec

EXIT_CODES = {"error": 11, "warning": 10, "note": 0}
Progress = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found.

    Args:
        path: of the data, as it was named.
        findings: the worst first.
        statistics: counts, sizes, mean and deviation, as plain data.
        leave_out: names that training had better leave out: unreadable files, of copies within train all but the
            first, of copies in train and in another split those in train.
        source: the data.
    """

    path: str
    findings: tuple[Finding, ...]
    statistics: dict[str, Any]
    leave_out: tuple[str, ...]
    source: Source = field(repr=False, compare=False)

    @property
    def exit_code(self) -> int:
        """0: nothing to do, 10: warnings, 11: errors."""
        return max((EXIT_CODES[finding.severity] for finding in self.findings), default=0)

    def count(self, severity: str) -> int:
        """How many findings are errors, warnings or notes."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON: findings with all files, and the statistics."""
        findings = [{key: value for key, value in asdict(f).items() if key != "samples"} for f in self.findings]
        facts = {"data": self.path, "exit_code": self.exit_code, "findings": findings}
        return {**facts, "statistics": self.statistics, "leave_out": list(self.leave_out)}


def doctor(data: str | Path | DataSpec, *, progress: Progress | None = None) -> Diagnosis:
    """Find what is wrong with a data set: broken files, copies, leaks between splits, lopsided classes, odd formats.

    Args:
        data: a built-in set's name, a folder or file, or a DataSpec that says how to read it.
        progress: called with (what is done, done, total) on the way.

    Returns:
        The diagnosis.

    Raises:
        InputError: there is nothing there to look at.

    Example:
        >>> skipway.doctor("photos/").exit_code  # doctest: +SKIP
        10
    """
    spec = replace(data, bad_files="skip") if isinstance(data, DataSpec) else DataSpec(str(data))
    faults: list[str] = []
    source = open_source(spec, fault=faults.append)
    return diagnose(source, spec, faults=tuple(faults), progress=progress)


def diagnose(
    source: Source, spec: DataSpec, *, faults: tuple[str, ...] = (), progress: Progress | None = None
) -> Diagnosis:
    """The same for data that is open already; `faults`: what opening it complained of."""

    def told(what: str) -> Callable[[int, int], object] | None:
        return None if progress is None else lambda done, total: progress(what, done, total)

    looks = look_at(source, usable(source), spec.workers, progress=told("reading"))
    case = Case.of(source, spec, looks, faults)
    copies = find_copies(case, progress=told("comparing"))
    findings = [*(finding for check in CHECKS for finding in check(case)), *copies.findings(case)]
    return Diagnosis(spec.path, _sorted(findings), statistics_of(case), _leave_out(case, copies), source)


def quick_doctor(source: Source, spec: DataSpec) -> list[Finding]:
    """What can be told without decoding: headers, classes, groups, and files that are equal to the byte.

    Args:
        source: the data, open.
        spec: how it was opened.

    Returns:
        Findings, the worst first. Above 20,000 images headers and copies are not looked at.
    """
    case = Case.of(source, spec, glance_at(source, usable(source), spec.workers), ())
    found = [finding for check in HEADER_CHECKS for finding in check(case)]
    return list(_sorted([*found, *exact_copies(case).findings(case)]))


def _sorted(findings: list[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def _leave_out(case: Case, copies: Copies) -> tuple[str, ...]:
    in_use = set(np.concatenate(list(case.parts.values())).tolist()) if case.parts else set()
    broken = [case.source.name(i) for i in range(len(case.source)) if i not in in_use] if case.source.bad else []
    broken = [name for name in broken if name in case.source.bad]
    return (*broken, *(case.source.name(i) for i in [*sorted(case.looks.unreadable), *to_leave_out(case, copies)]))
