"""What comes before the first block, and how it follows the image size."""

import torch
from torch import Tensor, nn

from skipway.network_spec import NetworkSpec
from skipway.nn import kernels, passes
from skipway.nn.layers import make_act, make_conv, make_norm, norm_act
from skipway.nn.pools import make_blur


class Stem(nn.Module):
    """The convolutions of a stem, each but the last with norm and activation, then a pool.

    The last norm and activation are left out where a pre-activation block follows, which begins with its own.

    Attributes:
        conv, norm: the last convolution and its norm; conv1, norm1, ... those before it.
    """

    conv: nn.Module
    norm: nn.Module | None

    def __init__(self, spec: NetworkSpec):
        super().__init__()
        kernel, stride, widths = SHAPES[spec.stem](spec.stem_width)
        channels = spec.in_channels * (16 if spec.stem == "space_to_depth" else 1)
        self.unshuffle = nn.PixelUnshuffle(4) if spec.stem == "space_to_depth" else None
        self.num_first = len(widths) - 1
        for i, width in enumerate(widths):
            conv = make_conv(spec, channels, width, kernel, stride=stride if i == 0 else 1)
            last = i == self.num_first
            norm = None if last and spec.preact else make_norm(spec, width)
            if last and spec.stem_bias and conv.bias is None:
                conv.bias = nn.Parameter(conv.weight.new_zeros(width))
            self.add_module("conv" if last else f"conv{i + 1}", conv)
            self.add_module("norm" if last else f"norm{i + 1}", norm)
            channels = width
        self.act = make_act(spec)
        self.pool = _make_pool(spec) if spec.stem in ("imagenet", "deep", "tiered") else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, width, H', W')."""
        if self.unshuffle is not None:
            x = self.unshuffle(x)
        for i in range(self.num_first):
            x = norm_act(getattr(self, f"conv{i + 1}")(x), getattr(self, f"norm{i + 1}"), self.act)
        x = self.conv(x)
        if self.norm is not None:
            x = norm_act(x, self.norm, self.act)
        return x if self.pool is None else self.pool(x)


class PatchConv(nn.Conv2d):
    """A convolution whose filters are fixed, plus and minus a basis of the patch's pixels, and whose bias is learnt.

    The basis is the pixels themselves until `whiten` gives it the data's. The filters are in the state dict.
    """

    def __init__(self, channels: int, out: int, patch: int, stride: int):
        super().__init__(channels, out, patch, stride)
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The first pixels of the patch, and a bias of 0."""
        basis = torch.eye(self.out_channels // 2, self.weight[0].numel(), device=self.weight.device)
        self.set_basis(basis)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def set_basis(self, basis: Tensor) -> None:
        """Take filters, one a row over a patch's (C, patch, patch) pixels, (k, d); their negatives come behind."""
        self.weight.copy_(torch.cat([basis, -basis]).view_as(self.weight))


class WhiteningStem(nn.Module):
    """Patches under fixed filters that whiten them, then a learnt bias and the activation; no norm.

    Coates and Ng 2011 (The importance of encoding versus training); as a first layer Page 2019 (How to train your
    ResNet) and Jordan 2024, arXiv:2404.00498, section 3.2. No padding: with stride 1, 32 pixels become 31 under
    patches of 2x2; with stride 2, 15 under patches of 4x4. The activation is left to a pre-activation block that
    follows, as in the other stems.
    """

    def __init__(self, spec: NetworkSpec):
        super().__init__()
        self.conv = PatchConv(spec.in_channels, spec.stem_out, spec.stem_patch, spec.stem_stride)
        self.act = None if spec.preact else make_act(spec)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2 * components, (H - patch) // stride + 1, ...)."""
        bias, act = self.conv.bias, self.act
        if act is not None and bias is not None and self.training and passes.takes(self.conv, act):
            y = self.conv._conv_forward(x, self.conv.weight, None)
            return passes.bias_act(y, bias, act) if kernels.suits(y) else act(y + bias.to(y.dtype)[:, None, None])
        y = self.conv(x)
        return y if act is None else act(y)


class ConvPool(nn.Module):
    """A 3x3 convolution of stride 2 in place of the max-pool (Bello et al. 2021, arXiv:2103.07579)."""

    def __init__(self, spec: NetworkSpec):
        super().__init__()
        width, blurs = spec.stem_width, spec.blur in ("blur", "avg")
        self.conv = make_conv(spec, width, width, 3, stride=1 if blurs else 2)
        self.blur = make_blur(spec) if blurs else None
        self.norm = None if spec.preact else make_norm(spec, width)
        self.act = make_act(spec)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        x = self.conv(x)
        if self.blur is not None:
            x = self.blur(x)
        return x if self.norm is None else norm_act(x, self.norm, self.act)


def _make_pool(spec: NetworkSpec) -> nn.Module | None:
    """What halves the image once more; `blur = "max"`, which is a maximum before a block's norm, changes nothing."""
    if spec.stem_pool == "none":
        return None
    if spec.stem_pool == "conv":
        return ConvPool(spec)
    if spec.blur == "avg":
        return make_blur(spec)
    pad: list[nn.Module] = [nn.ConstantPad2d(1, 0.0)] if spec.stem_pool == "max_zero" else []
    padding = 0 if pad else 1
    if spec.blur == "blur":
        return nn.Sequential(*pad, nn.MaxPool2d(3, 1, padding), make_blur(spec))
    return nn.Sequential(*pad, nn.MaxPool2d(3, 2, padding)) if pad else nn.MaxPool2d(3, 2, padding)


# Kernel, stride of the first convolution, and widths: He et al. 2015, section 4.2 and table 1; He et al. 2018
# (arXiv:1812.01187), fig. 2b; timm's "tiered"; Ridnik et al. 2020 (arXiv:2003.13630), section 2.1.
SHAPES = {
    "cifar": lambda width: (3, 1, (width,)),
    "imagenet": lambda width: (7, 2, (width,)),
    "deep": lambda width: (3, 2, (max(width // 2, 1), max(width // 2, 1), width)),
    "tiered": lambda width: (3, 2, (max(3 * width // 8, 1), max(width // 2, 1), width)),
    "space_to_depth": lambda width: (3, 1, (width,)),
}
STEMS = (*SHAPES, "whitening", "identity")


def make_stem(spec: NetworkSpec) -> nn.Module:
    """The stem of a spec: (B, in_channels, H, W) -> (B, spec.stem_out, H', W')."""
    if spec.stem == "whitening":
        return WhiteningStem(spec)
    return nn.Identity() if spec.stem == "identity" else Stem(spec)
