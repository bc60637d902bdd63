"""The backward pass addition by addition: a gradient carried back through a branch or a shortcut, as one likes.

The network computes once. Then each unit is two linear maps, the transposes of its branch's and of its shortcut's
derivative, and a path through the network is a choice between them at each unit.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from skipway.insight.probe import Probe
from skipway.insight.units import Parts, Unit


class Backward:
    """A network gone through once, to be gone back through many times.

    Args:
        probe: the network, within its context, in evaluation mode (images do not see each other).
        x: images, (B, C, H, W), as the network takes them.
        loss: from logits, (B, K), to the mean loss over the images.

    Attributes:
        units: with what each computed, in order.
        whole: the loss's gradient by x, (B, C, H, W), of each image's own loss.
    """

    def __init__(self, probe: Probe, x: Tensor, loss: Callable[[Tensor], Tensor]):
        self.units: list[tuple[Unit, Parts]] = []
        with torch.enable_grad():
            self._x = x.detach().clone().requires_grad_()
            logits = probe.run(self._x, visit=lambda unit, parts: self.units.append((unit, parts)))
            self._loss = loss(logits) * len(x)
        self.whole = _through(self._loss, self._x, None)

    @property
    def start(self) -> Tensor:
        """The loss's gradient by the last unit's output."""
        return _through(self._loss, self.units[-1][1].output, None)

    def branch(self, index: int, slope: Tensor) -> Tensor:
        """A gradient at a unit's output, carried through its branch to what came before the unit (see `before`)."""
        _, parts = self.units[index]
        return self._before(index, _through(parts.branch, parts.x, _through(parts.output, parts.branch, slope)))

    def shortcut(self, index: int, slope: Tensor) -> Tensor:
        """The same through its shortcut; the unit must have one."""
        _, parts = self.units[index]
        assert parts.shortcut is not None
        # The activation behind the sum: what it lets through to the branch it lets through to the shortcut.
        return self._before(index, _through(parts.shortcut, parts.x, _through(parts.output, parts.branch, slope)))

    def _before(self, index: int, slope: Tensor) -> Tensor:
        """From a unit's input to the output of the unit before it, or to the image."""
        came = self.units[index - 1][1].output if index else self._x
        return _through(self.units[index][1].x, came, slope)


def _through(output: Tensor, by: Tensor, slope: Tensor | None) -> Tensor:
    """The gradient at `by` of a gradient at `output`, of its shape; None: of output itself, which is a number."""
    if output is by:
        assert slope is not None
        return slope
    (found,) = torch.autograd.grad(output, by, slope, retain_graph=True, allow_unused=True)
    return torch.zeros_like(by) if found is None else found
