"""Hard examples: the images of a batch with the largest loss, from which alone a step learns, and who says so.

"last" remembers, which costs no forward pass; on an accelerator each step then waits for its losses. "proxy" looks at
the batch (step.py).
"""

import dataclasses

import torch
from torch import Tensor

from skipway.data.loader import Batch
from skipway.network_spec import NetworkSpec

UNSEEN = torch.finfo(torch.float32).max


def hardest(losses: Tensor, share: float) -> Tensor:
    """Which samples have the largest losses (B,): a share of them, two at the least, in their order. -> (n,) int64."""
    keep = max(round(share * len(losses)), min(len(losses), 2))
    return losses.topk(keep).indices.sort().values


class LastLosses:
    """The loss that each image had when it was last learnt from (after Loshchilov and Hutter 2015, arXiv:1511.06343).

    One that was not learnt from yet is the hardest there is. What was left out keeps its loss, and is learnt from again
    once others have fallen below it.

    Attributes:
        losses: (N,) float32 on the CPU, by index in the source; N grows with the largest index.
    """

    def __init__(self) -> None:
        self.losses = torch.empty(0)

    def of(self, indices: Tensor) -> Tensor:
        """The last losses of some images. (B,) int64 -> (B,)."""
        self._reach(indices)
        return self.losses[indices]

    def put(self, indices: Tensor, losses: Tensor) -> None:
        """Remember the losses of some images, (B,) int64 and (B,)."""
        self._reach(indices)
        self.losses[indices] = losses.to(self.losses)

    def hardest(self, batch: Batch, share: float) -> Batch:
        """The part of a batch that is to be learnt from."""
        chosen = hardest(self.of(batch.indices), share)
        return dataclasses.replace(
            batch, images=batch.images[chosen], labels=batch.labels[chosen], indices=batch.indices[chosen]
        )

    def _reach(self, indices: Tensor) -> None:
        more = int(indices.max()) + 1 - len(self.losses)
        if more > 0:
            self.losses = torch.cat([self.losses, torch.full((more,), UNSEEN)])


def narrower(network: NetworkSpec) -> NetworkSpec:
    """The same network at a quarter of the width, and at least 16 channels.

    Shortcuts that pad with zeros become projections: a whitening stem, which stays as wide, may give more channels.
    """
    if network.shortcut.endswith("zero_pad"):
        network = dataclasses.replace(network, shortcut="avg_pool" if network.shortcut != "zero_pad" else "projection")
    stages = tuple(dataclasses.replace(stage, width=max(stage.width // 4, 16)) for stage in network.stages)
    width = min(max(network.stem_width // 4, 16), stages[0].width)
    return dataclasses.replace(network, stages=stages, stem_width=width, name="custom", norm_groups=4)
