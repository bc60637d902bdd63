"""Cross-entropy against class labels or shares of classes."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy in nats, computed in fp32.

    Args:
        logits: (B, K) float.
        targets: (B,) int64 labels, or (B, K) float shares that sum to 1.
        label_smoothing: share of the target spread evenly over all classes (Szegedy et al. 2015, arXiv:1512.00567).

    Returns:
        () float32.
    """
    return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)


def num_right(logits: Tensor, targets: Tensor) -> Tensor:
    """How many predictions hit the label, or the largest share. -> () int64."""
    labels = targets if targets.ndim == 1 else targets.argmax(1)
    return (logits.argmax(1) == labels).sum()
