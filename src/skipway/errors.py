"""What can go wrong through no fault of the program: said in one message, exit code 2."""

import difflib
import itertools
from collections.abc import Iterable, Mapping


class InputError(ValueError):
    """A value, file or folder of the user's that cannot be used; the message says what to do instead."""


class ReadError(InputError):
    """One image that cannot be read.

    Args:
        name: the file, as the user knows it.
        reason: why, in a few words.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self) -> tuple[type["ReadError"], tuple[str, str]]:  # it travels between processes
        return ReadError, (self.name, self.reason)


def stopped_by(bad: Mapping[str, str]) -> ReadError:
    """What is raised where bad files are to stop: the first of them, name -> reason."""
    name, reason = next(iter(bad.items()))
    return ReadError(name, f"{reason} (--bad-files skip leaves such files out)")


def for_example(bad: Mapping[str, str]) -> str:
    """The first bad file, to end a message with; "" where there is none."""
    return "".join(f"; {name}: {reason}" for name, reason in list(bad.items())[:1])


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among the known ones; it suggests the nearest.

    Example:
        >>> str(unknown("network", "resnet21", ["resnet20", "tutorial"]))
        "unknown network 'resnet21'. Did you mean 'resnet20'? Known: resnet20, tutorial"
    """
    names = list(known)
    nearest = max(names, key=lambda other: _likeness(name, other), default="")
    hint = f" Did you mean '{nearest}'?" if _likeness(name, nearest)[0] >= 0.4 else ""
    if len(names) > 24:
        names = [*sorted(names, key=lambda other: _likeness(name, other), reverse=True)[:8], "..."]
    listed = ", ".join(names)
    return InputError(f"unknown {what} '{name}'.{hint} Known: {listed}")


def _likeness(a: str, b: str) -> tuple[float, int]:
    """How alike two names are; the longer common beginning, then the first of them, wins."""
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
    return difflib.SequenceMatcher(None, a, b).ratio(), common
