"""What blocks are made of: norms, activations, convolutions, channel attention, blur, stochastic depth, scales.

Each `make_` function reads the spec, so a block says what comes where and not of which kind.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.network_spec import NetworkSpec
from skipway.nn import convolution, kernels, matrix_unit

LAYER_SCALE = 1e-4  # where LayerScale starts (Touvron et al. 2021, arXiv:2103.17239: 1e-1 to 1e-6, less with depth)


class Conv(nn.Conv2d):
    """A convolution. 1x1 with a stride and few channels, it takes every stride-th pixel before, not on its way.

    oneDNN's gradient of such a weight writes past its memory where images are channels_last and the threads share
    the batch unevenly (uxlfoundation/oneDNN#6035). The output has the same bits either way.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (stride, _), (size, _) = self.stride, self.kernel_size
        if size == 1 and stride > 1 and self.in_channels < 16:  # a block of channels with AVX-512; 8 with AVX2
            return F.conv2d(input[:, :, ::stride, ::stride], weight, bias)
        if self.training and matrix_unit.suits(input, self):
            return matrix_unit.convolve(input, weight)
        if self.training and convolution.suits(input, self):
            return convolution.convolve(input, weight, stride, size // 2)
        return super()._conv_forward(input, weight, bias)


class StandardConv(Conv):
    """A convolution whose filters have mean 0 and deviation 1 (Qiao et al. 2019, arXiv:1903.10520, eq. 4)."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, eps=1e-8).reshape_as(self.weight)  # one fused kernel
        return self._conv_forward(input, weight, self.bias)


class FixupConv(Conv):
    """A convolution of (x + b), b one learnt number (Zhang et al. 2019, arXiv:1901.09321, section 3)."""

    input_bias: nn.Parameter

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return self._conv_forward(input + self.input_bias, self.weight, self.bias)


class FixupNorm(nn.Module):
    """What stands where a norm would: times one learnt number, plus another."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x * self.scale + self.bias


class FixupBias(nn.Module):
    """One learnt number before an activation."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x + self.bias


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole image says of them (Hu et al. 2017, arXiv:1709.01507, fig. 3).

    The middle has channels / reduction, rounded to a multiple of 8 and at least 8, as in timm.
    """

    def __init__(self, width: int, reduction: int):
        super().__init__()
        middle = max(8, (width * 2 + 8 * reduction) // (16 * reduction) * 8)
        self.conv1 = nn.Conv2d(width, middle, 1)
        self.conv2 = nn.Conv2d(middle, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        weights = self.conv2(F.relu(self.conv1(x.mean((2, 3), keepdim=True))))
        return x * weights.sigmoid()


class EfficientAttention(nn.Module):
    """Channels weighted by a convolution over their neighbours (Wang et al. 2019, arXiv:1910.03151, eq. 9 and 12)."""

    def __init__(self, width: int):
        super().__init__()
        near = int(abs(math.log2(width) + 1) / 2)
        size = max(near if near % 2 else near + 1, 3)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        weights = self.conv(x.mean((2, 3))[:, None])[:, 0]  # (B, C)
        return x * weights.sigmoid()[:, :, None, None]


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382), by sample; what stays is divided by its rate."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        if not self.training:
            return x
        keep = x.new_empty(len(x), 1, 1, 1).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate))


class BatchDropPath(nn.Module):
    """Stochastic depth by batch: a fixed number of samples, drawn anew, has the branch; for the others it is not run.

    Of B samples round(B * rate) go without, but never so many that fewer than two have it: a batch norm in the branch
    sees those alone, and needs two. What they get is divided by their share of the batch, so that its expectation
    over the draws is that of evaluation (Huang et al. 2016, arXiv:1603.09382; by index as in Oquab et al. 2023,
    arXiv:2304.07193, section 5). The number is fixed by B: shapes are static. Their inputs and outputs are kept for the
    backward pass beside those of the whole batch, so memory is saved from a rate of about 0.4 on.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def num_kept(self, batch: int) -> int:
        """How many of so many samples have the branch."""
        return max(batch - round(batch * self.rate), min(batch, 2))

    def draw(self, x: Tensor) -> Tensor:
        """The indices of the samples of x, (B, ...), that have the branch: (K,) int64."""
        return torch.randperm(len(x), device=x.device)[: self.num_kept(len(x))]

    def forward(self, x: Tensor, branch: Tensor, kept: Tensor) -> Tensor:
        """x (B, C, H, W), with branch (K, C, H, W) times B / K added to the samples `kept` (K,)."""
        factor, x = len(x) / len(kept), x.to(branch.dtype)
        if _is_channels_last(x):  # whole rows of memory; index_add itself would give out another format
            return _rows(x).index_add(0, kept, _rows(branch), alpha=factor).permute(0, 3, 1, 2)
        return x.index_add(0, kept, branch, alpha=factor)


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Some samples of x (B, C, H, W), in its memory format, which their gradient has too."""
    if _is_channels_last(x):
        return _rows(x).index_select(0, indices).permute(0, 3, 1, 2)
    return x.index_select(0, indices)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), the same memory."""
    return x.permute(0, 2, 3, 1)


class Scale(nn.Module):
    """Times one learnt number (SkipInit) or one a channel (LayerScale)."""

    def __init__(self, width: int, start: float):
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.full((width, 1, 1), start))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x * self.weight


def norm_act(x: Tensor, norm: nn.Module, act: nn.Module | None, added: Tensor | None = None) -> Tensor:
    """act(norm(x) + added), in as few passes over memory as the machine allows. Same shape as x."""
    if kernels.takes(norm, act, added, x):
        assert isinstance(norm, nn.BatchNorm2d)
        return kernels.norm_act(x, norm, act, added)
    x = norm(x)
    if added is not None:
        x += added
    return x if act is None else act(x)


def fork(conv: nn.Module, x: Tensor, pool: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """pool(conv(x)), and x for the shortcut; where the machine allows it, in one pass, and x's gradients are added so.

    Args:
        conv: a convolution.
        x: (B, C, H, W).
        pool: a MaxPool, or None for none.
    """
    plain = isinstance(conv, Conv) and not isinstance(conv, (StandardConv, FixupConv)) and x.dtype == torch.bfloat16
    if plain and conv.training and matrix_unit.suits(x, conv) and not kernels.hooked(conv):
        if pool is None:
            return matrix_unit.fork(x, conv.weight)
        if min(x.shape[2:]) > 1 and not kernels.hooked(pool):
            return matrix_unit.fork(x, conv.weight, pool=True)
    made = conv(x)
    return made if pool is None else pool(made), x


def make_conv(
    spec: NetworkSpec, in_width: int, width: int, size: int, *, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution that keeps the image's size but for its stride; with a bias where no norm follows it."""
    kind = StandardConv if spec.weight_standardisation else FixupConv if spec.init == "fixup" else Conv
    bias = spec.norm == "none" and spec.init != "fixup"
    conv = kind(in_width, width, size, stride, dilation * (size // 2), dilation, groups, bias=bias)
    if isinstance(conv, FixupConv):
        conv.input_bias = nn.Parameter(torch.zeros(1))
    return conv


def make_norm(spec: NetworkSpec, width: int, *, scaled: bool = False) -> nn.Module:
    """The norm of a spec; `scaled` is the last of a branch, where Fixup has a factor too."""
    if spec.norm == "none":
        if spec.init == "fixup":
            return FixupNorm() if scaled else FixupBias()
        return nn.Identity()
    if spec.norm == "batch":
        norm = nn.BatchNorm2d(width, momentum=spec.norm_momentum)
    else:
        norm = nn.GroupNorm(spec.norm_groups, width)
    norm.weight.requires_grad_(spec.norm_scale)
    return norm


def make_act(spec: NetworkSpec, *, inplace: bool = True) -> nn.Module:
    """The activation of a spec. `inplace` must be False where its input is needed again."""
    if spec.act == "relu":
        return nn.ReLU(inplace=inplace)
    return nn.GELU() if spec.act == "gelu" else nn.SiLU()


def make_attention(spec: NetworkSpec, width: int) -> nn.Module | None:
    """The attention of a spec, or None."""
    if spec.attention == "se":
        return SqueezeExcite(width, spec.attention_reduction)
    return EfficientAttention(width) if spec.attention == "eca" else None


def make_scale(spec: NetworkSpec, width: int) -> nn.Module | None:
    """The scale of a branch, or None."""
    if spec.branch_scale == "skipinit":
        return Scale(1, 0.0)  # De and Smith 2020, arXiv:2002.10444
    return Scale(width, LAYER_SCALE) if spec.branch_scale == "layer_scale" else None
