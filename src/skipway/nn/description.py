"""What a description of a network holds, and how its layers are called and counted."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skipway.nn.pools import BlurPool


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
        skips: block -> what its shortcut is: "identity", "zero pad", "projection", "average, projection" or "none";
            empty for other people's networks, whose skips are their own.
        parameters: trainable numbers.
        macs: multiply-accumulates of convolutions and linear layers for one image; of attention too, in others'.
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
        """Pixels of the image, along a side, that one pixel of the last feature map can see; 0: not known."""
        return max((row.receptive_field for row in self.layers), default=0)

    def _repr_svg_(self) -> str:
        """The picture that a notebook shows."""
        from skipway.nn.drawing import draw

        return draw(self)


def macs_of(module: nn.Module, output: tuple[int, ...]) -> int:
    """Multiply-accumulates of a layer for one image; `output` is its shape without the batch."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return math.prod(output) * module.weight[0].numel()
    if isinstance(module, BlurPool):
        return math.prod(output) * 9
    return math.prod(output[:-1]) * module.weight.numel() if isinstance(module, nn.Linear) else 0


def kind_of(module: nn.Module) -> str:
    """What a layer is called in a description."""
    if isinstance(module, nn.Conv2d):
        size, stride, dilation = module.kernel_size[0], module.stride[0], module.dilation[0]
        marks = (f"/{stride}" if stride > 1 else "") + (f" dilated {dilation}" if dilation > 1 < size else "")
        return f"conv {size}x{size}{marks}" + (f" in {module.groups} groups" if module.groups > 1 else "")
    if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
        stride = module.stride if isinstance(module.stride, int) else module.stride[0]
        name = "max-pool" if isinstance(module, nn.MaxPool2d) else "average-pool"
        return f"{name}/{stride}" if stride > 1 else name
    return KINDS.get(type(module).__name__, type(module).__name__.lower())


KINDS = {
    "BatchDropPath": "drop path",
    "BatchNorm2d": "norm",
    "BlurPool": "blur/2",
    "ConstantPad2d": "padding",
    "Conv1d": "conv over channels",
    "DropPath": "drop path",
    "FixupBias": "bias",
    "FixupNorm": "scale, bias",
    "GroupNorm": "group norm",
    "PixelUnshuffle": "space to depth/4",
    "ZeroPad": "zero pad",
}


@contextmanager
def kept_for_backward(network: nn.Module) -> Iterator[dict[int, torch.UntypedStorage]]:
    """While open, collects the memory that autograd keeps for a backward pass, besides the network's weights."""
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept
