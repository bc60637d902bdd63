"""Scores where each image has one of several classes; of two classes, the second counts as the positive one."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skipway.evaluation.thresholds import auroc, average_precision, cuts, mean, ratio
from skipway.figures import short


@dataclass(frozen=True)
class Mistake:
    """A wrong answer: which sample of the source, and two lines of words for it."""

    index: int
    lines: tuple[str, str]


@dataclass(frozen=True)
class BinaryReport:
    """Scores of two classes, in [0, 1]; None where there is nothing to count.

    Args:
        positive: the class that counts as positive: the second one.
        auroc: area under the ROC curve.
        average_precision: area under the curve of precision and recall, as a sum of steps.
        precision: share of images named positive that are.
        recall: share of positive images named so (sensitivity).
        specificity: share of negative images named negative.
        f1: harmonic mean of precision and recall.
    """

    positive: str
    auroc: float | None
    average_precision: float | None
    precision: float | None
    recall: float | None
    specificity: float | None
    f1: float | None


@dataclass(frozen=True)
class Scores:
    """What a network said to N images of K classes.

    Args:
        probabilities: (N, K) float32, rows sum to 1.
        labels: (N,) int64.
        indices: (N,) int64, the samples' places in their source.
        loss: mean cross-entropy in nats, without label smoothing or weights.
    """

    probabilities: Tensor
    labels: Tensor
    indices: Tensor
    loss: float

    @property
    def main(self) -> float:
        """What the best epoch is chosen by: the accuracy."""
        return self.accuracy

    @property
    def predictions(self) -> Tensor:
        """(N,) int64: the most probable class."""
        return self.probabilities.argmax(1)

    @property
    def accuracy(self) -> float:
        """Share of right predictions, in [0, 1]."""
        return (self.predictions == self.labels).double().mean().item()

    def top(self, k: int) -> float:
        """Share of images whose class is among the k most probable, in [0, 1]."""
        k = min(k, self.probabilities.shape[1])
        return (self.probabilities.topk(k).indices == self.labels[:, None]).any(1).double().mean().item()

    def confusion(self) -> Tensor:
        """(K, K) int64: row = true class, column = predicted."""
        classes = self.probabilities.shape[1]
        return torch.bincount(self.labels * classes + self.predictions, minlength=classes**2).view(classes, classes)

    def class_accuracy(self) -> list[float | None]:
        """Share of right predictions for each class; None where no image has it."""
        counts = self.confusion()
        return [ratio(*pair) for pair in zip(counts.diag().tolist(), counts.sum(1).tolist(), strict=True)]

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the classes' accuracies, over those that images have."""
        return mean(self.class_accuracy()) or 0.0

    @property
    def macro_f1(self) -> float:
        """Mean of the classes' F1, over those that images have or were given."""
        counts = self.confusion()
        whole = (counts.sum(0) + counts.sum(1)).tolist()
        return mean([ratio(2 * hits, of) for hits, of in zip(counts.diag().tolist(), whole, strict=True)]) or 0.0

    def binary(self, classes: tuple[str, ...]) -> BinaryReport | None:
        """The second class against the first; None where there are not two classes."""
        if len(classes) != 2:
            return None
        ranking = cuts(self.probabilities[:, 1], self.labels == 1)
        (true_negatives, false_positives), (false_negatives, true_positives) = self.confusion().tolist()
        return BinaryReport(
            positive=classes[1],
            auroc=auroc(ranking),
            average_precision=average_precision(ranking),
            precision=ratio(true_positives, true_positives + false_positives),
            recall=ratio(true_positives, true_positives + false_negatives),
            specificity=ratio(true_negatives, true_negatives + false_positives),
            f1=ratio(2 * true_positives, 2 * true_positives + false_positives + false_negatives),
        )

    def report(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """The scores beyond accuracy and loss, as plain data."""
        binary = self.binary(classes)
        return {
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "binary": vars(binary) if binary else None,
        }

    def mistakes(self, classes: tuple[str, ...], num: int) -> tuple[str, list[Mistake]]:
        """How many are wrong, in words, and the `num` most confident ones."""
        confidence, predicted = self.probabilities.max(1)
        wrong = (predicted != self.labels).nonzero()[:, 0]
        worst = wrong[confidence[wrong].argsort(descending=True)][:num].tolist()
        found = []
        for i in worst:
            truth, said = short(classes[int(self.labels[i])]), short(classes[int(predicted[i])])
            found.append(Mistake(int(self.indices[i]), (truth, f"named {said} {confidence[i]:.0%}")))
        return f"{len(wrong)} of {len(self.labels)} wrong", found
