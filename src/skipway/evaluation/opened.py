"""A run's data, or other data, opened for its network: which images, split how, whose classes."""

import dataclasses
import os
from pathlib import Path

import torch
from torch import Tensor

from skipway.data.open import open_source
from skipway.data.source import Source, is_multilabel, usable
from skipway.data.split import make_splits
from skipway.errors import InputError
from skipway.run import Model
from skipway.spec import DataSpec


def data_spec_of(own: DataSpec, run: Path, data: str | Path | None) -> DataSpec:
    """What to open: other data without what names images of the run's own, or those, split as they were."""
    if data is not None:
        return dataclasses.replace(own, path=str(data), group="", exclude="", split_file="", folds=0, fold=0)
    written = run / "split.csv"
    return dataclasses.replace(own, split_file=str(written), group="", folds=0, fold=0) if written.is_file() else own


def open_data(spec: DataSpec, *, own: bool) -> Source:
    """The data to score on. Raises InputError, which says what to do where the run's own are not there."""
    try:
        return open_source(spec)
    except InputError as error:
        if own:  # the run may come from another machine or folder
            here = "" if os.path.isabs(spec.path) else " (as seen from where the run was started)"
            raise InputError(f"the run's own data{here}: {error}. Name the data: skipway evaluate RUN DATA") from error
        raise


def check_kind(source: Source, model: Model, path: str) -> None:
    """Refuse images that are not of the network's kind. Raises InputError."""
    if source.channels != model.preprocess.channels:
        raise InputError(f"{path} has {source.channels} channels, the network takes {model.preprocess.channels}")
    if is_multilabel(source) != (model.thresholds is not None):
        data, network = ("several", "one") if is_multilabel(source) else ("one", "several")
        raise InputError(
            f"{path} has {data} label{'s' * (data != 'one')} an image, the network was trained for {network}"
        )


def parts_of(source: Source, spec: DataSpec, *, foreign: bool) -> dict[str, Tensor]:
    """Split name -> indices. Data of its own is split as in training; other data as it comes."""
    everything = usable(source)
    if foreign:
        return {**source.splits, "all": everything}
    splits = make_splits(source, spec)
    parts = {"train": splits.train, "val": splits.val, "all": everything}
    return parts if splits.test is None else {**parts, "test": splits.test}


def match_classes(names: tuple[str, ...], known: tuple[str, ...], path: str) -> Tensor:
    """The data's labels -> the network's, by name: (K,) int64."""
    missing = [name for name in names if name not in known]
    if missing:
        raise InputError(
            f"{path} has classes that the network does not know: {', '.join(missing[:5])} "
            f"(it knows {', '.join(known[:10])})"
        )
    return torch.tensor([known.index(name) for name in names])
