"""The verb: how good a run's network is, on its own data or on other data."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from skipway.data.loader import make_loader
from skipway.data.open import open_source
from skipway.data.source import Source, usable
from skipway.data.split import make_splits
from skipway.errors import InputError
from skipway.evaluation.metrics import score
from skipway.run import Run, load_model
from skipway.spec import DataSpec

BATCH = 256


@dataclass(frozen=True)
class Evaluation:
    """A network's scores on one split; accuracies in [0, 1], loss in nats.

    `class_accuracy` is None for a class without images; `confusion[true][predicted]` counts images.
    """

    data: str
    split: str
    num_images: int
    accuracy: float
    top5_accuracy: float
    loss: float
    classes: tuple[str, ...]
    class_accuracy: dict[str, float | None]
    confusion: list[list[int]]
    bad_files: dict[str, str]


def evaluate(
    run: Run | str | Path, data: str | Path | None = None, *, split: str | None = None, trust_code: bool = False
) -> Evaluation:
    """Score the best network of a run, in fp32.

    Args:
        run: a run, its folder, or a weights.safetensors.
        data: other data to score on; default: the run's own.
        split: "train", "val", "test" or "all"; default: test where there is one, else val, else all.
        trust_code: run the code that makes the network, where that is neither skipway's nor a library's.

    Returns:
        An Evaluation.

    Raises:
        InputError: no such run, data or split, or classes that the network does not know.
    """
    model = load_model(run.folder if isinstance(run, Run) else run, trust_code=trust_code)
    own = model.spec.data
    spec = own if data is None else dataclasses.replace(own, path=str(data))
    try:
        source = open_source(spec)
    except InputError as error:
        if data is None:  # the run may come from another machine or folder
            raise InputError(f"the run's own data: {error}. Name the data: skipway evaluate RUN DATA") from error
        raise
    parts = _parts(source, spec, foreign=data is not None)
    chosen = split or next(name for name in ("test", "val", "all") if name in parts)
    if chosen not in parts:
        raise InputError(f"{spec.path} has no split '{chosen}'; it has {', '.join(parts)}")
    labels_to_logits = _match_classes(source.classes, model.classes, spec.path)
    if source.channels != model.preprocess.channels:
        raise InputError(f"{spec.path} has {source.channels} channels, the network takes {model.preprocess.channels}")
    loader = make_loader(source, model.preprocess, spec)
    batches = (
        dataclasses.replace(batch, labels=labels_to_logits[batch.labels])
        for batch in loader.batches(parts[chosen], BATCH)
    )
    scores = score(model.network, batches, model.preprocess)
    return Evaluation(
        data=spec.path,
        split=chosen,
        num_images=len(scores.labels),
        accuracy=scores.accuracy,
        top5_accuracy=scores.top(5),
        loss=scores.loss,
        classes=model.classes,
        class_accuracy=dict(zip(model.classes, scores.class_accuracy(), strict=True)),
        confusion=scores.confusion().tolist(),
        bad_files=loader.bad,
    )


def _parts(source: Source, spec: DataSpec, *, foreign: bool) -> dict[str, Tensor]:
    """Split name -> indices. Data of its own is split as in training; other data as it comes."""
    everything = usable(source)
    if foreign:
        return {**source.splits, "all": everything}
    splits = make_splits(source, spec)
    parts = {"train": splits.train, "val": splits.val, "all": everything}
    return parts if splits.test is None else {**parts, "test": splits.test}


def _match_classes(names: tuple[str, ...], known: tuple[str, ...], path: str) -> Tensor:
    """The data's labels -> the network's, by name: (K,) int64."""
    missing = [name for name in names if name not in known]
    if missing:
        raise InputError(
            f"{path} has classes that the network does not know: {', '.join(missing[:5])} "
            f"(it knows {', '.join(known[:10])})"
        )
    return torch.tensor([known.index(name) for name in names])
