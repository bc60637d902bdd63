"""The verb: how good a run's network is, on its own data or on other data."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from skipway.data.loader import make_loader
from skipway.device import choose_device
from skipway.errors import InputError
from skipway.evaluation.labels import LabelReport, LabelScores
from skipway.evaluation.metrics import BinaryReport, Scores
from skipway.evaluation.opened import check_kind, data_spec_of, match_classes, open_data, parts_of
from skipway.evaluation.task import ManyLabels, at_once, score_with_tta, task_of
from skipway.evaluation.tta import check_tta
from skipway.run import Run, load_model


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
    device: str = "auto",
    trust_code: bool = False,
) -> Evaluation:
    """Score the best network of a run, in fp32.

    Args:
        run: a run, its folder, or a weights.safetensors.
        data: other data to score on; default: the run's own.
        split: "train", "val", "test" or "all"; default: test where there is one, else val, else all.
        tta: also score with test-time augmentation: "flip" or "flip_shift", or "none"; default: as the run's spec
            says.
        device: where to compute: auto (the accelerator where there is one), cpu, cuda, cuda:1, mps.
        trust_code: run the code that makes the network, where that is neither skipway's nor a library's.

    Returns:
        An Evaluation.

    Raises:
        InputError: no such run, data, split, views or device, classes that the network does not know, or one label an
            image where it was trained on several, or the other way round.
    """
    folder = run.folder if isinstance(run, Run) else Path(run)
    check_tta("none" if tta is None else tta)
    where = choose_device(device, "device")
    model = load_model(folder, trust_code=trust_code)
    spec = data_spec_of(model.spec.data, folder, data)
    source = open_data(spec, own=data is None)
    parts = parts_of(source, spec, foreign=data is not None)
    chosen = split or next(name for name in ("test", "val", "all") if name in parts)
    if chosen not in parts:
        raise InputError(f"{spec.path} has no split '{chosen}'; it has {', '.join(parts)}")
    places = match_classes(source.classes, model.classes, spec.path)
    check_kind(source, model, spec.path)
    loader = make_loader(source, model.preprocess, spec)
    size = at_once(model.preprocess.image_size, where)
    batches = loader.batches(parts[chosen], size)
    network, task = model.network, task_of(model)
    if isinstance(task, ManyLabels):  # of all labels the data's, in its order
        network = nn.Sequential(network, _Columns(places))
        task = ManyLabels(tuple(task.thresholds[k] for k in places.tolist()))
    else:
        batches = (dataclasses.replace(batch, labels=places[batch.labels]) for batch in batches)
    kind = model.spec.train.tta if tta is None else tta
    scores, averaged = score_with_tta(network.to(where), batches, model.preprocess, task=task, tta=kind)
    classes = source.classes if isinstance(task, ManyLabels) else model.classes
    result = _evaluation(scores, classes, data=spec.path, split=chosen, bad=loader.bad)
    return dataclasses.replace(result, tta=_beside(averaged, kind)) if averaged else result


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

    places: Tensor

    def __init__(self, places: Tensor):
        super().__init__()
        self.register_buffer("places", places)

    def forward(self, logits: Tensor) -> Tensor:
        """(B, K) -> (B, number of places)."""
        return logits.index_select(1, self.places)
