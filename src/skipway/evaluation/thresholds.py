"""What each threshold on a probability finds: average precision, area under the ROC curve, the threshold of best F1.

Samples of equal probability are named together or not at all, so results do not depend on the order of ties.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cuts:
    """For each distinct probability, falling: what is found by naming all samples of at least that probability.

    Args:
        values: (T,) float64, the probabilities.
        right: (T,) int64, positives named.
        wrong: (T,) int64, negatives named.
    """

    values: Tensor
    right: Tensor
    wrong: Tensor

    @property
    def positives(self) -> int:
        """How many samples are positive."""
        return int(self.right[-1])

    @property
    def negatives(self) -> int:
        """How many samples are negative."""
        return int(self.wrong[-1])


def cuts(probabilities: Tensor, positive: Tensor) -> Cuts:
    """All thresholds that make a difference.

    Args:
        probabilities: (N,) float, N at least 1.
        positive: (N,) bool or 0 and 1.
    """
    values, order = probabilities.double().sort(descending=True)
    last = torch.cat([values[1:] != values[:-1], torch.tensor([True])])  # the last of its ties
    right = positive.long()[order].cumsum(0)[last]
    named = torch.arange(1, len(values) + 1)[last]
    return Cuts(values[last], right, named - right)


def average_precision(found: Cuts) -> float | None:
    """Sum over thresholds of precision times the recall won there (no interpolation); None without positives."""
    if not found.positives:
        return None
    won = found.right.diff(prepend=torch.zeros(1, dtype=torch.int64)).double() / found.positives
    precision = found.right.double() / (found.right + found.wrong)
    return (precision * won).sum().item()


def auroc(found: Cuts) -> float | None:
    """Chance that a positive gets a higher probability than a negative, ties half; None where one kind is missing."""
    if not found.positives or not found.negatives:
        return None
    start = torch.zeros(1, dtype=torch.int64)
    won, lost = found.right.diff(prepend=start), found.wrong.diff(prepend=start)
    beaten = (found.right - won) + won.double() / 2  # positives above each negative
    return (beaten * lost).sum().item() / (found.positives * found.negatives)


def best_threshold(found: Cuts) -> float:
    """The threshold whose F1 is highest, halfway down to the next lower probability; 0.5 without positives.

    Of equal ones the highest, which names the fewest. A sample is named where its probability is at least this.
    """
    if not found.positives:
        return 0.5
    f1 = 2 * found.right.double() / (found.right + found.wrong + found.positives)
    best = int(f1.argmax())
    below = found.values[best + 1].item() if best + 1 < len(found.values) else 0.0
    return (found.values[best].item() + below) / 2


def ratio(part: float, whole: float) -> float | None:
    """part / whole; None for nothing of nothing."""
    return part / whole if whole else None


def mean(values: list[float | None]) -> float | None:
    """The mean of those that are defined; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
