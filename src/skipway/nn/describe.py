"""What a network is made of: layers with shapes, parameters and multiply-accumulates, and where the skips run."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.foreign_spec import ForeignSpec, cannot_change, is_foreign
from skipway.network_spec import STEM_DOWNSAMPLING, NetworkSpec, StageSpec
from skipway.nn.block import Block, BlockShape, block_shapes
from skipway.nn.description import Description, LayerRow, kept_for_backward, kind_of, macs_of
from skipway.nn.network import Head, ResNet
from skipway.nn.pools import AvgPool, BlurPool
from skipway.nn.shortcut import Projection, ZeroPad
from skipway.nn.stem import make_stem
from skipway.nn.trace import trace
from skipway.nn.zoo import ZOO, find, resolve_stem
from skipway.trust import check_trust

FAMILY_SIZE = dict.fromkeys(STEM_DOWNSAMPLING, 224)  # pixels at which a family is counted; 32 for the rest


def describe(
    network: str | NetworkSpec | ForeignSpec | ResNet,
    *,
    image_size: int = 0,
    batch_size: int = 1,
    trust_code: bool = False,
) -> Description:
    """Describe a network without allocating it; another's is made, and run on one image.

    Args:
        network: a zoo name, timm:NAME, torchvision:NAME, python:module:function, a spec, or a network of ours.
        image_size: pixels a side; 0: 32 for the cifar stem, 224 for the imagenet stem and for others' networks.
        batch_size: images that the activation memory is counted for.
        trust_code: run a python: network's code where a spec names it and nobody named it here before.

    Returns:
        A Description.

    Raises:
        InputError: an unknown name, or an image size that the network cannot take.

    Example:
        >>> describe("tutorial").parameters
        43242
    """
    check_trust(network, trust_code=trust_code)
    if is_foreign(network):
        network = ForeignSpec(str(network), num_classes=1000)
    spec = find(network) if isinstance(network, str) else network.spec if isinstance(network, ResNet) else network
    if not isinstance(image_size, int) or not 0 <= image_size <= 65536:
        raise InputError(f"image_size must be between 1 and 65536, got {image_size}")
    if not isinstance(batch_size, int) or not 1 <= batch_size <= 10**6:
        raise InputError(f"batch_size must be between 1 and 1000000, got {batch_size}")
    if isinstance(spec, ForeignSpec):
        if image_size > 4096:
            raise InputError(f"image_size must be at most 4096 for others' networks, which are run, got {image_size}")
        return trace(spec, image_size or 224, batch_size)
    size = image_size or FAMILY_SIZE.get(spec.stem, 32)
    spec, _ = resolve_stem(spec, size)
    spec.check_image_size(size)
    walk = _Walk(spec, batch_size, size)
    layers = tuple(walk.layers)
    macs = sum(row.macs for row in layers)
    return Description(
        name=spec.name,
        source=ZOO[spec.name].source if spec.name in ZOO else "",
        input=(spec.in_channels, size, size),
        layers=layers,
        skips=walk.skips,
        parameters=sum(row.parameters for row in layers),
        macs=macs,
        flops=2 * macs,
        batch_size=batch_size,
        activation_bytes=walk.saved,
        warning=resolve_stem(spec, size)[1].removeprefix("warning: "),
    )


def changed(network: Any, changes: Mapping[str, Any]) -> Any:
    """A network's spec with some fields changed; another's, which has none of them, only as it is.

    Raises:
        InputError: an unknown name, or fields that a network of another's does not have.
    """
    if not changes:
        return network
    if is_foreign(network) or isinstance(network, ForeignSpec):
        raise cannot_change(str(getattr(network, "name", network)), changes)
    spec = find(network) if isinstance(network, str) else network
    return replace(spec, name="custom", **changes)


class _Walk:
    """One pass through a network's parts on torch's meta device; blocks that are alike are walked once."""

    def __init__(self, spec: NetworkSpec, batch_size: int, size: int):
        self.layers: list[LayerRow] = []
        self.skips: dict[str, str] = {}
        self.saved = 0
        self.field, self.jump = 1, 1
        self.kept = False  # whether the part before keeps what it gave out
        alike = replace(spec, name="", stages=(StageSpec(1, spec.stages[-1].width),))  # what a part knows of it
        x = self._add("stem", _watch(alike, None, (batch_size, spec.in_channels, size, size)))
        for i, stage in enumerate(block_shapes(spec), 1):
            for j, shape in enumerate(stage, 1):
                whole = spec.drop_path_by == "sample"  # the rate changes nothing of what a block keeps
                watched = _watch(alike, replace(shape, drop_path=float(shape.drop_path > 0) / 2) if whole else shape, x)
                x = self._add(f"stage{i}.block{j}", watched)
                self.skips[f"stage{i}.block{j}"] = watched.skip
        self._add("head", _watch(alike, "head", x))

    def _add(self, part: str, watched: "_Watched") -> tuple[int, ...]:
        for name, module, shape in watched.leaves:
            if "shortcut" not in name and "attention" not in name:
                self._see(module)
            parameters = sum(p.numel() for p in module.parameters())
            row = LayerRow(part, name, kind_of(module), shape, parameters, macs_of(module, shape), self.field)
            self.layers.append(row)
        self.saved += watched.saved + (0 if self.kept else watched.saved_input)
        self.kept = watched.keeps_output
        return watched.output

    def _see(self, module: nn.Module) -> None:
        """Widen the receptive field by one layer's kernel."""
        if isinstance(module, nn.PixelUnshuffle):
            self.field, self.jump = 4, 4
        elif isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, BlurPool)):
            first = lambda value: value[0] if isinstance(value, tuple) else value  # noqa: E731
            size = 3 if isinstance(module, BlurPool) else first(module.kernel_size)
            dilation = first(module.dilation) if isinstance(module, nn.Conv2d) else 1
            self.field += (size - 1) * dilation * self.jump
            self.jump *= 2 if isinstance(module, BlurPool) else first(module.stride)


@dataclass(frozen=True)
class _Watched:
    """A part that ran: leaves with output shapes, its output's shape, its skip, and what it keeps for backward.

    `saved` are bytes beside the input's, `saved_input` the input's, and `keeps_output` says whether the output is
    among those: what two neighbours keep is there once.
    """

    leaves: list[tuple[str, nn.Module, tuple[int, ...]]]
    output: tuple[int, ...]
    skip: str
    saved: int
    saved_input: int
    keeps_output: bool


@lru_cache(maxsize=4096)
def _watch(spec: NetworkSpec, part: BlockShape | Literal["head"] | None, input: tuple[int, ...]) -> _Watched:
    """Run a block of this shape, the head, or (None) the stem, on torch's meta device.

    A checkpointed block keeps its input alone.
    """
    leaves: list[tuple[str, nn.Module, tuple[int, ...]]] = []
    with torch.device("meta"):
        module = make_stem(spec) if part is None else Head(spec) if part == "head" else Block(spec, part)
        x = torch.empty(input)
    for name, leaf in module.named_modules():
        if isinstance(leaf, nn.BatchNorm2d):
            leaf.forward = partial(_normalise, leaf)
        if not any(leaf.children()) and not isinstance(leaf, nn.Identity):
            leaf.register_forward_hook(
                lambda leaf, _, output, name=name: leaves.append((name, leaf, tuple(output.shape[1:])))
            )
    with kept_for_backward(module) as kept:
        output = module.train()(x.requires_grad_(part is not None))
    if spec.checkpoint and isinstance(part, BlockShape):
        kept = {x.untyped_storage()._cdata: x.untyped_storage()}
    saved_input = x.untyped_storage().nbytes() if x.untyped_storage()._cdata in kept else 0
    return _Watched(
        leaves,
        tuple(output.shape),
        skip=_skip(module.shortcut) if isinstance(module, Block) else "",
        saved=sum(storage.nbytes() for storage in kept.values()) - saved_input,
        saved_input=saved_input,
        keeps_output=output.untyped_storage()._cdata in kept,
    )


def _normalise(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Batch norm in training; for one pixel of one image too, where torch's own refuses."""
    if x.numel() > x.shape[1]:
        return nn.BatchNorm2d.forward(norm, x)
    return torch.batch_norm(x, norm.weight, norm.bias, None, None, True, 0.1, norm.eps, False)


def _skip(shortcut: nn.Module | None) -> str:
    if shortcut is None:
        return "none"
    if isinstance(shortcut, ZeroPad):
        return "zero pad"
    if isinstance(shortcut, AvgPool):
        return "average, zero pad" if shortcut.before or shortcut.behind else "average"
    if isinstance(shortcut, Projection):
        return "projection" if shortcut.pool is None else "average, projection"
    return "identity"
