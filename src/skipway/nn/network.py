"""ResNet = stem -> stages of residual blocks -> head, and `build`, which makes one from a spec or a name."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from skipway.errors import InputError
from skipway.foreign_spec import is_foreign
from skipway.network_spec import NetworkSpec
from skipway.nn import kernels
from skipway.nn.block import Block, block_shapes
from skipway.nn.initialise import initialise
from skipway.nn.layers import FixupBias, make_act, make_norm
from skipway.nn.stem import STEMS, make_stem
from skipway.nn.zoo import find, resolve_stem


class Head(nn.Module):
    """Norm and activation where pre-activation blocks left them open, global pool, dropout, linear layer, factor."""

    def __init__(self, spec: NetworkSpec):
        super().__init__()
        self.norm = make_norm(spec, spec.out_width) if spec.preact else None
        self.act = make_act(spec, inplace=False) if spec.preact else None
        self.max_pool, self.scale = spec.head_pool == "max", spec.head_scale
        self.dropout = nn.Dropout(spec.head_dropout) if spec.head_dropout else None
        self.bias = FixupBias() if spec.init == "fixup" and spec.head == "linear" else None
        self.linear = nn.Linear(spec.out_width, spec.num_classes) if spec.head == "linear" else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C) -> (B, num_classes), or (B, C) where the head is "features"."""
        if self.norm is not None and self.act is not None:
            x = self.act(self.norm(x))
        x = (x.amax((2, 3), keepdim=True) if self.max_pool else x.mean((2, 3), keepdim=True)).flatten(1)
        if self.linear is None:
            return x
        if self.dropout is not None:
            x = self.dropout(x)
        x = self.linear(x if self.bias is None else self.bias(x))
        return x if self.scale == 1 else x * self.scale


class ResNet(nn.Module):
    """A residual network (He et al. 2015, arXiv:1512.03385) from its spec.

    Args:
        spec: the network; its stem must be settled (not "auto").

    Attributes:
        spec: as given.
        stem, stages, head: the parts; `stages[i][j]` is block j of stage i.
    """

    def __init__(self, spec: NetworkSpec):
        super().__init__()
        if spec.stem not in STEMS:
            raise InputError(f"network.stem is '{spec.stem}': name one of {', '.join(STEMS)}, or give the image size")
        self.spec = spec
        self.stem = make_stem(spec)
        self.stages = nn.ModuleList(nn.ModuleList(Block(spec, s) for s in stage) for stage in block_shapes(spec))
        self.head = Head(spec)

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """Every block with its name, in order: ("stage1.block1", block), ..."""
        for i, stage in enumerate(self.stages, 1):
            assert isinstance(stage, nn.ModuleList)
            for j, block in enumerate(stage, 1):
                assert isinstance(block, Block)
                yield f"stage{i}.block{j}", block

    def forward(self, x: Tensor) -> Tensor:
        """Logits. (B, C, H, W) float -> (B, num_classes), or (B, C') where the head is "features"."""
        x = self.stem(x)
        thrifty = self.spec.checkpoint and self.training and not torch.compiler.is_compiling()
        for _, block in self.blocks():
            x = recomputed(block, x) if thrifty else block(x)
        return self.head(x)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Every part's output by name: "stem", "stage2.block1" -> (B, C', H', W'), ..., "logits" -> (B, K)."""
        x = self.stem(x)
        named = {"stem": x}
        for name, block in self.blocks():
            x = named[name] = block(x)
        named["logits"] = self.head(x)
        return named


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """block(x), keeping x alone for the backward pass, which computes the rest again (Chen et al. 2016, 1604.06174).

    Running statistics move once, dropout repeats its draws, and the same kernels compute, whatever is in use by then:
    the gradients are those without it.
    """
    again = partial(_again, block, own_kernels=kernels.active)
    made = checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), again()))
    assert isinstance(made, Tensor)
    return made


@contextmanager
def _again(block: nn.Module, *, own_kernels: bool) -> Iterator[None]:
    """Compute as before; batch norms move copies of their running statistics, which keeps what autograd saves alike."""
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    own = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers()]
    for norm, name, buffer in own:
        setattr(norm, name, buffer.clone())
    try:
        with kernels.used(own_kernels):
            yield
    finally:
        for norm, name, buffer in own:
            setattr(norm, name, buffer)


def build(
    network: str | NetworkSpec,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> ResNet:
    """A network with fresh weights.

    Args:
        network: a zoo name such as "resnet20" (see `skipway networks`), or a spec.
        num_classes: number of logits; default: the spec's.
        in_channels: channels of an image; default: the spec's.
        image_size: pixels a side; only needed where the spec's stem is "auto".
        seed: of the initial weights; the same seed gives the same bits.

    Returns:
        A ResNet in training mode, fp32, on the CPU: (B, in_channels, H, W) float -> (B, num_classes).

    Raises:
        InputError: an unknown name, a value out of bounds, or a stem left open.

    Example:
        >>> sum(p.numel() for p in build("resnet20", num_classes=10).parameters())
        269722
    """
    if is_foreign(network):
        raise InputError(f"build makes skipway's own networks; for {network} there is build_foreign")
    spec = find(network) if isinstance(network, str) else network
    if num_classes is not None:
        spec = dataclasses.replace(spec, num_classes=num_classes)
    if in_channels is not None:
        spec = dataclasses.replace(spec, in_channels=in_channels)
    if image_size is not None:
        spec, _ = resolve_stem(spec, image_size)
        spec.check_image_size(image_size)
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator when they are made
        made = ResNet(spec)
    initialise(made, spec, torch.Generator().manual_seed(seed))
    return made


def skeleton(spec: NetworkSpec) -> ResNet:
    """The network with shapes and no memory (torch's meta device), for counting and describing."""
    with torch.device("meta"):
        return ResNet(spec)
