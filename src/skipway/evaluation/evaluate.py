"""The verb: how good a run's network is, on its own data or on other data."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from skipway.data.loader import make_loader
from skipway.data.open import open_source
from skipway.data.source import Source, is_multilabel, usable
from skipway.data.split import make_splits
from skipway.errors import InputError
from skipway.evaluation.labels import LabelReport, LabelScores
from skipway.evaluation.metrics import BinaryReport, Scores
from skipway.evaluation.task import ManyLabels, at_once, score_with_tta, task_of
from skipway.evaluation.tta import check_tta
from skipway.run import Model, Run, load_model
from skipway.spec import DataSpec


@dataclass(frozen=True)
class TtaScores:
    """Scores with test-time augmentation, beside the plain ones; fields as in Evaluation.

    `kind` is flip or flip_shift. `map`, in [0, 1], is there where an image may have several labels, `top5_accuracy`
    where it has one.
    """

    kind: str
    accuracy: float
    top5_accuracy: float | None
    loss: float
    map: float | None


@dataclass(frozen=True)
class Evaluation:
    """A network's scores on one split; accuracies in [0, 1], loss in nats.

    `class_accuracy` is None for a class without images; `confusion[true][predicted]` counts images. `balanced_accuracy`
    is the mean of the classes' accuracies, `macro_f1` of their F1. `binary` is there where there are two classes.

    Where an image may have several labels, `labels` has the scores; `classes` are the data's, `accuracy` is the share
    of images with every label right, `class_accuracy` the share of right decisions on each label, and
    `top5_accuracy`, `balanced_accuracy` and `confusion` have no meaning: None, None and empty.

    All of these are plain scores, of each image as it is; `tta` has those with test-time augmentation.
    """

    data: str
    split: str
    num_images: int
    accuracy: float
    top5_accuracy: float | None
    loss: float
    classes: tuple[str, ...]
    class_accuracy: dict[str, float | None]
    confusion: list[list[int]]
    bad_files: dict[str, str]
    balanced_accuracy: float | None = None
    macro_f1: float | None = None
    binary: BinaryReport | None = None
    labels: LabelReport | None = None
    tta: TtaScores | None = None


def evaluate(
    run: Run | str | Path,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    tta: str | None = None,
    trust_code: bool = False,
) -> Evaluation:
    """Score the best network of a run, in fp32.

    Args:
        run: a run, its folder, or a weights.safetensors.
        data: other data to score on; default: the run's own.
        split: "train", "val", "test" or "all"; default: test where there is one, else val, else all.
        tta: also score with test-time augmentation: "flip" or "flip_shift", or "none"; default: as the run's spec
            says.
        trust_code: run the code that makes the network, where that is neither skipway's nor a library's.

    Returns:
        An Evaluation.

    Raises:
        InputError: no such run, data, split or views, classes that the network does not know, or one label an image
            where it was trained on several, or the other way round.
    """
    folder = run.folder if isinstance(run, Run) else Path(run)
    check_tta("none" if tta is None else tta)
    model = load_model(folder, trust_code=trust_code)
    spec = _spec(model.spec.data, folder, data)
    source = _open(spec, own=data is None)
    parts = _parts(source, spec, foreign=data is not None)
    chosen = split or next(name for name in ("test", "val", "all") if name in parts)
    if chosen not in parts:
        raise InputError(f"{spec.path} has no split '{chosen}'; it has {', '.join(parts)}")
    places = _match_classes(source.classes, model.classes, spec.path)
    _check_kind(source, model, spec.path)
    loader = make_loader(source, model.preprocess, spec)
    size = at_once(model.preprocess.image_size, torch.device("cpu"))
    batches = loader.batches(parts[chosen], size)
    network, task = model.network, task_of(model)
    if isinstance(task, ManyLabels):  # of all labels the data's, in its order
        network = nn.Sequential(network, _Columns(places))
        task = ManyLabels(tuple(task.thresholds[k] for k in places.tolist()))
    else:
        batches = (dataclasses.replace(batch, labels=places[batch.labels]) for batch in batches)
    kind = model.spec.train.tta if tta is None else tta
    scores, averaged = score_with_tta(network, batches, model.preprocess, task=task, tta=kind)
    classes = source.classes if isinstance(task, ManyLabels) else model.classes
    result = _evaluation(scores, classes, data=spec.path, split=chosen, bad=loader.bad)
    return dataclasses.replace(result, tta=_beside(averaged, kind)) if averaged else result


def _spec(own: DataSpec, run: Path, data: str | Path | None) -> DataSpec:
    """What to open: other data without what names images of the run's own, or those, split as they were."""
    if data is not None:
        return dataclasses.replace(own, path=str(data), group="", exclude="", split_file="", folds=0, fold=0)
    written = run / "split.csv"
    return dataclasses.replace(own, split_file=str(written), group="", folds=0, fold=0) if written.is_file() else own


def _open(spec: DataSpec, *, own: bool) -> Source:
    """The data to score on. Raises InputError, which says what to do where the run's own are not there."""
    try:
        return open_source(spec)
    except InputError as error:
        if own:  # the run may come from another machine or folder
            here = "" if os.path.isabs(spec.path) else " (as seen from where the run was started)"
            raise InputError(f"the run's own data{here}: {error}. Name the data: skipway evaluate RUN DATA") from error
        raise


def _evaluation(
    scores: Scores | LabelScores, classes: tuple[str, ...], *, data: str, split: str, bad: dict[str, str]
) -> Evaluation:
    several = scores.labels_report(classes) if isinstance(scores, LabelScores) else None
    single = scores if isinstance(scores, Scores) else None
    return Evaluation(
        data=data,
        split=split,
        num_images=len(scores.labels),
        accuracy=_accuracy(scores),
        top5_accuracy=single.top(5) if single else None,
        loss=scores.loss,
        classes=classes,
        class_accuracy=dict(zip(classes, scores.class_accuracy(), strict=True)),
        confusion=single.confusion().tolist() if single else [],
        bad_files=bad,
        balanced_accuracy=single.balanced_accuracy if single else None,
        macro_f1=single.macro_f1 if single else several.macro_f1 if several else None,
        binary=single.binary(classes) if single else None,
        labels=several,
    )


def _accuracy(scores: Scores | LabelScores) -> float:
    return scores.subset_accuracy if isinstance(scores, LabelScores) else scores.accuracy


def _beside(scores: Scores | LabelScores, kind: str) -> TtaScores:
    single = scores if isinstance(scores, Scores) else None
    several = scores if isinstance(scores, LabelScores) else None
    return TtaScores(
        kind,
        _accuracy(scores),
        top5_accuracy=single.top(5) if single else None,
        loss=scores.loss,
        map=several.mean_average_precision if several else None,
    )


class _Columns(nn.Module):
    """Some of the logits, in another order."""

    def __init__(self, places: Tensor):
        super().__init__()
        self.places = places

    def forward(self, logits: Tensor) -> Tensor:
        """(B, K) -> (B, number of places)."""
        return logits[:, self.places]


def _check_kind(source: Source, model: Model, path: str) -> None:
    """Refuse images that are not of the network's kind. Raises InputError."""
    if source.channels != model.preprocess.channels:
        raise InputError(f"{path} has {source.channels} channels, the network takes {model.preprocess.channels}")
    if is_multilabel(source) != (model.thresholds is not None):
        data, network = ("several", "one") if is_multilabel(source) else ("one", "several")
        raise InputError(
            f"{path} has {data} label{'s' * (data != 'one')} an image, the network was trained for {network}"
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
