"""The residual block: `y = act(F(x) + S(x))` (He et al. 2015, arXiv:1512.03385, fig. 5), and its pre-activation form
`y = F(x) + S(x)` with norm and activation before each convolution (He et al. 2016, arXiv:1603.05027, fig. 4e).

F is two 3x3 convolutions ("basic") or 1x1, 3x3, 1x1 ("bottleneck"); CONVS says where the stride is. A blur takes the
stride's place after the activation; a maximum (`blur = "max"`) right after the convolution, before its norm, as in
Page 2019 (How to train your ResNet) and Jordan 2024 (arXiv:2404.00498).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from skipway.network_spec import EXPANSION, NetworkSpec
from skipway.nn import kernels
from skipway.nn.layers import (
    BatchDropPath,
    DropPath,
    fork,
    make_act,
    make_attention,
    make_conv,
    make_norm,
    make_scale,
    norm_act,
    take,
)
from skipway.nn.pools import AvgPool, make_blur
from skipway.nn.shortcut import Projection, make_shortcut

# Kernel of each convolution of the branch, and which of them has the block's stride.
CONVS: dict[str, tuple[tuple[int, ...], int]] = {
    "basic": ((3, 3), 0),
    "preact": ((3, 3), 0),
    "bottleneck": ((1, 3, 1), 1),
    "bottleneck_v1": ((1, 3, 1), 0),
    "preact_bottleneck": ((1, 3, 1), 1),
}


@dataclass(frozen=True)
class BlockShape:
    """What a block's place in the network says of it.

    Args:
        in_width: channels that come in.
        width: of the stage; a bottleneck gives out 4 times as many.
        stride: 1 or 2.
        dilation: of the first 3x3 convolution, and `last_dilation` of the second in basic blocks.
        drop_path: rate at which a sample goes without the branch.
    """

    in_width: int
    width: int
    stride: int = 1
    dilation: int = 1
    last_dilation: int = 1
    drop_path: float = 0.0


def block_shapes(spec: NetworkSpec) -> list[list[BlockShape]]:
    """What each block of each stage is told of its place.

    The first block of a dilated stage still sees the dilation before it, as in torchvision. Stochastic depth's
    rate rises linearly with the block's number, up to `drop_path` (Huang et al. 2016, eq. 4).
    """
    shapes: list[list[BlockShape]] = []
    width, dilation, number = spec.stem_out, 1, 0
    for stage in spec.stages:
        row = []
        for index in range(stage.depth):
            number += 1
            first = index == 0
            rate = spec.drop_path * number / spec.depth
            before = dilation if first else stage.dilation
            row.append(BlockShape(width, stage.width, stage.stride if first else 1, before, stage.dilation, rate))
            width = stage.width * EXPANSION[spec.block]
        dilation = stage.dilation
        shapes.append(row)
    return shapes


class Block(nn.Module):
    """One residual block of a spec: a branch F of convolutions conv1, norm1, ... and a shortcut S.

    In post-activation order norm k follows convolution k; in pre-activation order it comes before it.

    Attributes:
        shortcut: S, or None in the plain twin.
        num_convs: 2 or 3.
    """

    conv1: nn.Module
    norm1: nn.Module
    shortcut: nn.Module | None

    def __init__(self, spec: NetworkSpec, shape: BlockShape):
        super().__init__()
        sizes, strided = CONVS[spec.block]
        self.num_convs, self.preact = len(sizes), spec.preact
        out_width = shape.width * EXPANSION[spec.block]
        inner = spec.inner_width(shape.width) if self.num_convs == 3 else shape.width
        widths = [shape.in_width, *[inner] * (self.num_convs - 1), out_width]
        blurred = strided if spec.blur != "none" and shape.stride > 1 else -1
        self.blurred = blurred
        self.pools = spec.blur == "max" and blurred >= 0
        for i, size in enumerate(sizes):
            last = i == self.num_convs - 1
            stride = shape.stride if i == strided != blurred else 1
            dilation = shape.last_dilation if last else shape.dilation
            groups = spec.groups if self.num_convs == 3 and size == 3 else 1
            conv = make_conv(spec, widths[i], widths[i + 1], size, stride=stride, dilation=dilation, groups=groups)
            norm = make_norm(spec, widths[i] if self.preact else widths[i + 1], scaled=last and not self.preact)
            self.add_module(f"conv{i + 1}", conv)
            self.add_module(f"norm{i + 1}", norm)
        self.blur = make_blur(spec) if blurred >= 0 else None
        self.dropout = nn.Dropout(spec.block_dropout) if spec.block_dropout else None
        self.attention = make_attention(spec, out_width)
        self.scale = make_scale(spec, out_width)
        by_batch = spec.drop_path_by == "batch"
        self.drop_path = DropPath(shape.drop_path) if shape.drop_path and not by_batch else None
        self.drop_branch = BatchDropPath(shape.drop_path) if shape.drop_path and by_batch else None
        self.shortcut = make_shortcut(spec, shape.in_width, out_width, shape.stride)
        normless = self.preact and isinstance(self.norm1, nn.Identity)
        # Without a norm before it, it would change x itself; after drop_branch a view, whose gradient would be copied.
        self.act = make_act(spec, inplace=not normless and self.drop_branch is None)
        self.last_act = spec.last_act and not self.preact
        between = (self.attention, self.scale, self.drop_path)
        self.is_bare = not self.preact and not any(between)  # F(x) + S(x) follows the last norm at once

    @property
    def last_layer(self) -> nn.Module:
        """What the branch ends with, its norm or else its convolution: at weight and bias zero, F(x) is zero."""
        last = self.get_submodule(f"{'conv' if self.preact else 'norm'}{self.num_convs}")
        return last if hasattr(last, "weight") else self.get_submodule(f"conv{self.num_convs}")

    def branch(self, x: Tensor) -> Tensor:
        """F(x). (B, C, H, W) -> (B, C', H/stride, W/stride)."""
        return self._preact_branch(norm_act(x, self.norm1, self.act)) if self.preact else self._rest(self._begin(x)[0])

    def _begin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """conv1(x), pooled where it has the stride; and x for the shortcut."""
        return fork(self.conv1, x, self.blur if self.pools and self.blurred == 0 else None)

    def _rest(self, x: Tensor, added: Tensor | None = None, act: nn.Module | None = None) -> Tensor:
        """From norm1 on: F(x), or act(F(x) + added) where nothing comes between its last norm and the addition."""
        for i in range(self.num_convs):
            last = i == self.num_convs - 1
            if last and self.dropout is not None:
                x = self.dropout(x)
            if i > 0:
                x = getattr(self, f"conv{i + 1}")(x)
                x = self._halve(x) if self.pools and i == self.blurred else x
            norm = getattr(self, f"norm{i + 1}")
            x = norm_act(x, norm, act, added) if last else norm_act(x, norm, self.act)
            if not self.pools and i == self.blurred:
                x = self._halve(x)
        return self._finish(x)

    def _preact_branch(self, x: Tensor) -> Tensor:
        """From act(norm1(x)) on."""
        for i in range(self.num_convs):
            if i > 0:
                x = norm_act(x, getattr(self, f"norm{i + 1}"), self.act)
            if i == self.num_convs - 1 and self.dropout is not None:
                x = self.dropout(x)
            x = getattr(self, f"conv{i + 1}")(x)
            if i == self.blurred:
                x = self._halve(x)
        return self._finish(x)

    def _halve(self, x: Tensor) -> Tensor:
        return x if self.blur is None else self.blur(x)

    def _finish(self, x: Tensor) -> Tensor:
        """What comes between the last layer and the addition."""
        for module in (self.attention, self.scale, self.drop_path):
            if module is not None:
                x = module(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """act(F(x) + S(x)), without S in the plain twin. (B, C, H, W) -> (B, C', H/stride, W/stride).

        A pre-activation block projects act(norm1(x)), as in the paper's code, and leaves the sum as it is. Where
        stochastic depth is by batch, F is computed for some of the samples; what is projected, for all.
        """
        branch = self.branch
        if self.preact and isinstance(self.shortcut, Projection):
            x, branch = norm_act(x, self.norm1, self.act), self._preact_branch
        drop = self.drop_branch if self.training else None
        if drop is not None and self.shortcut is not None and drop.num_kept(len(x)) < len(x):
            kept = drop.draw(x)
            y = branch(take(x, kept))
            y = drop(self.shortcut(self._source(x)), y, kept)
        elif self.is_bare and kernels.active:  # which want to add within the norm's pass
            act = self.act if self.last_act else None
            begun, x = self._begin(x)
            added = None if self.shortcut is None else self.shortcut(self._source(x))
            return self._rest(begun, added, act)
        else:
            y = branch(x)
            if self.shortcut is not None:
                y += self.shortcut(self._source(x))
        return self.act(y) if self.last_act else y

    def _source(self, x: Tensor) -> Tensor:
        """What the shortcut sees: x, without the last row and column of an odd image where F's pool leaves them out."""
        pool = self.shortcut.pool if isinstance(self.shortcut, Projection) else self.shortcut
        if not self.pools or isinstance(pool, AvgPool):
            return x
        return x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
