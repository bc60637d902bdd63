"""Which samples are for training, for validation and for the test: the data's own, stratified, grouped, or k-fold.

What is held out is dealt so that every class gives its share, and a group (a patient, say) stays on one side.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from skipway import randomness
from skipway.data.source import Source, usable
from skipway.data_spec import DataSpec
from skipway.errors import InputError


@dataclass(frozen=True)
class Splits:
    """Sample indices, (n,) int64 each; `test` is None where the data has none. `held_out`: val came out of train."""

    train: Tensor
    val: Tensor
    test: Tensor | None
    held_out: bool


def make_splits(source: Source, spec: DataSpec) -> Splits:
    """The splits to train with: of a file, the data's own, or with a share or fold of train held out.

    Raises:
        InputError: the data has a val or test split but no train, too little to hold anything out, or a split file
            that does not fit.
    """
    if spec.split_file:
        return read_split(Path(spec.split_file).expanduser(), source)
    given = dict(source.splits) or {"all": torch.arange(len(source))}
    if "all" in given:
        given = {"train": given["all"]}
    if "train" not in given:
        raise InputError(f"{spec.path} has {' and '.join(given)} but no train split: there is nothing to train on")
    train, val, test = given["train"], given.get("val"), given.get("test")
    held_out = val is None or spec.folds > 0
    if spec.group and source.groups is None:
        raise InputError(f"data.group '{spec.group}': {spec.path} knows no groups")
    strata = _strata(source.labels)
    if spec.folds:
        pool = train if val is None else torch.cat([train, val]).sort().values
        part = fold_numbers(pool, strata, spec.folds, spec.split_seed, groups=source.groups)
        train, val = pool[part != spec.fold], pool[part == spec.fold]
    elif val is None:
        train, val = hold_out(train, strata, spec.val_fraction, spec.split_seed, groups=source.groups)
    assert val is not None
    if not len(val) or not len(train):
        what = "groups" if source.groups is not None else "images"
        raise InputError(f"{spec.path} has too few {what} to hold some out for validation: two of each class at least")
    return Splits(train, val, test, held_out)


def hold_out(
    indices: Tensor, strata: Tensor, fraction: float, seed: int, *, groups: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Split samples in two so that every class gives the same share.

    Args:
        indices: (N,) int64 sample indices.
        strata: (M,) int64, the class of every sample of the source.
        fraction: share held out, in (0, 1).
        seed: of the choice.
        groups: (M,) int64; samples of the same number stay together.

    Returns:
        (kept, held out), both sorted. Without groups, a class of two or more gives at least one and keeps at least
        one.
    """
    if groups is not None:
        bins = _deal(indices, strata, groups, np.array([1 - fraction, fraction]), seed)
        return indices[bins == 0].sort().values, indices[bins == 1].sort().values
    shuffled = randomness.order(indices, seed=seed, epoch=0)
    held = []
    for label in strata[indices].unique():
        members = shuffled[strata[shuffled] == label]
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held.append(members[:count])
    out = torch.cat(held).sort().values
    kept = indices[~torch.isin(indices, out)].sort().values
    return kept, out


def fold_numbers(indices: Tensor, strata: Tensor, folds: int, seed: int, *, groups: Tensor | None = None) -> Tensor:
    """The fold of each sample, (N,) int64 in 0 ... folds - 1; arguments as in hold_out.

    Without groups, folds and the classes within them differ by one sample at most.

    Raises:
        InputError: more folds than samples or groups.
    """
    units = len(indices) if groups is None else len(groups[indices].unique())
    if folds > units:
        raise InputError(f"data.folds {folds} is more than the {units} {'images' if groups is None else 'groups'}")
    if groups is not None:
        return torch.from_numpy(_deal(indices, strata, groups, np.full(folds, 1 / folds), seed))
    place = torch.empty(int(indices.max()) + 1, dtype=torch.int64)
    shuffled = randomness.order(indices, seed=seed, epoch=0)
    by_class = shuffled[torch.argsort(strata[shuffled], stable=True)]
    place[by_class] = torch.arange(len(by_class)) % folds
    return place[indices]


def _deal(indices: Tensor, strata: Tensor, groups: Tensor, shares: np.ndarray, seed: int) -> np.ndarray:
    """Deal whole groups into bins of given shares, the largest first, each to the bin that misses its classes most.

    -> the bin of each sample, (N,) int64. Every bin gets a group while there are enough.
    """
    shuffled = randomness.order(indices, seed=seed, epoch=0)
    ids = groups[shuffled].numpy()
    _, first, unit = np.unique(ids, return_index=True, return_inverse=True)
    classes = strata[shuffled].numpy()
    counts = np.zeros((len(first), int(classes.max()) + 1))
    np.add.at(counts, (unit, classes), 1)
    wanted = shares[:, None] * counts.sum(0)  # (bins, classes)
    missing = wanted.copy()
    bins = np.full(len(first), -1)
    largest_first = np.lexsort((first, -counts.sum(1)))  # equal ones in the order of the draw
    for left, group in zip(range(len(first), 0, -1), largest_first, strict=True):
        empty = np.setdiff1d(np.arange(len(shares)), bins)
        choices = empty if len(empty) >= left else np.arange(len(shares))
        need = (missing[choices] / np.maximum(wanted[choices], 1e-9)) @ counts[group]
        bins[group] = choices[need.argmax()]
        missing[bins[group]] -= counts[group]
    place = np.empty(int(indices.max()) + 1, np.int64)
    place[shuffled.numpy()] = bins[unit]
    return place[indices.numpy()]


def _strata(labels: Tensor) -> Tensor:
    """(N,) int64 to stratify by: the label, or of several the rarest; one number more for none."""
    if labels.ndim == 1:
        return labels
    rank = labels.sum(0).argsort().argsort()  # 0: the rarest
    keys = torch.where(labels > 0, rank, labels.shape[1])
    return keys.min(1).values


def write_split(source: Source, splits: Splits) -> bytes:
    """The split as a table of `name,split`, for the run folder and for other runs."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)  # else a lone \r is bare
    writer.writerow(["name", "split"])
    for split, part in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        writer.writerows([source.name(index), split] for index in ([] if part is None else part.tolist()))
    return text.getvalue().encode("utf-8", "surrogateescape")


def read_split(path: Path, source: Source) -> Splits:
    """The split that a file names; images that it does not name are in none, nor are those that cannot be used.

    Raises:
        InputError: no such table, a name twice, a name that the data lacks, or no train or val.
    """
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise InputError(f"split file {path} cannot be read: {error.strerror}") from error
    rows = list(csv.reader(io.StringIO(text, newline="")))
    if not rows or rows[0] != ["name", "split"] or any(len(row) != 2 for row in rows):
        raise InputError(f"{path} is no split file: a table of two columns, name and split, as in a run's split.csv")
    where = {source.name(index): index for index in range(len(source))}
    good = torch.zeros(len(source), dtype=torch.bool)
    good[usable(source)] = True  # the others are left out, or cannot be read
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    seen: set[str] = set()
    for name, split in rows[1:]:
        if split not in parts:
            raise InputError(f"{path}: split must be train, val or test, got '{split}' for {name}")
        if name in seen:
            raise InputError(f"{path} names {name} twice")
        if name not in where:
            raise InputError(f"{path} names {name}, which the data lacks (it was there when the split was made)")
        seen.add(name)
        if good[where[name]]:
            parts[split].append(where[name])
    if not parts["train"] or not parts["val"]:
        raise InputError(f"{path} names no {'validation' if parts['train'] else 'training'} images")
    tensors = {name: torch.tensor(part) for name, part in parts.items()}
    return Splits(tensors["train"], tensors["val"], tensors["test"] if parts["test"] else None, False)
