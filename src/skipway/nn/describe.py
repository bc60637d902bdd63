"""What a network is made of: layers with shapes, parameters and multiply-accumulates, and where the skips run."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.nn.network import build, skeleton
from skipway.nn.shortcut import Projection, ZeroPad
from skipway.nn.zoo import ZOO, find
from skipway.spec import NetworkSpec

FAMILY_SIZE = {"imagenet": 224}  # pixels at which a family is counted; 32 for the rest


@dataclass(frozen=True)
class LayerRow:
    """One layer: `part` is its block ("stage1.block2"), `output` its shape without the batch, counts for one image."""

    part: str
    layer: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Description:
    """A network on paper.

    Args:
        name: the zoo's, or "custom".
        source: paper, where the zoo knows it.
        input: (C, H, W).
        layers: in the order of computation.
        skips: block -> what its shortcut is: "identity", "zero pad", "projection" or "none".
        parameters: trainable numbers.
        macs: multiply-accumulates of convolutions and linear layers for one image.
        flops: 2 x macs.
    """

    name: str
    source: str
    input: tuple[int, int, int]
    layers: tuple[LayerRow, ...]
    skips: dict[str, str]
    parameters: int
    macs: int
    flops: int


def describe(network: str | NetworkSpec, *, image_size: int = 0) -> Description:
    """Describe a network without allocating it.

    Args:
        network: a zoo name or a spec.
        image_size: pixels a side; 0: 32 for the cifar stem, 224 for the imagenet stem.

    Returns:
        A Description.

    Raises:
        InputError: an unknown name.

    Example:
        >>> describe("tutorial").parameters
        43242
    """
    spec = find(network) if isinstance(network, str) else network
    if not isinstance(image_size, int) or not 0 <= image_size <= 65536:
        raise InputError(f"image_size must be between 1 and 65536, got {image_size}")
    size = image_size or (FAMILY_SIZE.get(spec.stem, 32))
    if spec.stem == "auto":
        spec = build(spec, image_size=size).spec
    made = skeleton(spec)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.forward = _same  # a norm keeps the shape, and torch takes ten times longer to say so
    seen: list[tuple[str, nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: seen.append((name, module, output)))
        for name, module in made.named_modules()
        if not any(module.children()) and not isinstance(module, nn.Identity)
    ]
    with torch.no_grad():
        made(torch.empty(1, spec.in_channels, size, size, device="meta"))
    for hook in hooks:
        hook.remove()
    layers = tuple(_row(name, module, output) for name, module, output in seen)
    macs = sum(row.macs for row in layers)
    return Description(
        name=spec.name,
        source=ZOO[spec.name].source if spec.name in ZOO else "",
        input=(spec.in_channels, size, size),
        layers=layers,
        skips={name: _skip(block.shortcut) for name, block in made.blocks()},
        parameters=sum(p.numel() for p in made.parameters()),
        macs=macs,
        flops=2 * macs,
    )


def _same(input: Tensor) -> Tensor:
    return input


def _row(name: str, module: nn.Module, output: Tensor) -> LayerRow:
    path = name.split(".")
    if path[0] == "stages":
        part, layer = f"stage{int(path[1]) + 1}.block{int(path[2]) + 1}", ".".join(path[3:])
    else:
        part, layer = path[0], ".".join(path[1:])
    macs = 0
    if isinstance(module, nn.Conv2d):
        macs = output[0].numel() * module.weight[0].numel()
    elif isinstance(module, nn.Linear):
        macs = module.weight.numel()
    parameters = sum(p.numel() for p in module.parameters())
    return LayerRow(part, layer, _kind(module), tuple(output.shape[1:]), parameters, macs)


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        return f"conv {module.kernel_size[0]}x{module.kernel_size[1]}" + (
            f"/{module.stride[0]}" if module.stride[0] > 1 else ""
        )
    names = {
        "BatchNorm2d": "norm",
        "ReLU": "relu",
        "MaxPool2d": "max-pool/2",
        "Linear": "linear",
        "ZeroPad": "zero pad",
    }
    return names.get(type(module).__name__, type(module).__name__.lower())


def _skip(shortcut: nn.Module | None) -> str:
    if shortcut is None:
        return "none"
    if isinstance(shortcut, ZeroPad):
        return "zero pad"
    return "projection" if isinstance(shortcut, Projection) else "identity"
