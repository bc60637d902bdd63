"""The plain twin: the same network without its skips."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from skipway.errors import InputError
from skipway.network_spec import EXPANSION, NetworkSpec
from skipway.nn.block import block_shapes
from skipway.nn.shortcut import make_shortcut


@dataclass(frozen=True)
class Twin:
    """A network's plain twin.

    Args:
        spec: the network without skips. Built with the same seed, every tensor it shares with the residual network
            has the same bits, unless `dropped` names a setting that starts tensors otherwise (zero_init_last, Fixup).
        residual: the network that it is the twin of.
    """

    spec: NetworkSpec
    residual: NetworkSpec

    @property
    def dropped(self) -> tuple[str, ...]:
        """What the twin cannot have, in words: settings that presuppose a skip, and each projection with its size."""
        residual = self.residual
        words = [f"{name} = {getattr(residual, name)}" for name in _presupposing(residual)]
        with torch.device("meta"):
            for i, stage in enumerate(block_shapes(residual), 1):
                for j, shape in enumerate(stage, 1):
                    out = shape.width * EXPANSION[residual.block]
                    shortcut = make_shortcut(residual, shape.in_width, out, shape.stride)
                    count = sum(p.numel() for p in shortcut.parameters()) if shortcut is not None else 0
                    if count:
                        words.append(f"stage{i}.block{j}: projection {shape.in_width} -> {out}, {count:,} parameters")
        return tuple(words)


_NEEDS_A_SKIP: dict[str, Any] = {"init": "he", "branch_scale": "none", "zero_init_last": False, "drop_path": 0.0}


def _presupposing(network: NetworkSpec) -> list[str]:
    """The fields whose values make no sense without skips."""
    return [name for name, off in _NEEDS_A_SKIP.items() if getattr(network, name) not in (off, "dirac")]


def twin(network: "str | NetworkSpec") -> Twin:
    """The plain twin of a network: y = relu(F(x)), layer for layer the same (He et al. 2015, section 4.1).

    With zero-padded shortcuts, which have no parameters, the two have equally many.

    Args:
        network: a residual network, or its name in the zoo.

    Returns:
        A Twin.

    Raises:
        InputError: it has no skips already.

    Example:
        >>> from skipway.nn.zoo import find
        >>> twin(find("resnet20")).spec.shortcut
        'none'
        >>> twin(find("resnet20_b")).dropped[0]
        'stage2.block1: projection 16 -> 32, 576 parameters'
    """
    if isinstance(network, str):
        from skipway.nn.zoo import find  # which is made with this function

        network = find(network)
    if network.shortcut == "none":
        raise InputError(f"network {network.name} has no skips already: it is a plain twin itself")
    changes = {name: _NEEDS_A_SKIP[name] for name in _presupposing(network)}
    return Twin(replace(network, name=f"{network.name}-plain", shortcut="none", **changes), network)
