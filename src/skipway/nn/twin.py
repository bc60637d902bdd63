"""The plain twin: the same network without its skips."""

from dataclasses import dataclass, replace
from typing import Any

from skipway.errors import InputError
from skipway.network_spec import NetworkSpec


@dataclass(frozen=True)
class Twin:
    """A network's plain twin.

    Args:
        spec: the network without skips. Built with the same seed, every tensor it shares with the residual network
            has the same bits.
        dropped: what the twin cannot have, in words: its projections, and what presupposes a skip.
    """

    spec: NetworkSpec
    dropped: tuple[str, ...]


_NEEDS_A_SKIP: dict[str, Any] = {"init": "he", "branch_scale": "none", "zero_init_last": False, "drop_path": 0.0}


def twin(network: NetworkSpec) -> Twin:
    """The plain twin of a network: y = relu(F(x)), layer for layer the same (He et al. 2015, section 4.1).

    With zero-padded shortcuts, which have no parameters, the two have equally many.

    Args:
        network: a residual network.

    Returns:
        A Twin.

    Raises:
        InputError: it has no skips already.

    Example:
        >>> from skipway.nn.zoo import find
        >>> twin(find("resnet20")).spec.shortcut
        'none'
    """
    if network.shortcut == "none":
        raise InputError(f"network {network.name} has no skips already: it is a plain twin itself")
    changes = {name: off for name, off in _NEEDS_A_SKIP.items() if getattr(network, name) != off}
    dropped = [f"{name} = {getattr(network, name)}" for name in changes]
    return Twin(replace(network, name=f"{network.name}-plain", shortcut="none", **changes), tuple(dropped))
