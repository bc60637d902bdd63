"""A trained network with all that is needed to use it, and what its weights' metadata say beside the spec."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from skipway.data.preprocess import Preprocess
from skipway.nn.outputs import class_logits
from skipway.spec import RunSpec


@dataclass(frozen=True)
class Model:
    """A trained network with all that is needed to use it.

    Args:
        network: in evaluation mode, on the CPU.
        spec: the run's.
        classes: names, in the order of the logits.
        preprocess: from image to input.
        thresholds: probability from which on each label is given; None: one label an image.
    """

    network: nn.Module
    spec: RunSpec
    classes: tuple[str, ...]
    preprocess: Preprocess
    thresholds: tuple[float, ...] | None = None

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, K) logits -> probabilities: rows sum to 1, or each label's own where an image may have several."""
        if self.thresholds is not None:
            return logits.sigmoid()
        return class_logits(logits, self.spec.train.loss).softmax(1)


def read_thresholds(text: str, classes: Sequence[str]) -> tuple[float, ...]:
    """A threshold for each class, from {name: threshold}. Raises ValueError."""
    table = json.loads(text)
    if not isinstance(table, dict) or list(table) != list(classes):
        raise ValueError("it must name a threshold for each class")
    if not all(type(value) in (int, float) and 0 <= value <= 1 for value in table.values()):
        raise ValueError("thresholds must be numbers from 0 to 1")
    return tuple(map(float, table.values()))
