"""What a probed network is made of: its residual additions, and what each computed."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from skipway.errors import unknown


@dataclass(frozen=True)
class Unit:
    """One residual addition of a network.

    Args:
        name: 'stage1.block2', 'layer1.0', 'blocks.3.attn'.
        block: the block it is in; the same but where a block has several additions.
        index: of the block, from 0.
        skip: "identity", "changed" (projected, padded, pooled) or "none" (plain).
        in_shape, out_shape: of one image's activation before and after, without the batch.
    """

    name: str
    block: str
    index: int
    skip: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]

    @property
    def opens(self) -> bool:
        """Whether it opens a stage: what comes in cannot simply go on."""
        return self.in_shape != self.out_shape or self.skip == "changed"


@dataclass(frozen=True)
class Parts:
    """What a unit computed; each (B, ...).

    Args:
        x: what came in.
        branch: F, scaled where an edit says so; zeros where it is cut.
        shortcut: S, likewise; None in a plain network.
        output: finish(F + S).
    """

    x: Tensor
    branch: Tensor
    shortcut: Tensor | None
    output: Tensor


def find_unit(units: Sequence[Unit], name: str) -> Unit:
    """The unit of that name. Raises InputError."""
    for unit in units:
        if unit.name == name:
            return unit
    raise unknown("block", name, [u.name for u in units])
