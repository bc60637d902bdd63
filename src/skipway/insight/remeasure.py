"""Batch norms' running statistics measured again with an edit in place, on a copy of the network."""

import copy
from collections.abc import Sequence

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from skipway.errors import InputError
from skipway.insight.edits import Edit
from skipway.insight.prefix import BATCH
from skipway.insight.probe import Probe
from skipway.insight.subject import Images, Subject
from skipway.insight.watch import QUIET, Watch


class Remeasured:
    """A copy of a subject's network whose statistics follow what is cut.

    Every batch norm's mean and variance become the averages over batches of the train images, gone through the edited
    network; weights stay. Nothing else of the network is put into training mode.

    Args:
        subject: of whose network a copy is made; not while it is being probed.
        num_images: train images at most.

    Raises:
        InputError: the network has no batch norm with running statistics.
    """

    def __init__(self, subject: Subject, *, num_images: int):
        self.network = copy.deepcopy(subject.network)
        self.norms = [m for m in self.network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        if not self.norms:
            raise InputError(f"{subject.title} has no batch norm: there are no statistics to measure again")
        inputs = subject.train.first(num_images).inputs
        self._batches = inputs.tensor_split(-(-len(inputs) // BATCH))

    def logits(self, images: Images, edits: Sequence[Edit], *, watch: Watch = QUIET) -> torch.Tensor:
        """Logits with edits and with the statistics that belong to them. -> (N, K)."""
        with torch.no_grad(), Probe(self.network, images.inputs) as probe:
            for norm in self.norms:
                norm.train()
            for number, batch in enumerate(self._batches):
                for norm in self.norms:
                    norm.momentum = 1 / (number + 1)  # the plain average over batches
                probe.run(batch, edits=edits)
                watch.tell((number + 1) / (2 * len(self._batches)))
            self.network.eval()
            made = [probe.run(batch, edits=edits) for batch in images.inputs.split(BATCH)]
            watch.tell(1.0)
        return torch.cat(made)
