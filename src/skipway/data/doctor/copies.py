"""The doctor's search for copies: the same image twice, on two sides of a split, or under two labels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from skipway.data.doctor.case import Case, Finding, Severity, counted
from skipway.data.doctor.duplicates import equal_rows, joined, near_pairs

LEAK_ADVICE = "the score of the other split is too good; --fix-list leaves out the copies in train"
LABEL_ADVICE = "decide on one label: at least one of them is wrong"
TWICE_ADVICE = "they count twice; --fix-list leaves out all but the first"


@dataclass(frozen=True)
class Copies:
    """Samples that are one image.

    Args:
        exact: groups of samples with the same pixels (for a quick look: the same bytes).
        near: groups that hold a pair of near duplicates; members of an exact group may be among them.
        mirrored: samples found as the mirror image of another.
    """

    exact: list[list[int]]
    near: list[list[int]]
    mirrored: frozenset[int] = frozenset()

    def findings(self, case: Case) -> Iterator[Finding]:
        """What they come to in this data set."""
        split, names = case.split_numbers(), list(case.parts)
        within = " in a split" if len(names) > 1 else ""
        for groups, kind, what in ((self.exact, "", "image"), (self.near, "near ", "near-identical image")):
            torn = [group for group in groups if len({split[i] for i in group}) > 1]
            if torn:
                many = counted(len(torn), what + " is", what + "s are")
                text = f"{many} in more than one split{_sides(torn, split, names)}"
                yield self._finding(case, f"{kind}leak", "error", text, LEAK_ADVICE, torn)
            named = [group for group in groups if len({case.label_text(i) for i in group}) > 1]
            if named:
                text = f"{counted(len(named), what + ' has', what + 's have')} different labels"
                yield self._finding(case, f"{kind}two labels", "error", text, LABEL_ADVICE, named)
            whole = [group for group in groups if len({split[i] for i in group}) == 1]
            if whole:
                text = f"{counted(len(whole), what + ' is', what + 's are')} there more than once{within}"
                yield self._finding(case, f"{kind}copies", "warning", text, TWICE_ADVICE, whole)

    def _finding(
        self, case: Case, kind: str, severity: Severity, text: str, advice: str, groups: list[list[int]]
    ) -> Finding:
        split, names = case.split_numbers(), list(case.parts)
        flat = [sample for group in groups for sample in group]
        side = [f"{name}, " if len(names) > 1 else "" for name in names]
        remarks = [f"{side[split[i]]}{case.label_text(i)}{', mirrored' if i in self.mirrored else ''}" for i in flat]
        found = case.finding(kind, severity, text, advice, flat, remarks)
        ends = np.cumsum([len(group) for group in groups]).tolist()
        places = tuple(tuple(range(end - len(group), end)) for group, end in zip(groups, ends, strict=True))
        return Finding(kind, severity, text, advice, found.files, found.remarks, places, found.samples)


def _sides(groups: list[list[int]], split: np.ndarray, names: list[str]) -> str:
    """ ": 12 of test, 3 of val" - how many images of each split but train are concerned."""
    counts = {name: len({i for group in groups for i in group if names[split[i]] == name}) for name in names}
    told = [f"{count:,} of {name}" for name, count in counts.items() if count and name != "train"]
    return f": {', '.join(told)}" if told else ""


def exact_copies(case: Case) -> Copies:
    """Files that are equal to the byte; in memory, images that are."""
    seen = case.looks.seen
    content = case.looks.table["content"][seen]
    return Copies(_groups(seen, content), [])


def find_copies(case: Case, *, progress: Callable[[int, int], object] | None = None) -> Copies:
    """Images with the same pixels, and near duplicates."""
    seen = case.looks.seen
    exact = _groups(seen, case.looks.table["pixels"][seen])
    first_of = {sample: group[0] for group in exact for sample in group}
    once = np.array([sample for sample in seen.tolist() if first_of.get(sample, sample) == sample], np.int64)
    pairs = near_pairs(case.looks.table["thumb"][once], progress=progress)
    places = once[pairs.places.numpy()].reshape(-1, 2)
    members = {group[0]: group for group in exact}
    groups = joined(places, len(case.source))
    near = [sorted(copy for sample in group for copy in members.get(sample, [sample])) for group in groups]
    upright = set(places[~pairs.mirrored.numpy()].reshape(-1).tolist())
    mirrored = set(places[pairs.mirrored.numpy()].reshape(-1).tolist()) - upright
    return Copies(exact, near, frozenset(mirrored))


def to_leave_out(case: Case, copies: Copies) -> list[int]:
    """Of copies on two sides those in train, of others within train (or one undivided set) all but the first."""
    split, names = case.split_numbers(), list(case.parts)
    main = names.index("train") if "train" in names else names.index("all") if "all" in names else -1
    dropped: set[int] = set()
    for group in [*copies.exact, *copies.near]:
        inside = [i for i in group if split[i] == main]
        dropped.update(inside if len(inside) < len(group) else inside[1:])
    return sorted(dropped)


def _groups(samples: np.ndarray, hashes: np.ndarray) -> list[list[int]]:
    if not len(hashes):
        return []
    rows = np.ascontiguousarray(hashes).view(np.uint8).reshape(len(hashes), -1)
    return [samples[group].tolist() for group in equal_rows(rows)]
