"""From logits to probabilities: the same for training, evaluation and prediction."""

import torch.nn.functional as F
from torch import Tensor


def class_logits(logits: Tensor, loss: str) -> Tensor:
    """Logits whose softmax gives the probabilities of classes of which an image has one.

    "bce" trains each logit as one class against all others, so that its sigmoid is the class's own probability. The
    probabilities of all classes are then these sigmoids over their sum (the usual one-vs-rest normalisation), which
    is the softmax of their logarithms. The other losses train the softmax itself.

    Args:
        logits: (B, K) float.
        loss: as in TrainSpec.

    Returns:
        (B, K) float.
    """
    return F.logsigmoid(logits) if loss == "bce" else logits
