"""How strongly a network answers, measured in one pass: each norm of its branches, each of its additions."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from skipway.insight.adapters import known_blocks
from skipway.insight.probe import Probe, evaluating
from skipway.insight.subject import Images
from skipway.insight.units import Parts, Unit
from skipway.insight.watch import QUIET, Watch
from skipway.nn.block import Block

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
BATCH = 50


@dataclass(frozen=True)
class Layer:
    """One layer's response.

    Args:
        name: of the norm (what stands in its place without norms), 'stage1.block1.norm2'.
        block: that it is in.
        std: standard deviation over images, channels and places.
    """

    name: str
    block: str
    std: float


@dataclass(frozen=True)
class Share:
    """What one residual addition adds.

    Args:
        name, opens: of the unit; whether it opens a stage.
        branch, shortcut, output: standard deviations of F, S and what leaves the unit; shortcut is NaN without skip.
        share: var F / (var F + var S), in [0, 1]: 0 where the block is its shortcut; NaN without skip.
        ratio: root mean square of F over that of S, which counts means too; NaN without skip.
    """

    name: str
    opens: bool
    branch: float
    shortcut: float
    output: float
    share: float
    ratio: float


@dataclass
class Moments:
    """Count, sum and sum of squares of numbers that come in parts."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, x: Tensor) -> None:
        """Count these in."""
        x = x.detach().double()
        self.count += x.numel()
        self.total += x.sum().item()
        self.squares += x.square().sum().item()

    @property
    def var(self) -> float:
        """The variance over all of them."""
        return max(self.squares / self.count - (self.total / self.count) ** 2, 0.0)

    @property
    def std(self) -> float:
        """Its root."""
        return self.var**0.5


@dataclass
class _Unit:
    unit: Unit
    branch: Moments = field(default_factory=Moments)
    shortcut: Moments = field(default_factory=Moments)
    output: Moments = field(default_factory=Moments)

    def add(self, parts: Parts) -> None:
        self.branch.add(parts.branch)
        self.output.add(parts.output)
        if parts.shortcut is not None:
            self.shortcut.add(parts.shortcut)

    def share(self) -> Share:
        f, s, y = self.branch, self.shortcut, self.output
        skips, nothing = s.count > 0, float("nan")
        return Share(
            self.unit.name,
            self.unit.opens,
            f.std,
            s.std if skips else nothing,
            y.std,
            f.var / (f.var + s.var) if skips and f.var + s.var > 0 else nothing,
            (f.squares / s.squares) ** 0.5 if skips and s.squares > 0 else nothing,
        )


def measured(
    network: nn.Module, images: Images, *, batch_statistics: bool = False, watch: Watch = QUIET
) -> tuple[tuple[Layer, ...], tuple[Share, ...]]:
    """Responses of a network's layers and additions.

    Args:
        network: ours or another's; evaluated in evaluation mode.
        images: which it sees.
        batch_statistics: batch norms use each batch's own statistics, and their running ones move.
        watch: told of each batch.

    Returns:
        The layers and the units, in order.
    """
    with Probe(network, images.inputs) as probe, evaluating(network), torch.no_grad(), _listening(network) as heard:
        if batch_statistics:
            for norm in network.modules():
                if isinstance(norm, _BatchNorm):
                    norm.train()
        found = {unit.name: _Unit(unit) for unit in probe.units}
        batches = images.inputs.tensor_split(-(-len(images) // BATCH))
        for number, batch in enumerate(batches):
            probe.run(batch, visit=lambda unit, parts: found[unit.name].add(parts))
            watch.tell((number + 1) / len(batches))
    layers = (Layer(name, block, m.std) for (name, block), m in heard.items() if m.count)
    return tuple(layers), tuple(u.share() for u in found.values())


@contextmanager
def _listening(network: nn.Module) -> Iterator[dict[tuple[str, str], Moments]]:
    """Moments of what each norm of a branch gives out, while the context lasts; by its name and its block's."""
    heard: dict[tuple[str, str], Moments] = {}
    hooks = []
    for name, block, module in _norms(network):
        moments = heard[name, block] = Moments()
        hooks.append(module.register_forward_hook(partial(_hear, moments)))
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def _hear(moments: Moments, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    moments.add(output)  # at once: the activation that follows may change it in place


def _norms(network: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """The norms of the blocks' branches with their blocks' names; in ours also what stands in a norm's place."""
    for shown, block in known_blocks(network):
        if isinstance(block, Block):
            for name in (f"norm{i + 1}" for i in range(block.num_convs)):
                yield f"{shown}.{name}", shown, block.get_submodule(name)
            continue
        for name, module in block.named_modules():
            acts = not isinstance(getattr(module, "act", nn.Identity()), nn.Identity)
            skips = name.startswith(("downsample", "shortcut"))
            if isinstance(module, NORMS) and not acts and not skips:
                yield f"{shown}.{name}", shown, module
