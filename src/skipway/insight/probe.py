"""The probe: look into any residual network, ours or another's, and edit it while it computes.

    with Probe(network, images[:1]) as probe:
        logits = probe.run(images)                                       # the network's own bits
        seen = probe.activations(images)                                 # "stage1.block1.branch", ".shortcut", ...
        slopes = probe.gradients(images, labels)                         # of the loss by the same tensors
        without = probe.run(images, edits=[Edit("block", "stage2.block3")])

For its time the blocks' `forward` is the probe's: the same modules in the same order, with branch and shortcut apart.
No hooks, no copies, no weight is touched; when the block ends the network is as it was.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.insight.adapters import Addition, adapter_of, known_blocks, unknown_network
from skipway.insight.edits import Edit, arranged
from skipway.insight.units import Parts, Unit, find_unit

Visit = Callable[[Unit, Parts], None]


@dataclass(frozen=True)
class Start:
    """Where to start within the network: at block `index`, on its input; what is before gives one image's outputs.

    Args:
        index: of the block.
        x: its input, (B, ...).
        before: outputs of the blocks before it, of one image, which only keep the modules in between busy.
    """

    index: int
    x: Tensor
    before: tuple[Tensor, ...]


@dataclass
class _Pass:
    """What one pass through the network does beside computing it."""

    edits: Mapping[str, tuple[Edit, ...]] = field(default_factory=dict)
    swaps: Mapping[int, int] = field(default_factory=dict)
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    visit: Visit | None = None
    start: Start | None = None
    on_block: Callable[[int, Tensor, Tensor], None] | None = None


class Probe:
    """A network under the probe, as a context.

    Args:
        network: any module with known residual blocks; in evaluation mode to score, in training mode where batch
            statistics are to be used. On any device.
        example: one image or more, (B, C, H, W), as the network takes it; tells the shapes.

    Attributes:
        units: every residual addition in order.

    Raises:
        InputError: no block of the network is known (its kinds are named), or blocks run in another order or more
            than once.
    """

    def __init__(self, network: nn.Module, example: Tensor):
        if not isinstance(network, nn.Module):
            raise InputError(f"a probe takes a network (a torch.nn.Module), got {type(network).__name__}")
        if not len(example):
            raise InputError("a probe takes one image or more as its example, got none")
        self.network = network
        found = list(known_blocks(network))
        if not found:
            raise unknown_network(network)
        self.names = [name for name, _ in found]
        self.blocks = [block for _, block in found]
        self._chains: list[tuple[Addition, ...]] = []
        self._pass = _Pass()
        self._first: dict[int, int] = {}  # where a block's units begin
        self.units: tuple[Unit, ...] = ()
        self.units = self._survey(example[:1])
        for place, unit in enumerate(self.units):
            self._first.setdefault(unit.index, place)

    def _survey(self, example: Tensor) -> tuple[Unit, ...]:
        """The units, with the shapes that one image gives them."""
        units: list[Unit] = []

        def note(unit: Unit, parts: Parts) -> None:
            taken = {u.name for u in units}
            if unit.name in taken:
                raise InputError(f"block {unit.block} runs more than once, and cannot be probed")
            skip = "none" if parts.shortcut is None else "identity" if parts.shortcut is parts.x else "changed"
            shapes = tuple(parts.x.shape[1:]), tuple(parts.output.shape[1:])
            units.append(Unit(unit.name, unit.block, unit.index, skip, *shapes))

        with evaluating(self.network), self, torch.no_grad():
            self.run(example, visit=note)
        if [u.index for u in units] != sorted(u.index for u in units):
            raise InputError("the network runs its blocks in another order than it lists them, and cannot be probed")
        return tuple(units)

    def __enter__(self) -> "Probe":
        if any("forward" in vars(block) for block in self.blocks):
            raise InputError("the network is being probed already")
        self._chains = [take_apart(block) for block in self.blocks]
        for index, block in enumerate(self.blocks):
            object.__setattr__(block, "forward", partial(self._forward, index))
        return self

    def __exit__(self, *_: object) -> None:
        for block in self.blocks:
            vars(block).pop("forward", None)
        self._chains, self._pass = [], _Pass()

    def run(
        self,
        x: Tensor,
        *,
        edits: Sequence[Edit] = (),
        inputs: Mapping[str, Tensor] | None = None,
        visit: Visit | None = None,
        start: Start | None = None,
        on_block: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """The network's logits.

        Args:
            x: (B, C, H, W) as the network takes it; with `start`, one image or more of them.
            edits: changes, for this pass alone. None of them, or only scales of 1: the network's own bits.
            inputs: what a unit gets in place of what would come, by its name.
            visit: called with each unit and its Parts, in order.
            start: go through the network from one of its blocks on.
            on_block: called with each block's index, input and output.

        Returns:
            (B, K).

        Raises:
            InputError: an edit of what is not there, or that the shapes forbid.
        """
        if not self._chains:
            raise InputError("a probe is used within its context: with Probe(network, images) as probe: ...")
        for name in inputs or {}:
            self.unit(name)
        self._pass = _Pass(*arranged(edits, self.units), inputs or {}, visit, start, on_block)
        try:
            return self.network(x)
        finally:
            self._pass = _Pass()

    def unit(self, name: str) -> Unit:
        """The unit of that name. Raises InputError, which says where a module of that name is no known block."""
        known = {u.name for u in self.units} | set(self.names)
        if name not in known and name in dict(self.network.named_modules()):
            kind = type(self.network.get_submodule(name)).__name__
            raise InputError(f"{name} is a {kind}, no residual block of a known kind: its addition is out of reach")
        return find_unit(self.units, name)

    def activations(self, x: Tensor, *, edits: Sequence[Edit] = ()) -> dict[str, Tensor]:
        """Every unit's tensors by name: 'stage1.block1.input', '.branch', '.shortcut' (not if plain), '.output'."""
        seen: dict[str, Tensor] = {}
        self.run(x, edits=edits, visit=lambda unit, parts: seen.update(_named(unit, parts)))
        return seen

    def gradients(
        self, x: Tensor, labels: Tensor, *, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    ) -> dict[str, Tensor]:
        """Gradients of the loss by every tensor that `activations` names; parameters' gradients stay as they are."""
        seen: dict[str, Tensor] = {}
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            logits = self.run(x, visit=lambda unit, parts: seen.update(_named(unit, parts)))
            found = torch.autograd.grad(loss(logits, labels), list(seen.values()), allow_unused=True)
        return {name: g for name, g in zip(seen, found, strict=True) if g is not None}

    def _forward(self, index: int, x: Tensor, *others: Any, **named: Any) -> Tensor:
        """What a block computes while it is probed."""
        if any(value is not None and value is not False for value in (*others, *named.values())):
            raise InputError(f"{self.names[index]} is given more than its input, which the probe cannot pass on")
        now = self._pass
        if now.start is not None:
            if index < now.start.index:
                return now.start.before[index]
            if index == now.start.index:
                x = now.start.x
        came = x
        place = now.swaps.get(index, index)
        for number, addition in enumerate(self._chains[place]):
            x = self._add(self._unit(place, number, addition), addition, x)
        if now.on_block is not None:
            now.on_block(index, came, x)
        return x

    def _unit(self, index: int, number: int, addition: Addition) -> Unit:
        if index in self._first:
            return self.units[self._first[index] + number]
        block = self.names[index]  # while surveyed
        return Unit(f"{block}.{addition.name}" if addition.name else block, block, index, "", (), ())

    def _add(self, unit: Unit, addition: Addition, x: Tensor) -> Tensor:
        """finish(F + S), as the edits have it."""
        now = self._pass
        x = now.inputs.get(unit.name, x)
        alphas, cut = {"branch": 1.0, "shortcut": 1.0}, False
        for edit in now.edits.get(unit.name, ()):
            cut = cut or edit.kind == "block"
            if edit.kind in alphas:
                alphas[edit.kind] = edit.alpha
        if cut and addition.shortcut is None:
            if now.visit is not None:
                now.visit(unit, Parts(x, torch.zeros_like(x), None, x))
            return x
        h = addition.before(x)
        shortcut = None if addition.shortcut is None else _scaled(addition.shortcut, h, alphas["shortcut"])
        branch = None if cut or not alphas["branch"] else _scaled(addition.branch, h, alphas["branch"])
        if branch is None:  # without computing it
            branch = torch.zeros_like(shortcut if shortcut is not None else addition.branch(h))
            total = shortcut.clone() if shortcut is not None else branch.clone()
        else:
            total = branch.clone() if shortcut is None else branch + shortcut
        output = addition.finish(total)
        if now.visit is not None:
            now.visit(unit, Parts(x, branch, shortcut, output))
        return output


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """With the network in evaluation mode; each module is put back into its own."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def take_apart(block: nn.Module) -> tuple[Addition, ...]:
    """The additions of a known block."""
    adapter = adapter_of(block)
    assert adapter is not None
    return adapter(block)


def _scaled(part: Callable[[Tensor], Tensor], x: Tensor, alpha: float) -> Tensor:
    made = part(x)
    return made if alpha == 1 else made * alpha


def _named(unit: Unit, parts: Parts) -> dict[str, Tensor]:
    tensors = {"input": parts.x, "branch": parts.branch, "shortcut": parts.shortcut, "output": parts.output}
    return {f"{unit.name}.{key}": value for key, value in tensors.items() if value is not None}
