"""Scores where an image may have any number of labels, each a yes or no of its own.

Means over classes (mAP, macro F1) leave out classes that no image has: nothing could be found there.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from skipway.evaluation.metrics import Mistake
from skipway.evaluation.thresholds import average_precision, best_threshold, cuts, mean, ratio
from skipway.figures import short


@dataclass(frozen=True)
class LabelRow:
    """One label's scores, in [0, 1]; None where there is nothing to count.

    Args:
        name: the label.
        positives: images that have it.
        average_precision: over all thresholds.
        threshold: probability from which on it is given.
        precision, recall, f1: at the threshold; f1 is None without positives.
    """

    name: str
    positives: int
    average_precision: float | None
    threshold: float
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class LabelReport:
    """Scores of all labels, in [0, 1].

    Args:
        map: mean average precision over the labels that images have (macro average).
        micro_f1: F1 of all decisions together, at the thresholds.
        macro_f1: mean of the labels' F1, over the labels that images have.
        subset_accuracy: share of images with every label right.
        without_positives: labels that no image has, left out of `map` and `macro_f1`.
        labels: each label's own scores.
    """

    map: float | None
    micro_f1: float | None
    macro_f1: float | None
    subset_accuracy: float
    without_positives: tuple[str, ...]
    labels: tuple[LabelRow, ...]


@dataclass(frozen=True)
class LabelScores:
    """What a network said to N images of K possible labels.

    Args:
        probabilities: (N, K) float32, each in [0, 1].
        labels: (N, K) uint8 of 0 and 1.
        indices: (N,) int64, the samples' places in their source.
        loss: mean binary cross-entropy of a decision in nats, without label smoothing or weights.
        thresholds: (K,) float64; a label is given where its probability is at least this.
    """

    probabilities: Tensor
    labels: Tensor
    indices: Tensor
    loss: float
    thresholds: Tensor

    @property
    def main(self) -> float:
        """What the best epoch is chosen by: mAP; 0 where no image has any label, so that the loss decides."""
        return self.mean_average_precision or 0.0

    @cached_property
    def predictions(self) -> Tensor:
        """(N, K) bool: the labels given."""
        return self.probabilities.double() >= self.thresholds

    @cached_property
    def average_precision(self) -> list[float | None]:
        """Of each label; None where no image has it."""
        pairs = zip(self.probabilities.unbind(1), self.labels.unbind(1), strict=True)
        return [average_precision(cuts(*pair)) for pair in pairs]

    @property
    def mean_average_precision(self) -> float | None:
        """mAP, in [0, 1]; None where no image has any label."""
        return mean(self.average_precision)

    @property
    def subset_accuracy(self) -> float:
        """Share of images with every label right, in [0, 1]."""
        return self._right.all(1).double().mean().item()

    def class_accuracy(self) -> list[float | None]:
        """Share of right decisions on each label, in [0, 1]."""
        return list(self._right.double().mean(0).tolist())

    def best_thresholds(self) -> tuple[float, ...]:
        """The threshold of each label whose F1 on these images is highest; 0.5 where no image has it."""
        pairs = zip(self.probabilities.unbind(1), self.labels.unbind(1), strict=True)
        return tuple(best_threshold(cuts(*pair)) for pair in pairs)

    def labels_report(self, classes: tuple[str, ...]) -> LabelReport:
        """All scores at the thresholds."""
        truth = self.labels.bool()
        hits, named, positives = ((a).sum(0).tolist() for a in (truth & self.predictions, self.predictions, truth))
        rows = []
        for k, name in enumerate(classes):
            f1 = 2 * hits[k] / (named[k] + positives[k]) if positives[k] else None
            precision, recall = ratio(hits[k], named[k]), ratio(hits[k], positives[k])
            threshold = self.thresholds[k].item()
            rows.append(LabelRow(name, positives[k], self.average_precision[k], threshold, precision, recall, f1))
        return LabelReport(
            map=self.mean_average_precision,
            micro_f1=ratio(2 * sum(hits), sum(named) + sum(positives)),
            macro_f1=mean([row.f1 for row in rows]),
            subset_accuracy=self.subset_accuracy,
            without_positives=tuple(row.name for row in rows if not row.positives),
            labels=tuple(rows),
        )

    def report(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """All scores but the loss, as plain data."""
        return asdict(self.labels_report(classes))

    def mistakes(self, classes: tuple[str, ...], num: int) -> tuple[str, list[Mistake]]:
        """How many decisions are wrong, in words, and the `num` most confident ones: the furthest from the threshold.

        The distance is a share of the way from the threshold to 1, or to 0.
        """
        p, at = self.probabilities.double(), self.thresholds
        confidence = torch.where(self.predictions, (p - at) / (1 - at).clamp(min=1e-9), (at - p) / at.clamp(min=1e-9))
        wrong = (~self._right).nonzero()  # (n, 2): image, label
        order = confidence[wrong[:, 0], wrong[:, 1]].argsort(descending=True)
        found = []
        for i, k in wrong[order][:num].tolist():
            name, given = short(classes[k]), bool(self.predictions[i, k])
            lines = (f"not {name}", f"named so {p[i, k]:.0%}") if given else (name, f"not named {p[i, k]:.0%}")
            found.append(Mistake(int(self.indices[i]), lines))
        return f"{len(wrong)} of {self.labels.numel()} label decisions wrong", found

    @cached_property
    def _right(self) -> Tensor:
        return self.predictions == self.labels.bool()
