"""What a network is asked: one of several classes, or any number of labels. The loop and the verbs ask a task for
what differs: which scores there are, and what the best epoch is chosen by (accuracy; mAP)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.data.loader import Batch
from skipway.data.preprocess import Preprocess
from skipway.errors import InputError
from skipway.evaluation.labels import LabelScores
from skipway.evaluation.metrics import Scores
from skipway.nn.outputs import class_logits
from skipway.run import Model


@dataclass(frozen=True)
class OneLabel:
    """Each image has one of several classes.

    Args:
        loss: what the logits were trained by, as in TrainSpec; "bce": one class against all others.
    """

    loss: str = "cross_entropy"

    name: ClassVar = "accuracy"  # of the main score, in metrics.jsonl: val_accuracy
    train_name: ClassVar = "accuracy"
    title: ClassVar = "accuracy"
    train_title: ClassVar = "accuracy"

    def judge(self, logits: Tensor, labels: Tensor, indices: Tensor) -> Scores:
        """(N, K) float32 logits, (N,) int64 labels, (N,) int64 indices -> scores."""
        logits = class_logits(logits, self.loss)
        return Scores(logits.softmax(1), labels, indices, F.cross_entropy(logits, labels).item())


@dataclass(frozen=True)
class ManyLabels:
    """Each image has any number of labels.

    Args:
        thresholds: probability from which on each label is given.
    """

    thresholds: tuple[float, ...]

    name: ClassVar = "map"
    train_name: ClassVar = "label_accuracy"
    title: ClassVar = "mAP"
    train_title: ClassVar = "labels ok"

    def judge(self, logits: Tensor, labels: Tensor, indices: Tensor) -> LabelScores:
        """(N, K) float32 logits, (N, K) uint8 labels, (N,) int64 indices -> scores."""
        loss = F.binary_cross_entropy_with_logits(logits, labels.float()).item()
        thresholds = torch.tensor(self.thresholds, dtype=torch.float64)
        return LabelScores(logits.sigmoid(), labels, indices, loss, thresholds)


Task = OneLabel | ManyLabels


def task_of(model: Model) -> Task:
    """What a trained network is asked."""
    return OneLabel(model.spec.train.loss) if model.thresholds is None else ManyLabels(model.thresholds)


@torch.inference_mode()
def score(
    network: nn.Module,
    batches: Iterable[Batch],
    preprocess: Preprocess,
    *,
    task: Task,
    bf16: bool = False,
) -> Scores | LabelScores:
    """Run a network over batches, in evaluation mode (the mode it was in is restored).

    Args:
        network: (B, C, S, S) float -> (B, K) logits.
        batches: images with labels.
        preprocess: whose normalisation applies.
        task: what is asked.
        bf16: compute in bfloat16 (autocast); logits and loss stay fp32.

    Raises:
        InputError: not one image could be read.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    logits, labels, indices = [], [], []
    for batch in batches:
        inputs = preprocess.normalise(batch.images.to(device)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits.append(network(inputs).float().cpu())
        labels.append(batch.labels)
        indices.append(batch.indices)
    network.train(was_training)
    if not logits:
        raise InputError("none of the images can be read")
    return task.judge(torch.cat(logits), torch.cat(labels), torch.cat(indices))
