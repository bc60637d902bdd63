"""Scores of a network on a set of images."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.data.loader import Batch
from skipway.data.preprocess import Preprocess
from skipway.errors import InputError


@dataclass(frozen=True)
class Scores:
    """What a network said to N images of K classes.

    Args:
        probabilities: (N, K) float32, rows sum to 1.
        labels: (N,) int64.
        indices: (N,) int64, the samples' places in their source.
        loss: mean cross-entropy in nats, without label smoothing.
    """

    probabilities: Tensor
    labels: Tensor
    indices: Tensor
    loss: float

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
        rows = zip(counts.diag().tolist(), counts.sum(1).tolist(), strict=True)
        return [right / total if total else None for right, total in rows]


@torch.inference_mode()
def score(
    network: nn.Module,
    batches: Iterable[Batch],
    preprocess: Preprocess,
    *,
    bf16: bool = False,
) -> Scores:
    """Run a network over batches, in evaluation mode (the mode it was in is restored).

    Args:
        network: (B, C, S, S) float -> (B, K) logits.
        batches: uint8 images with labels.
        preprocess: whose normalisation applies.
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
    all_logits, all_labels = torch.cat(logits), torch.cat(labels)
    loss = F.cross_entropy(all_logits, all_labels).item()
    return Scores(all_logits.softmax(1), all_labels, torch.cat(indices), loss)
