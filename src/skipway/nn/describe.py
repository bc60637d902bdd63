"""What a network is made of: layers with shapes, parameters and multiply-accumulates, and where the skips run."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.network_spec import STEM_DOWNSAMPLING, NetworkSpec, StageSpec
from skipway.nn.block import Block, BlockShape, block_shapes
from skipway.nn.layers import BlurPool
from skipway.nn.network import Head
from skipway.nn.shortcut import Projection, ZeroPad
from skipway.nn.stem import make_stem
from skipway.nn.zoo import ZOO, find, resolve_stem

FAMILY_SIZE = dict.fromkeys(STEM_DOWNSAMPLING, 224)  # pixels at which a family is counted; 32 for the rest


@dataclass(frozen=True)
class LayerRow:
    """One layer: `part` is its block ("stage1.block2"), `output` its shape without the batch, counts for one image.

    `receptive_field` is how many pixels of the image, along a side, one output pixel can see (through convolutions
    and pools; attention sees all).
    """

    part: str
    layer: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    receptive_field: int


@dataclass(frozen=True)
class Description:
    """A network on paper.

    Args:
        name: the zoo's, or "custom".
        source: paper, where the zoo knows it.
        input: (C, H, W).
        layers: in the order of computation.
        skips: block -> what its shortcut is: "identity", "zero pad", "projection", "average, projection" or "none".
        parameters: trainable numbers.
        macs: multiply-accumulates of convolutions and linear layers for one image.
        flops: 2 x macs.
        batch_size: images that `activation_bytes` is for.
        activation_bytes: what a training step keeps in fp32 for its backward pass, besides weights.
        warning: what speaks against this network at this image size; "" if nothing does.
    """

    name: str
    source: str
    input: tuple[int, int, int]
    layers: tuple[LayerRow, ...]
    skips: dict[str, str]
    parameters: int
    macs: int
    flops: int
    batch_size: int
    activation_bytes: int
    warning: str

    @property
    def receptive_field(self) -> int:
        """Pixels of the image, along a side, that one pixel of the last feature map can see."""
        return max(row.receptive_field for row in self.layers)


def describe(network: str | NetworkSpec, *, image_size: int = 0, batch_size: int = 1) -> Description:
    """Describe a network without allocating it.

    Args:
        network: a zoo name or a spec.
        image_size: pixels a side; 0: 32 for the cifar stem, 224 for the imagenet stem.
        batch_size: images that the activation memory is counted for.

    Returns:
        A Description.

    Raises:
        InputError: an unknown name, or an image size that the network cannot take.

    Example:
        >>> describe("tutorial").parameters
        43242
    """
    spec = find(network) if isinstance(network, str) else network
    if not isinstance(image_size, int) or not 0 <= image_size <= 65536:
        raise InputError(f"image_size must be between 1 and 65536, got {image_size}")
    if not isinstance(batch_size, int) or not 1 <= batch_size <= 10**6:
        raise InputError(f"batch_size must be between 1 and 1000000, got {batch_size}")
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


class _Walk:
    """One pass through a network's parts on torch's meta device; blocks that are alike are walked once."""

    def __init__(self, spec: NetworkSpec, batch_size: int, size: int):
        self.layers: list[LayerRow] = []
        self.skips: dict[str, str] = {}
        self.saved = 0
        self.field, self.jump = 1, 1
        alike = replace(spec, name="", stages=(StageSpec(1, spec.stages[-1].width),))  # what a part knows of it
        x = self._add("stem", _watch(alike, None, (batch_size, spec.in_channels, size, size)))
        for i, stage in enumerate(block_shapes(spec), 1):
            for j, shape in enumerate(stage, 1):
                watched = _watch(alike, replace(shape, drop_path=float(shape.drop_path > 0) / 2), x)
                x = self._add(f"stage{i}.block{j}", watched)
                self.skips[f"stage{i}.block{j}"] = watched.skip
        self._add("head", _watch(alike, "head", x))

    def _add(self, part: str, watched: "_Watched") -> tuple[int, ...]:
        for name, module, shape in watched.leaves:
            if "shortcut" not in name and "attention" not in name:
                self._see(module)
            parameters = sum(p.numel() for p in module.parameters())
            self.layers.append(LayerRow(part, name, _kind(module), shape, parameters, _macs(module, shape), self.field))
        self.saved += watched.saved
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
    """A part that ran: leaves with output shapes, its output's shape, bytes kept for backward, its skip."""

    leaves: list[tuple[str, nn.Module, tuple[int, ...]]]
    output: tuple[int, ...]
    saved: int
    skip: str


@lru_cache(maxsize=4096)
def _watch(spec: NetworkSpec, part: BlockShape | Literal["head"] | None, input: tuple[int, ...]) -> _Watched:
    """Run a block of this shape, the head, or (None) the stem, on torch's meta device.

    A checkpointed block keeps its input alone.
    """
    leaves: list[tuple[str, nn.Module, tuple[int, ...]]] = []
    kept: dict[int, torch.UntypedStorage] = {}
    with torch.device("meta"):
        module = make_stem(spec) if part is None else Head(spec) if part == "head" else Block(spec, part)
        x = torch.empty(input)
    weights = {p.untyped_storage()._cdata for p in module.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    for name, leaf in module.named_modules():
        if not any(leaf.children()) and not isinstance(leaf, nn.Identity):
            leaf.register_forward_hook(
                lambda leaf, _, output, name=name: leaves.append((name, leaf, tuple(output.shape[1:])))
            )
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = module.train()(x.requires_grad_(part is not None))
    saved = sum(storage.nbytes() for storage in kept.values())
    if spec.checkpoint and isinstance(part, BlockShape):
        saved = x.untyped_storage().nbytes()
    skip = _skip(module.shortcut) if isinstance(module, Block) else ""
    return _Watched(leaves, tuple(output.shape), saved, skip)


def _macs(module: nn.Module, output: tuple[int, ...]) -> int:
    """Multiply-accumulates for one image."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return math.prod(output) * module.weight[0].numel()
    if isinstance(module, BlurPool):
        return math.prod(output) * 9
    return module.weight.numel() if isinstance(module, nn.Linear) else 0


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        size, stride, dilation = module.kernel_size[0], module.stride[0], module.dilation[0]
        marks = (f"/{stride}" if stride > 1 else "") + (f" dilated {dilation}" if dilation > 1 else "")
        return f"conv {size}x{size}{marks}" + (f" in {module.groups} groups" if module.groups > 1 else "")
    return KINDS.get(type(module).__name__, type(module).__name__.lower())


KINDS = {
    "AvgPool2d": "average-pool/2",
    "BatchNorm2d": "norm",
    "BlurPool": "blur/2",
    "Conv1d": "conv over channels",
    "DropPath": "drop path",
    "FixupBias": "bias",
    "FixupNorm": "scale, bias",
    "GroupNorm": "group norm",
    "MaxPool2d": "max-pool/2",
    "PixelUnshuffle": "space to depth/4",
    "ZeroPad": "zero pad",
}


def _skip(shortcut: nn.Module | None) -> str:
    if shortcut is None:
        return "none"
    if isinstance(shortcut, ZeroPad):
        return "zero pad"
    if isinstance(shortcut, Projection):
        return "projection" if shortcut.pool is None else "average, projection"
    return "identity"
