"""Edits answered quickly: what comes before an edit is computed once and kept, only the rest is computed again.

The inputs of some blocks are kept for every image, as many as fit into a budget; an edit starts at the last of them
that lies before it. The answer has the bits of a whole pass in the same batches.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from skipway.insight.edits import Edit, first_changed
from skipway.insight.probe import Probe, Start
from skipway.insight.watch import QUIET, Watch

BUDGET = 1 << 30  # bytes
BATCH = 250


class Prefix:
    """A subset of images that went through a network once.

    Args:
        probe: the network, within its context, in evaluation mode.
        images: (N, C, H, W) as the network takes them.
        budget: bytes that kept activations may take.
        watch: told of each batch; may cancel.

    Attributes:
        logits: (N, K) of the network as it is.
        kept: the blocks whose inputs are kept, rising.
    """

    def __init__(self, probe: Probe, images: Tensor, *, budget: int = BUDGET, watch: Watch = QUIET):
        self.probe, self.images = probe, images
        sizes = _input_sizes(probe)
        self.kept = _chosen([size * len(images) * 4 for size in sizes], budget)
        self._inputs: list[dict[int, Tensor]] = []
        self._before: tuple[Tensor, ...] = ()
        self.logits = torch.cat(list(self._fill(watch)))

    def _fill(self, watch: Watch) -> Iterator[Tensor]:
        before: dict[int, Tensor] = {}
        batches = self.images.split(BATCH)
        with torch.no_grad():
            for number, batch in enumerate(batches):
                inputs: dict[int, Tensor] = {}

                def note(index: int, x: Tensor, y: Tensor, inputs: dict[int, Tensor] = inputs) -> None:
                    if index in self.kept:
                        inputs[index] = x.clone()
                    before.setdefault(index, y[:1].clone())

                yield self.probe.run(batch, on_block=note)
                self._inputs.append(inputs)
                watch.tell((number + 1) / len(batches))
        self._before = tuple(before[i] for i in range(len(before)))

    def score(self, edits: Sequence[Edit], *, watch: Watch = QUIET) -> Tensor:
        """Logits with edits. -> (N, K). Raises InputError for an edit that cannot be."""
        first = first_changed(edits, self.probe.units)
        if first > self.probe.units[-1].index:
            return self.logits
        at = max((i for i in self.kept if i <= first), default=None)
        made = []
        batches = self.images.split(BATCH)
        with torch.no_grad():
            for number, (batch, inputs) in enumerate(zip(batches, self._inputs, strict=True)):
                start = None if at is None else Start(at, inputs[at], self._before)
                made.append(self.probe.run(batch if start is None else batch[:1], edits=edits, start=start))
                watch.tell((number + 1) / len(batches))
        return torch.cat(made)


def _input_sizes(probe: Probe) -> list[int]:
    """Numbers in each block's input, of one image."""
    sizes: dict[int, int] = {}
    for unit in probe.units:
        count = 1
        for side in unit.in_shape:
            count *= side
        sizes.setdefault(unit.index, count)
    return [sizes[i] for i in range(len(sizes))]


def _chosen(sizes: Sequence[int], budget: int) -> tuple[int, ...]:
    """Every block where that fits, else every second, third, ..."""
    for step in range(1, len(sizes) + 1):
        chosen = range(0, len(sizes), step)
        if sum(sizes[i] for i in chosen) <= budget:
            return tuple(chosen)
    return ()
