"""Numbers that are none: seen before they reach the weights, and told where they came from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from skipway.training.loss import Objective
from skipway.training.sharding import whole


class BadNumbers(Exception):
    """An update would have brought infinity or NaN into the weights. It was not made.

    Args:
        what: the loss, or a gradient.
        where: the layer that they came from first.
        places: in the batch, of the samples whose own loss is none.
    """

    def __init__(self, what: str, where: str, places: tuple[int, ...]):
        super().__init__(f"{what} is no finite number; {where}")
        self.what, self.where, self.places = what, where, places


@dataclass
class Guard:
    """Looks at each update before it is made, and keeps the buffers (batch statistics) that a forward pass moves.

    Args:
        network: whose updates.
    """

    network: nn.Module
    _buffers: list[Tensor] = field(default_factory=list)

    @torch.no_grad()
    def before(self) -> None:
        """Remember the buffers."""
        now = list(self.network.buffers())
        if len(self._buffers) != len(now):
            self._buffers = [buffer.clone() for buffer in now]
        for kept, buffer in zip(self._buffers, now, strict=True):
            kept.copy_(buffer)

    @torch.no_grad()
    def check(self, loss: Tensor, inputs: Tensor, targets: Tensor, objective: Objective, forward: Callable) -> None:
        """Refuse an update whose loss or gradient is not finite.

        Args:
            loss: () of the batch.
            inputs, targets: what it came from.
            objective: the loss of each image.
            forward: inputs -> logits, as in training.

        Raises:
            BadNumbers: the buffers are again what they were before it.
        """
        grads = [p.grad for p in self.network.parameters() if p.grad is not None]
        if torch.isfinite(loss + whole(nn.utils.get_total_norm(grads, foreach=True))):
            return
        what = "the gradient" if torch.isfinite(loss) else "the loss"
        with first_bad(self.network) as found:
            each = objective.hardness(forward(inputs), targets)
        where = found[0] if found else _bad_gradients(self.network)
        places = tuple(torch.nonzero(~torch.isfinite(each)).flatten().tolist())
        if not torch.isfinite(inputs).all():
            where = "it is in the images already"
            places = tuple(torch.nonzero(~torch.isfinite(inputs).flatten(1).all(1)).flatten().tolist())
        for kept, buffer in zip(self._buffers, self.network.buffers(), strict=False):
            buffer.copy_(kept)
        self.network.zero_grad(set_to_none=True)
        raise BadNumbers(what, where, places)


@contextmanager
def first_bad(network: nn.Module) -> Iterator[list[str]]:
    """The layer whose output is the first that is not finite, in words, once there was one."""
    found: list[str] = []

    def look(name: str, module: nn.Module) -> Callable:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                weights = [key for key, p in module.named_parameters() if not torch.isfinite(whole(p)).all()]
                own = f", whose {' and '.join(weights)} is not finite" if weights else ""
                found.append(f"the first is in the output of {name} ({type(module).__name__}{own})")

        return hook

    parts = [(name, module) for name, module in network.named_modules() if name]  # a layer is done before its block
    handles = [module.register_forward_hook(look(name, module)) for name, module in parts]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _bad_gradients(network: nn.Module) -> str:
    """The parameters whose gradients are not finite: the last one in the network is the first in going back."""
    bad = [k for k, p in network.named_parameters() if p.grad is not None and not torch.isfinite(whole(p.grad)).all()]
    if not bad:
        return "no single gradient is, but their sum"
    return f"going back, the first is the gradient of {bad[-1]} ({len(bad)} in all)"


def bad_weights(tensors: dict[str, Tensor]) -> list[str]:
    """The names of tensors that hold infinity or NaN."""
    return [key for key, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, on whichever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    if any(words in str(error) for words in ("can't allocate memory", "not enough memory", "out of memory")):
        return True
    return "primitive" in str(error) and not _has(1 << 28)  # what oneDNN says, of this and of other things


def _has(size: int) -> bool:
    """Whether so many bytes can be had now."""
    try:
        torch.empty(size, dtype=torch.uint8)
    except RuntimeError:
        return False
    return True
