"""Which samples are for training, for validation and for the test."""

from dataclasses import dataclass

import torch
from torch import Tensor

from skipway import randomness
from skipway.data.source import Source
from skipway.errors import InputError
from skipway.data_spec import DataSpec


@dataclass(frozen=True)
class Splits:
    """Sample indices, (n,) int64 each; `test` is None where the data has none. `held_out`: val came out of train."""

    train: Tensor
    val: Tensor
    test: Tensor | None
    held_out: bool


def hold_out(indices: Tensor, labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split samples in two so that every class gives the same share.

    Args:
        indices: (N,) int64 sample indices.
        labels: (M,) int64, the label of every sample of the source.
        fraction: share held out, in (0, 1).
        seed: of the choice.

    Returns:
        (kept, held out), both sorted. A class of two or more gives at least one and keeps at least one.
    """
    shuffled = randomness.order(indices, seed=seed, epoch=0)
    held = []
    for label in labels[indices].unique():
        members = shuffled[labels[shuffled] == label]
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held.append(members[:count])
    out = torch.cat(held).sort().values
    kept = indices[~torch.isin(indices, out)].sort().values
    return kept, out


def make_splits(source: Source, spec: DataSpec) -> Splits:
    """The splits to train with: the data's own, and a stratified share of train where it has no validation.

    Raises:
        InputError: the data has a val or test split but no train, or too little to hold anything out.
    """
    given = dict(source.splits) or {"train": torch.arange(len(source))}
    if "all" in given:
        given = {"train": given["all"]}
    if "train" not in given:
        raise InputError(f"{spec.path} has {' and '.join(given)} but no train split: there is nothing to train on")
    train, val = given["train"], given.get("val")
    held_out = val is None
    if val is None:
        train, val = hold_out(train, source.labels, spec.val_fraction, spec.split_seed)
    if not len(val) or not len(train):
        raise InputError(f"{spec.path} has too few images to hold some out for validation: two of each class at least")
    return Splits(train, val, given.get("test"), held_out)
