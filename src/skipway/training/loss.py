"""What training makes small: cross-entropy, binary cross-entropy, focal loss, each with class weights.

All take labels, or shares of classes from mixup and cutmix, and are linear in them: the loss of a mixed target is the
mix of the losses. All are means over images; those of yes-or-no decisions are means over images and classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.errors import InputError
from skipway.spec import TrainSpec

NAMES = {"cross_entropy": "cross-entropy", "bce": "binary cross-entropy", "focal": "focal loss"}
WEIGHTS = {"none": "", "balanced": ", classes weighted inversely to their images", "sqrt": ", by the root of that"}
SAMPLERS = {
    "shuffle": "each image once an epoch",
    "balanced": "every class equally often in an epoch",
    "sqrt": "classes in an epoch by the root of their images",
}


@dataclass(frozen=True)
class Objective:
    """What training does with logits and targets.

    Args:
        loss: (B, K) logits, targets -> () float32 to make small.
        right: (B, K) logits, targets -> () how many images are right; with several labels an image, shares of its
            decisions.
        hardness: (B, K) logits, targets -> (B,) float32, each image's own loss, without weights or smoothing.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    right: Callable[[Tensor, Tensor], Tensor]
    hardness: Callable[[Tensor, Tensor], Tensor]

    def judged(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss (), how many images are right (), and the logits (B, K) without their gradient."""
        seen = logits.detach()
        return self.loss(logits, targets), self.right(seen, targets), seen


@dataclass(frozen=True)
class DecisionWeights:
    """(K,) float32 each: the weight of a class's yes and of its no."""

    yes: Tensor
    no: Tensor


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats, computed in fp32.

    Args:
        logits: (B, K) float.
        targets: (B,) int64 labels, or (B, K) float shares that sum to 1.
        label_smoothing: share of the target spread evenly over all classes (Szegedy et al. 2015, arXiv:1512.00567).
        weights: (K,) float32 of the classes. The sum is divided by B, not by the batch's weights as PyTorch does for
            labels: an image's pull then does not depend on the others in its batch.

    Returns:
        () float32.
    """
    if weights is not None:
        targets = shares(targets, logits.shape[1])  # for shares PyTorch divides by B
    return F.cross_entropy(logits.float(), targets, weight=weights, label_smoothing=label_smoothing)


def focal(logits: Tensor, targets: Tensor, gamma: float, weights: Tensor | None = None) -> Tensor:
    """Softmax focal loss, -w (1 - p)^gamma log p of the target's class, in fp32; gamma 0 is cross-entropy.

    Lin et al. 2017, arXiv:1708.02002, eq. 4, with softmax probabilities; with weights eq. 5.

    Args:
        logits: (B, K) float.
        targets: (B, K) float shares.
        gamma: how much easy images count less.
        weights: (K,) float32 of the classes.
    """
    log_p = logits.float().log_softmax(1)
    rest = (1 - log_p.exp()).clamp(min=torch.finfo(log_p.dtype).eps)  # its power has no slope at 0
    losses = -targets * rest**gamma * log_p
    return (losses if weights is None else losses * weights).sum(1).mean()


def binary_focal(logits: Tensor, targets: Tensor, gamma: float, weights: DecisionWeights | None = None) -> Tensor:
    """Mean focal loss of yes-or-no decisions, in fp32; gamma 0 is binary cross-entropy with logits.

    Lin et al. 2017, arXiv:1708.02002, eq. 4: -(1 - p_t)^gamma log p_t, where p_t is sigmoid(z) for a yes and
    1 - sigmoid(z) for a no; with weights eq. 5. The mean is over images and classes (the paper's, over anchors that
    hold an object).

    Args:
        logits: (B, K) float.
        targets: (B, K) float shares of yes.
        gamma: how much easy decisions count less.
        weights: of a yes and of a no.
    """
    z = logits.float()
    log_yes, log_no = F.logsigmoid(z), F.logsigmoid(-z)
    if_yes, if_no = -(gamma * log_no).exp() * log_yes, -(gamma * log_yes).exp() * log_no
    if weights is not None:
        if_yes, if_no = if_yes * weights.yes, if_no * weights.no
    return (targets * if_yes + (1 - targets) * if_no).mean()


def shares(targets: Tensor, num_classes: int, smoothing: float = 0.0, towards: float = 0.0) -> Tensor:
    """Labels or shares as float32 shares (B, K), each moved by `smoothing` of the way `towards` a value."""
    whole = (F.one_hot(targets, num_classes) if targets.ndim == 1 else targets).float()
    return whole + smoothing * (towards - whole) if smoothing else whole


def num_right(logits: Tensor, targets: Tensor) -> Tensor:
    """How many predictions hit the label, or the largest share. -> () int64."""
    labels = targets if targets.ndim == 1 else targets.argmax(1)
    return (logits.argmax(1) == labels).sum()


def labels_right(logits: Tensor, targets: Tensor) -> Tensor:
    """The sum over images of the share of labels decided right, yes from probability 1/2 on. -> () float32."""
    return ((logits >= 0) == (targets >= 0.5)).float().mean(1).sum()


def class_weights(labels: Tensor, num_classes: int, how: str) -> Tensor:
    """Weights of classes by their images, whose mean over the images is 1.

    Args:
        labels: (N,) int64, of the train split.
        num_classes: K.
        how: "balanced": N / (K n) for a class of n images (scikit-learn's), K counting the classes that have images;
            "sqrt": in proportion to its root.

    Returns:
        (K,) float32; 1 for a class without images.
    """
    counts = labels.bincount(minlength=num_classes).double()
    there = counts > 0
    raw = torch.where(there, len(labels) / (there.sum() * counts.clamp(min=1)), 1.0)
    raw = raw.sqrt() if how == "sqrt" else raw
    mean = (raw * counts).sum() / len(labels)
    return torch.where(there, raw / mean, 1.0).float()


def decision_weights(labels: Tensor, num_classes: int, how: str) -> DecisionWeights:
    """Weights of yes-or-no decisions, for binary cross-entropy and its focal form.

    Several labels an image: "balanced" is scikit-learn's for each label by itself, N / (2 n) for its n images and
    N / (2 (N - n)) for the others, so yes counts (N - n) / n times as much as no (PyTorch's pos_weight); "sqrt" in
    proportion to the roots. Their mean over the images is 1. A label that all or none have keeps weight 1.

    One label an image: a yes has its class's weight as in class_weights, a no has 1.

    Args:
        labels: (N,) int64 or (N, K) uint8, of the train split.
        num_classes: K.
        how: "balanced" or "sqrt".
    """
    if labels.ndim == 1:
        return DecisionWeights(class_weights(labels, num_classes, how), torch.ones(num_classes))
    total, yes = len(labels), labels.sum(0).double()
    no = total - yes
    power = 0.5 if how == "sqrt" else 1.0
    raw = [(total / (2 * count.clamp(min=1))) ** power for count in (yes, no)]
    mean = (raw[0] * yes + raw[1] * no) / total
    both = (yes > 0) & (no > 0)
    return DecisionWeights(*(torch.where(both, weight / mean, 1.0).float() for weight in raw))


def settle_loss(train: TrainSpec, path: str, *, multilabel: bool, num_classes: int) -> tuple[TrainSpec, str]:
    """Put a loss in place of "auto", and say in a sentence which task, loss and sampler it is.

    Raises:
        InputError: cross-entropy for images with several labels.
    """
    if train.loss == "auto":
        train = replace(train, loss="bce" if multilabel else "cross_entropy")
    if multilabel and train.loss == "cross_entropy":
        raise InputError(
            f"train.loss cross_entropy is for one label an image, and {path} has any number of them: "
            "--loss bce or --loss focal"
        )
    task = "any number of labels an image" if multilabel else "one of several classes an image"
    if not multilabel and num_classes == 2:
        task = "one of two classes an image, the second is the positive one"
    best = "mAP" if multilabel else "accuracy"
    loss = NAMES[train.loss] + (f" (gamma {train.focal_gamma:g})" if train.loss == "focal" else "")
    return train, f"{task}, best by {best}; {loss}{WEIGHTS[train.class_weights]}; {SAMPLERS[train.sampler]}"


def make_objective(train: TrainSpec, labels: Tensor, num_classes: int, device: torch.device) -> Objective:
    """The loss that a settled spec asks for.

    Label smoothing e moves shares of one label an image to (1 - e) t + e / K, also under binary cross-entropy;
    several labels an image each towards 1/2: (1 - e) t + e / 2.

    Args:
        train: whose loss is not "auto".
        labels: (N,) int64 or (N, K) uint8, of the train split, for class weights.
        num_classes: K.
        device: where logits are.
    """
    multilabel, smoothing, gamma = labels.ndim == 2, train.label_smoothing, train.focal_gamma
    weighted = train.class_weights != "none"
    towards = 0.5 if multilabel else 1 / num_classes
    right = labels_right if multilabel else num_right
    if train.loss == "bce" or multilabel:
        decisions = decision_weights(labels, num_classes, train.class_weights) if weighted else None
        if decisions:
            decisions = DecisionWeights(decisions.yes.to(device), decisions.no.to(device))
        power = gamma if train.loss == "focal" else 0.0

        def binary(logits: Tensor, targets: Tensor) -> Tensor:
            return binary_focal(logits, shares(targets, num_classes, smoothing, towards), power, decisions)

        def doubt(logits: Tensor, targets: Tensor) -> Tensor:
            whole = shares(targets, num_classes)
            return F.binary_cross_entropy_with_logits(logits.float(), whole, reduction="none").mean(1)

        return Objective(binary, right, doubt)

    def surprise(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), targets, reduction="none")

    weights = class_weights(labels, num_classes, train.class_weights).to(device) if weighted else None
    if train.loss == "focal":
        return Objective(
            lambda z, t: focal(z, shares(t, num_classes, smoothing, towards), gamma, weights), right, surprise
        )
    return Objective(lambda z, t: cross_entropy(z, t, smoothing, weights), right, surprise)
