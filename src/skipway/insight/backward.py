"""The backward pass addition by addition: a gradient carried back through a branch or a shortcut, as one likes.

The network computes once. Then each unit is two linear maps, the transposes of its branch's and of its shortcut's
derivative, and a path through the network is a choice between them at each unit.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from skipway.insight.probe import Probe
from skipway.insight.units import Parts, Unit
from skipway.insight.watch import QUIET, Watch


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


def sums_by_length(back: Backward, *, watch: Watch = QUIET) -> dict[int, Tensor]:
    """The gradients at the image of all paths of each length, added up: length -> (B, C, H, W).

    Going back through a unit, what has passed k branches is k through its skip and k + 1 through its branch.

    Args:
        back: the network gone through.
        watch: told after each unit.
    """
    sums = {0: back.start}
    for index in reversed(range(len(back.units))):
        before: dict[int, Tensor] = {}
        for length, slope in sums.items():
            if back.units[index][0].skip != "none":
                _add(before, length, back.shortcut(index, slope))
            _add(before, length + 1, back.branch(index, slope))
        sums = before
        watch.tell(1 - index / len(back.units))
    return dict(sorted(sums.items()))


def one_path(back: Backward, taken: frozenset[int]) -> Tensor:
    """The gradient at the image along one path. -> (B, C, H, W).

    Args:
        back: the network gone through.
        taken: indices of the units whose branch it passes; it passes the skip of the others.
    """
    slope = back.start
    for index in reversed(range(len(back.units))):
        slope = back.branch(index, slope) if index in taken else back.shortcut(index, slope)
    return slope


def _through(output: Tensor, by: Tensor, slope: Tensor | None) -> Tensor:
    """The gradient at `by` of a gradient at `output`, of its shape; None: of output itself, which is a number."""
    if output is by:
        assert slope is not None
        return slope
    (found,) = torch.autograd.grad(output, by, slope, retain_graph=True, allow_unused=True)
    return torch.zeros_like(by) if found is None else found


def _add(sums: dict[int, Tensor], length: int, slope: Tensor) -> None:
    sums[length] = sums[length] + slope if length in sums else slope
