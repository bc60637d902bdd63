"""Residual additions inside blocks' `forward`, where no hook can reach them: each kind of block taken apart.

A block is a chain of additions y = finish(F(h) + S(h)), h = before(x): one in a ResNet's block, two in a
transformer's. Each adapter says so for one class of blocks, and the parts it names are the block's own modules, so
that the chain gives the block's own bits. A class that is not in ADAPTERS is unknown, also where it looks like one
that is: a subclass with a `forward` of its own is another block.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from skipway.errors import InputError
from skipway.nn.block import Block
from skipway.nn.layers import norm_act
from skipway.nn.shortcut import Projection

Map = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    """The identity."""
    return x


@dataclass(frozen=True)
class Addition:
    """One residual addition of a block: y = finish(branch(before(x)) + shortcut(before(x))).

    Args:
        branch: F.
        shortcut: S; None in a plain network: y = finish(branch(before(x))).
        finish: what follows the addition.
        before: what branch and shortcut share.
        name: within its block, where that has several.
    """

    branch: Map
    shortcut: Map | None
    finish: Map = same
    before: Map = same
    name: str = ""


def _ours(block: Block) -> tuple[Addition, ...]:
    if block.training and block.drop_branch is not None:
        raise InputError("stochastic depth by batch leaves out branches in training: put the network into eval()")
    finish = block.act if block.last_act else same
    skip = block.shortcut
    shortcut = None if skip is None else lambda x: skip(block._source(x))
    if block.preact and isinstance(skip, Projection):  # which projects act(norm1(x))
        return (Addition(block._preact_branch, shortcut, finish, before=lambda x: norm_act(x, block.norm1, block.act)),)
    return (Addition(block.branch, shortcut, finish),)


def _chain(*modules: nn.Module | None) -> Map:
    present = [m for m in modules if m is not None]

    def run(x: Tensor) -> Tensor:
        for module in present:
            x = module(x)
        return x

    return run


def _torchvision_basic(b: Any) -> tuple[Addition, ...]:
    return (Addition(_chain(b.conv1, b.bn1, b.relu, b.conv2, b.bn2), b.downsample or same, b.relu),)


def _torchvision_bottleneck(b: Any) -> tuple[Addition, ...]:
    branch = _chain(b.conv1, b.bn1, b.relu, b.conv2, b.bn2, b.relu, b.conv3, b.bn3)
    return (Addition(branch, b.downsample or same, b.relu),)


def _torchvision_encoder(b: Any) -> tuple[Addition, ...]:
    def attend(x: Tensor) -> Tensor:
        h = b.ln_1(x)
        return b.dropout(b.self_attention(h, h, h, need_weights=False)[0])

    return Addition(attend, same, name="attn"), Addition(_chain(b.ln_2, b.mlp), same, name="mlp")


def _torchvision_convnext(b: Any) -> tuple[Addition, ...]:
    return (Addition(lambda x: b.stochastic_depth(b.layer_scale * b.block(x)), same),)


def _timm_basic(b: Any) -> tuple[Addition, ...]:
    branch = _chain(b.conv1, b.bn1, b.drop_block, b.act1, b.aa, b.conv2, b.bn2, b.se, b.drop_path)
    return (Addition(branch, b.downsample or same, b.act2),)


def _timm_bottleneck(b: Any) -> tuple[Addition, ...]:
    first = (b.conv1, b.bn1, b.act1, b.conv2, b.bn2, b.drop_block, b.act2, b.aa)
    return (Addition(_chain(*first, b.conv3, b.bn3, b.se, b.drop_path), b.downsample or same, b.act3),)


def _timm_preact(b: Any) -> tuple[Addition, ...]:
    rest = (b.norm2, b.conv2, b.norm3, b.conv3) if hasattr(b, "conv3") else (b.norm2, b.conv2)
    if b.downsample is None:
        return (Addition(_chain(b.norm1, b.conv1, *rest, b.drop_path), same),)
    return (Addition(_chain(b.conv1, *rest, b.drop_path), b.downsample, before=b.norm1),)


def _timm_v2_bottleneck(b: Any) -> tuple[Addition, ...]:
    branch = _chain(b.conv1, b.norm1, b.conv2, b.norm2, b.conv3, b.norm3, b.drop_path)
    return (Addition(branch, b.downsample or same, b.act3),)


def _timm_transformer(b: Any) -> tuple[Addition, ...]:
    return (
        Addition(_chain(b.norm1, b.attn, b.ls1, b.drop_path1), same, name="attn"),
        Addition(_chain(b.norm2, b.mlp, b.ls2, b.drop_path2), same, name="mlp"),
    )


def _timm_convnext(b: Any) -> tuple[Addition, ...]:
    def branch(x: Tensor) -> Tensor:
        x = b.conv_dw(x)  # (B, C, H, W) -> (B, H, W, C) and back, where the layers are linear ones
        x = b.mlp(b.norm(x)) if b.use_conv_mlp else b.mlp(b.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return b.drop_path(x if b.gamma is None else x.mul(b.gamma.reshape(1, -1, 1, 1)))

    return (Addition(branch, b.shortcut),)


# The module and name of a block's class, and what takes it apart.
ADAPTERS: dict[tuple[str, str], Callable[..., tuple[Addition, ...]]] = {
    ("skipway.nn.block", "Block"): _ours,
    ("torchvision.models.resnet", "BasicBlock"): _torchvision_basic,
    ("torchvision.models.resnet", "Bottleneck"): _torchvision_bottleneck,
    ("torchvision.models.vision_transformer", "EncoderBlock"): _torchvision_encoder,
    ("torchvision.models.convnext", "CNBlock"): _torchvision_convnext,
    ("timm.models.resnet", "BasicBlock"): _timm_basic,
    ("timm.models.resnet", "Bottleneck"): _timm_bottleneck,
    ("timm.models.resnetv2", "PreActBasic"): _timm_preact,
    ("timm.models.resnetv2", "PreActBottleneck"): _timm_preact,
    ("timm.models.resnetv2", "Bottleneck"): _timm_v2_bottleneck,
    ("timm.models.vision_transformer", "Block"): _timm_transformer,
    ("timm.models.convnext", "ConvNeXtBlock"): _timm_convnext,
}


def adapter_of(module: nn.Module) -> Callable[..., tuple[Addition, ...]] | None:
    """What takes this module apart; None where nobody knows how. Its `forward` must be that of the class it is for."""
    for cls in type(module).__mro__:
        found = ADAPTERS.get((cls.__module__, cls.__name__))
        if found is not None:
            return found if type(module).forward is cls.forward else None
    return None


def known_blocks(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The blocks that can be taken apart, with their names, in the network's order.

    Raises:
        InputError: one of them is derived from a known block, and computes something else.
    """
    for name, module in network.named_modules():
        if adapter_of(module) is not None:
            yield display_name(network, name), module
        elif base := next((c for c in type(module).__mro__ if (c.__module__, c.__name__) in ADAPTERS), None):
            raise InputError(
                f"{name or 'the network'} is a {type(module).__name__}, a {base.__name__} with a forward of its own: "
                "its addition is out of reach, and without it the rest would be told wrongly"
            )


def display_name(network: nn.Module, name: str) -> str:
    """What a block is called: 'stage1.block2' for 'stages.0.1' of a network of ours, else its own name."""
    parts = name.split(".")
    if adapter_of(network.get_submodule(name)) is _ours and len(parts) == 3 and parts[0] == "stages":
        return f"stage{int(parts[1]) + 1}.block{int(parts[2]) + 1}"
    return name


def unknown_network(network: nn.Module) -> InputError:
    """The refusal of a network without known blocks, with what it is made of."""
    kinds = [type(m) for m in network.modules() if next(m.children(), None) is not None]
    repeated = sorted({k.__name__ for k in kinds if kinds.count(k) > 1 and not k.__module__.startswith("torch.nn")})
    made = f" It is made of {', '.join(repeated[:5])}." if repeated else ""
    known = ", ".join(sorted({f"{module.split('.')[0]}'s {name}" for module, name in ADAPTERS}))
    return InputError(
        f"{type(network).__name__} has no residual block that can be taken apart.{made} Known are: {known}"
    )
