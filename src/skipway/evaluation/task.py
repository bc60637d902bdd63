"""What a network is asked: one of several classes, or any number of labels. The loop and the verbs ask a task for
what differs: which scores there are, and what the best epoch is chosen by (accuracy; mAP)."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
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
from skipway.evaluation.tta import averaged
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


Gather = Callable[[Tensor], Tensor]


def _own(rows: Tensor) -> Tensor:
    return rows


def at_once(image_size: int, device: torch.device) -> int:
    """How many images a network answers at a time: 256, at most what 256 of 224 pixels (on the CPU of 64) are worth.

    Training in batches of 32 at 224 pixels takes 3.3 GB with resnet50, where validation of 256 such images took 4.8.
    """
    worth = 64 if device.type == "cpu" else 224
    return min(max(256 * worth**2 // image_size**2, 8), 256)


def score(
    network: nn.Module,
    batches: Iterable[Batch],
    preprocess: Preprocess,
    *,
    task: Task,
    bf16: bool = False,
    gather: Gather = _own,
) -> Scores | LabelScores:
    """Run a network over batches, in evaluation mode (the mode it was in is restored).

    Args:
        network: (B, C, S, S) float -> (B, K) logits.
        batches: images with labels.
        preprocess: whose normalisation applies.
        task: what is asked.
        bf16: compute in bfloat16 (autocast); logits and loss stay fp32.
        gather: rows (N, ...) -> with those of other processes, which have other batches.

    Raises:
        InputError: not one image could be read.
    """
    answers = _answers(network, batches, preprocess, tta="none", bf16=bf16, gather=gather)
    return task.judge(answers.logits, answers.labels, answers.indices)


def score_with_tta(
    network: nn.Module,
    batches: Iterable[Batch],
    preprocess: Preprocess,
    *,
    task: Task,
    tta: str,
    gather: Gather = _own,
) -> tuple[Scores | LabelScores, Scores | LabelScores | None]:
    """The scores, and beside them those of logits averaged over views of each image; in one pass, in fp32.

    Args:
        network, batches, preprocess, task, gather: as in `score`.
        tta: which views, as in TrainSpec; "none": the second scores are None.

    Returns:
        What `score` returns, to the bit; and the same kind of scores with test-time augmentation.

    Raises:
        InputError: not one image could be read.
    """
    answers = _answers(network, batches, preprocess, tta=tta, gather=gather)
    plain = task.judge(answers.logits, answers.labels, answers.indices)
    if tta == "none":
        return plain, None
    return plain, task.judge(answers.averaged, answers.labels, answers.indices)


@dataclass(frozen=True)
class _Answers:
    """(N, K) float32 logits of plain images, and averaged over views; labels and indices as in a Batch."""

    logits: Tensor
    averaged: Tensor
    labels: Tensor
    indices: Tensor


@contextlib.contextmanager
def full_fp32(device: torch.device) -> Iterator[None]:
    """While open, fp32 is fp32: convolutions on CUDA would else round what they are given to TF32's ten bits."""
    before = torch.backends.cudnn.allow_tf32
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@torch.inference_mode()
def _answers(
    network: nn.Module,
    batches: Iterable[Batch],
    preprocess: Preprocess,
    *,
    tta: str,
    gather: Gather,
    bf16: bool = False,
) -> _Answers:
    """What a network says to all images of the batches."""
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()

    def forward(inputs: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return network(inputs.contiguous(memory_format=torch.channels_last)).float().cpu()

    rows = []
    with full_fp32(device):
        for batch in batches:
            inputs = preprocess.normalise(batch.images.to(device))
            rows.append((*averaged(forward, inputs, tta), batch.labels, batch.indices))
    network.train(was_training)
    if not rows:
        raise InputError("none of the images can be read")
    return _Answers(*(gather(torch.cat(column)) for column in zip(*rows, strict=True)))
