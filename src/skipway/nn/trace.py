"""A description of other people's networks: made, then watched while one image runs through."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from skipway.foreign_spec import ForeignSpec
from skipway.nn.description import Description, LayerRow, kept_for_backward, kind_of, macs_of
from skipway.nn.foreign import build_foreign, check_logits

SOURCES = {"timm": "timm", "torchvision": "torchvision", "python": "your own code"}
ORDER = "layers in the order in which they run; branches and skips are its own and not shown"


def trace(spec: ForeignSpec, image_size: int, batch_size: int) -> Description:
    """Describe another's network.

    Its skips and receptive field are not known. What belongs to no layer, such as attention's products and class
    tokens, has the last row.

    Args:
        spec: which.
        image_size: pixels a side.
        batch_size: images that the activation memory is counted for.

    Raises:
        InputError: it cannot be made, or takes no such images.
    """
    network = build_foreign(spec, image_size=image_size)
    check_logits(network, spec, image_size)
    x = torch.zeros(2, spec.in_channels, image_size, image_size)
    saved = _saved_bytes(copy.deepcopy(network).train(), x) // 2
    layers: list[LayerRow] = []

    def watch(name: str, module: nn.Module, output: Any) -> None:
        if isinstance(output, tuple):
            output = output[0]
        if isinstance(output, Tensor) and not isinstance(module, nn.Identity):
            shape = tuple(output.shape[1:])
            parameters = sum(p.numel() for p in module.parameters())
            part, layer = _place(name)
            layers.append(LayerRow(part, layer, kind_of(module), shape, parameters, macs_of(module, shape), 0))

    for name, module in network.named_modules():
        if not any(module.children()) or isinstance(module, nn.MultiheadAttention):
            module.register_forward_hook(lambda module, _, output, name=name: watch(name, module, output))
    with torch.no_grad(), FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(_MATH):
        network.eval()(x[:1])
    macs, parameters = counter.get_total_flops() // 2, sum(p.numel() for p in network.parameters())
    beside = (parameters - sum(row.parameters for row in layers), macs - sum(row.macs for row in layers))
    if any(beside):
        layers.append(LayerRow("beside", "", "products of attention, tokens, scales", (), *beside, 0))
    return Description(
        name=spec.name,
        source=f"{SOURCES[spec.library]}; {ORDER}",
        input=(spec.in_channels, image_size, image_size),
        layers=tuple(layers),
        skips={},
        parameters=parameters,
        macs=macs,
        flops=2 * macs,
        batch_size=batch_size,
        activation_bytes=saved * batch_size,
        warning="",
    )


_MATH = torch.nn.attention.SDPBackend.MATH  # attention as two products, which the counter sees


def _saved_bytes(network: nn.Module, x: Tensor) -> int:
    """What a training step on x keeps for its backward pass, besides weights."""
    with torch.random.fork_rng(devices=[]), kept_for_backward(network) as kept:
        network(x)
    return sum(storage.nbytes() for storage in kept.values())


def _place(name: str) -> tuple[str, str]:
    """A module's part, which is its first name and number, and the rest: blocks.3.mlp.fc1 -> blocks.3, mlp.fc1."""
    names = name.split(".")
    length = 2 if len(names) > 2 and names[1].isdigit() else 1
    return ".".join(names[:length]), ".".join(names[length:])
