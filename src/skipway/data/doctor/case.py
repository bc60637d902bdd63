"""What the doctor's checks look at, and what they come back with."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from skipway.data.doctor.thumbnails import Looks
from skipway.data.source import Source, is_multilabel
from skipway.data_spec import DataSpec

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Args:
        kind: a word or two, the same for the same kind of thing.
        severity: error: training would stop, or its numbers would be wrong; warning: worth a look; note: good to know.
        message: one line.
        advice: what to do; "" where there is nothing to do.
        files: the names concerned.
        remarks: what is to say about each of them; as many as files, or none.
        groups: positions in files that belong together, as copies do.
        samples: the number of each file in the data, -1 where it is none; as many as files, or none.
    """

    kind: str
    severity: Severity
    message: str
    advice: str = ""
    files: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    samples: tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    """A data set under examination.

    Args:
        source, spec: the data, and how it is read.
        looks: what was seen of its images.
        faults: what opening it complained of.
        parts: split -> samples, (n,) int64.
    """

    source: Source
    spec: DataSpec
    looks: Looks
    faults: tuple[str, ...]
    parts: dict[str, np.ndarray]

    @staticmethod
    def of(source: Source, spec: DataSpec, looks: Looks, faults: tuple[str, ...]) -> "Case":
        """With the splits, less what could not be read."""
        bad = np.fromiter(looks.unreadable, np.int64, len(looks.unreadable))
        parts = {name: np.setdiff1d(part.numpy(), bad) for name, part in source.splits.items()}
        return Case(source, spec, looks, faults, parts)

    def names(self, samples: Iterable[int]) -> tuple[str, ...]:
        """Of samples."""
        return tuple(self.source.name(int(i)) for i in samples)

    def finding(
        self, kind: str, severity: Severity, message: str, advice: str, samples: Sequence[int] | np.ndarray,
        remarks: Iterable[str] = (),
    ) -> Finding:  # fmt: skip
        """A finding about samples."""
        numbers = tuple(int(i) for i in samples)
        return Finding(kind, severity, message, advice, self.names(numbers), tuple(remarks), samples=numbers)

    def column(self, name: str) -> np.ndarray:
        """A column of the table for all samples that were seen."""
        return self.looks.table[name][self.looks.seen]

    def where(self, chosen: np.ndarray) -> np.ndarray:
        """The samples of a mask over those that were seen."""
        return self.looks.seen[chosen]

    def split_numbers(self) -> np.ndarray:
        """(N,) which of `parts` each sample is in; -1: none."""
        numbers = np.full(len(self.source), -1)
        for number, part in enumerate(self.parts.values()):
            numbers[part] = number
        return numbers

    def label_text(self, sample: int) -> str:
        """The class, or the classes, of a sample."""
        label = self.source.labels[sample]
        if not is_multilabel(self.source):
            return self.source.classes[int(label)]
        return " + ".join(self.source.classes[i] for i in label.nonzero()[:, 0].tolist()) or "none"


def shown(name: str) -> str:
    """A name as one line of a table shows it: what cannot be seen is escaped, and split accents (NFD) are."""
    if name.isprintable() and unicodedata.normalize("NFC", name) == name:
        return name
    return "".join(
        letter if letter.isprintable() and not unicodedata.combining(letter) else _escaped(letter) for letter in name
    )


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def counted(number: int, one: str, many: str = "") -> str:
    """ "1 file", "3 files"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
