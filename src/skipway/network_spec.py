"""What a residual network is made from: stem, stages, block, shortcut, norm and the rest, checked where it is made."""

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any, Literal

from skipway.errors import InputError, unknown
from skipway.fields import check, option, sequence, shown

EXPANSION = {"basic": 1, "preact": 1, "bottleneck": 4, "bottleneck_v1": 4, "preact_bottleneck": 4}
STEM_DOWNSAMPLING = {"imagenet": 4, "deep": 4, "tiered": 4, "space_to_depth": 4}  # with its pool; 1 for the rest


@dataclass(frozen=True)
class StageSpec:
    """A row of blocks at one resolution; written `depth x width / stride @ dilation`: `3x16`, `3x32/2`, `3x64@2`."""

    depth: int = option(MISSING, "number of blocks", low=1, high=4096)
    width: int = option(MISSING, "channels of a block; a bottleneck gives out 4 times as many", low=1, high=65536)
    stride: int = option(1, "stride of the first block", low=1, high=2)
    dilation: int = option(1, "dilation of the 3x3 convolutions, after the first block", low=1, high=64)

    def __post_init__(self) -> None:
        check(self, "network.stages")


@dataclass(frozen=True)
class NetworkSpec:
    """A residual network: stem, stages of blocks `y = act(F(x) + S(x))`, head."""

    stages: tuple[StageSpec, ...] = option(MISSING, "blocks x width / stride @ dilation, one a stage: 3x16 3x32/2")
    name: str = option("custom", "the zoo's name that the network started from")
    block: Literal["basic", "bottleneck", "bottleneck_v1", "preact", "preact_bottleneck"] = option(
        "basic",
        "basic: two 3x3; bottleneck: 1x1, 3x3, 1x1 with the stride on the 3x3; bottleneck_v1: with it on the first "
        "1x1, as in the paper; preact, preact_bottleneck: norm and activation before each convolution",
    )
    shortcut: Literal["projection", "zero_pad", "avg_zero_pad", "project_all", "avg_pool", "none"] = option(
        "projection",
        "S(x) where the shape changes: 1x1 convolution (B), zero padding (A), the same after an average pool, 1x1 "
        "everywhere (C), average pool and 1x1 (D), or no skips at all (the plain twin)",
    )
    stem: Literal["auto", "cifar", "imagenet", "deep", "tiered", "space_to_depth", "whitening", "identity"] = option(
        "auto",
        "first layers: one 3x3; 7x7 and pool; three 3x3 and pool; the same, growing in width; 4x4 pixels to channels "
        "and 3x3; patches whitened by the data; nothing. auto: by the image size (up to 64 pixels: cifar)",
    )
    stem_patch: int = option(2, "whitening stem: pixels a side of a patch", low=1, high=16)
    stem_stride: int = option(1, "whitening stem: pixels from patch to patch", low=1, high=16)
    stem_components: int = option(
        0, "whitening stem: principal components of the patches that are kept, the largest; 0: all", low=0
    )
    stem_width: int = option(
        16, "channels of the stem (identity: the image's; whitening: two a component)", low=1, high=65536
    )
    stem_bias: bool = option(False, "the stem's convolution has a bias (the tutorial's network)")
    stem_pool: Literal["max", "max_zero", "conv", "none"] = option(
        "max", "pool of the imagenet, deep and tiered stem; max_zero: padded with zeros, as in BiT; conv: strided 3x3"
    )
    norm: Literal["batch", "group", "none"] = option("batch", "normalisation; none wants init or branch_scale")
    norm_groups: int = option(32, "group norm: number of groups", low=1)
    norm_momentum: float = option(
        0.1, "batch norm: share of each new batch in the running statistics", low=0.001, high=1
    )
    norm_scale: bool = option(True, "norms learn a factor a channel; off: it stays 1")
    weight_standardisation: bool = option(False, "filters with mean 0 and deviation 1 (BiT)")
    init: Literal["he", "fixup", "dirac"] = option(
        "he", "initial weights; fixup trains without normalisation; dirac: blocks' 3x3 filters hand their input on"
    )
    zero_init_last: bool = option(False, "each block starts as its shortcut: its last layer's weight is zero")
    branch_scale: Literal["none", "skipinit", "layer_scale"] = option(
        "none", "F(x) times one learnt number (from 0), or times one a channel (from 0.0001)"
    )
    act: Literal["relu", "gelu", "silu"] = option("relu", "activation")
    last_act: bool = option(True, "activation after the addition (pre-activation blocks have none there)")
    groups: int = option(1, "bottlenecks: groups of the 3x3 convolution (ResNeXt's cardinality)", low=1)
    group_width: int = option(64, "bottlenecks: channels of one group in a stage of width 64", low=1)
    attention: Literal["none", "se", "eca"] = option("none", "channel attention at the end of each branch")
    attention_reduction: int = option(16, "se: how many times narrower its middle is", low=1)
    blur: Literal["none", "blur", "avg", "max"] = option(
        "none", "what halves the image in place of a stride: binomial filter, average, or maximum before the norm"
    )
    block_dropout: float = option(0.0, "dropout before a block's last convolution", low=0, high=0.99)
    drop_path: float = option(0.0, "stochastic depth: rate of the last block, rising linearly", low=0, high=0.99)
    drop_path_by: Literal["sample", "batch"] = option(
        "sample", "stochastic depth: sample by sample, or a share of each batch, whose branch is then not computed"
    )
    head: Literal["linear", "features"] = option("linear", "logits, or the pooled features alone")
    head_pool: Literal["average", "max"] = option("average", "what pools the last feature map")
    head_scale: float = option(1.0, "logits are multiplied by it", low=1e-6, high=1e6)
    head_dropout: float = option(0.0, "dropout before the linear layer", low=0, high=0.99)
    checkpoint: bool = option(False, "keep only the blocks' ends for the backward pass: less memory, more time")
    in_channels: int = option(3, "channels of an image; training takes the data's", low=1, high=65536)
    num_classes: int = option(10, "number of logits; training takes the data's", low=1, high=10**7)

    def __post_init__(self) -> None:
        stages = sequence("network.stages", self.stages)
        object.__setattr__(self, "stages", tuple(_stage(s, i) for i, s in enumerate(stages)))
        check(self, "network")
        if not self.stages:
            raise InputError("network.stages must hold at least one stage, such as 3x16")
        _check_combination(self)
        _check_widths(self)

    @property
    def stem_out(self) -> int:
        """Channels that the stem gives out."""
        if self.stem == "whitening":
            every = self.in_channels * self.stem_patch**2
            return 2 * min(self.stem_components or every, every)
        return self.in_channels if self.stem == "identity" else self.stem_width

    @property
    def preact(self) -> bool:
        """Whether norm and activation come before each convolution."""
        return self.block.startswith("preact")

    @property
    def out_width(self) -> int:
        """Channels of the last stage's output."""
        return self.stages[-1].width * EXPANSION[self.block]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(stage.depth for stage in self.stages)

    @property
    def downsampling(self) -> int:
        """How many times smaller the last feature map is than the image; check_image_size refuses what is smaller."""
        total = STEM_DOWNSAMPLING.get(self.stem, 1)
        if self.stem_pool == "none" and self.stem != "space_to_depth" and total > 1:
            total //= 2
        if self.stem == "whitening":
            total = self.stem_stride
        for stage in self.stages:
            total *= stage.stride
        return total

    @property
    def smallest_image(self) -> int:
        """Pixels a side of the smallest image that leaves the last feature map a pixel."""
        if self.stem != "whitening":
            return self.downsampling
        return (self._strides - 1) * self.stem_stride + self.stem_patch

    def last_map(self, image_size: int) -> int:
        """Pixels a side of the last feature map. Halves are rounded up, in the blocks down where blur is "max"."""
        strides = self._strides
        after_stem = -(-image_size // (self.downsampling // strides))
        if self.stem == "whitening":
            after_stem = (image_size - self.stem_patch) // self.stem_stride + 1
        return after_stem // strides if self.blur == "max" else -(-after_stem // strides)

    @property
    def _strides(self) -> int:
        return math.prod(stage.stride for stage in self.stages)

    @property
    def norm_widths(self) -> tuple[int, ...]:
        """The numbers of channels that norms see, from the smallest."""
        none: dict[str, tuple[int, ...]] = {"identity": (), "whitening": ()}
        eighths = {"deep": (4, 8), "tiered": (3, 4, 8), **none}.get(self.stem, (8,))
        widths = {max(self.stem_width * share // 8, 1) for share in eighths}
        if self.preact:
            widths.add(self.stem_out)
        for stage in self.stages:
            widths |= {self.inner_width(stage.width), stage.width * EXPANSION[self.block]}
        return tuple(sorted(widths))

    def inner_width(self, width: int) -> int:
        """Channels between a block's convolutions, in a stage of that width."""
        return width * self.group_width // 64 * self.groups

    def check_image_size(self, size: int) -> None:
        """Refuse images that a stride would leave without pixels, or a norm without anything to compare.

        Raises:
            InputError: naming the smallest size, or the multiple that the stem wants.
        """
        least = self.smallest_image
        if size < least:
            patch = f" takes patches of {self.stem_patch} pixels and" if self.stem == "whitening" else ""
            raise InputError(
                f"network {self.name} with the {self.stem} stem{patch} reduces images {self.downsampling} times: "
                f"--image-size must be at least {least}, got {size}"
            )
        if self.stem == "space_to_depth" and size % 4:
            raise InputError(f"the space_to_depth stem takes pixels by 4x4: --image-size must divide by 4, got {size}")
        if self.norm == "group" and self.norm_groups in self.norm_widths and self.last_map(size) == 1:
            while self.last_map(least) == 1:
                least += 1
            raise InputError(
                f"network.norm_groups {self.norm_groups} leaves one channel a group, and images of {size} pixels one "
                f"pixel: nothing to normalise; --image-size must be more than {least - 1}, or choose fewer groups"
            )


def _check_widths(spec: NetworkSpec) -> None:
    """Widths that groups, norms and the shortcut can work with."""
    width, fixed = spec.stem_out, spec.stem in ("whitening", "identity")
    if spec.stem == "whitening" and width > 65536:
        raise InputError(
            f"network.stem_patch {spec.stem_patch} makes {width} filters of {spec.in_channels} channels; "
            "65536 is the most: choose smaller patches"
        )
    for index, stage in enumerate(spec.stages):
        where = f"network.stages[{index}]"
        if EXPANSION[spec.block] > 1 and stage.width * spec.group_width % 64:
            raise InputError(
                f"network.group_width {spec.group_width} does not go with {where}.width {stage.width}: "
                "width x group_width must divide by 64"
            )
        out = stage.width * EXPANSION[spec.block]
        if spec.shortcut in ("zero_pad", "avg_zero_pad") and out < width:
            raise InputError(
                f"{where} gives {out} channels after {width}: network.shortcut {spec.shortcut} can only add channels; "
                f"choose projection, or widths that grow ({'the stem' if fixed else '--stem-width'} is the first)"
            )
        if spec.weight_standardisation and 1 in (width, spec.inner_width(stage.width)):
            raise InputError(
                f"network.weight_standardisation must be off with one channel before or in {where}: "
                "a 1x1 filter of one number has no deviation"
            )
        width = out
    widths = spec.norm_widths
    wrong = next((w for w in widths if w % spec.norm_groups), None)
    if spec.norm == "group" and wrong:
        raise InputError(
            f"network.norm_groups {spec.norm_groups} does not divide {wrong} channels; it must divide "
            f"{', '.join(map(str, widths))}"
        )


def _check_combination(spec: NetworkSpec) -> None:
    """Choices that exclude each other."""
    basic = EXPANSION[spec.block] == 1
    ends_in_norm = spec.norm != "none" and not spec.preact
    stays_zero = spec.zero_init_last and ends_in_norm and not spec.norm_scale
    clashes = [
        (basic and spec.groups != 1, "groups", spec.groups, "1 with basic blocks"),
        (basic and spec.group_width != 64, "group_width", spec.group_width, "64 with basic blocks"),
        (spec.init == "fixup" and spec.norm != "none", "init", spec.init, f"he with norm {spec.norm}"),
        (spec.init == "fixup" and spec.branch_scale != "none", "branch_scale", spec.branch_scale, "none with fixup"),
        (spec.init == "fixup" and spec.weight_standardisation, "weight_standardisation", True, "off with fixup"),
        (stays_zero, "zero_init_last", True, "off without norm_scale: branches would stay zero"),
    ]
    if spec.shortcut == "none":
        why = "without skips: the signal would end there"
        clashes += [
            (spec.init == "fixup", "init", spec.init, f"he {why}"),
            (spec.branch_scale != "none", "branch_scale", spec.branch_scale, f"none {why}"),
            (spec.zero_init_last, "zero_init_last", True, f"off {why}"),
            (spec.drop_path > 0, "drop_path", spec.drop_path, f"0 {why}"),
        ]
    if spec.stem == "whitening":
        clashes.append((spec.stem_stride > spec.stem_patch, "stem_stride", spec.stem_stride, "stem_patch at most"))
        values = spec.in_channels * spec.stem_patch**2
        allowed = f"{values}, the numbers of a patch, at most"
        clashes.append((spec.stem_components > values, "stem_components", spec.stem_components, allowed))
    for wrong, name, value, allowed in clashes:
        if wrong:
            raise InputError(f"network.{name} must be {allowed}, got {value}")


_STAGE = re.compile(r"(\d{1,18})x(\d{1,18})(?:/(\d{1,18}))?(?:@(\d{1,18}))?", re.ASCII)


def _stage(value: Any, index: int) -> StageSpec:
    """A StageSpec from itself, from a table, or from `3x32/2`."""
    where = f"network.stages[{index}]"
    if isinstance(value, StageSpec):
        return value
    if isinstance(value, Mapping):
        names = StageSpec.__dataclass_fields__
        for key in value:
            if key not in names:
                raise unknown(f"field of {where}", str(key), names)
        for key in ("depth", "width"):
            if key not in value:
                raise InputError(f"{where}.{key} is missing")
        parts = dict(value)
    else:
        match = _STAGE.fullmatch(value) if isinstance(value, str) else None
        if not match:
            raise InputError(f"{where} must look like 3x32/2 (blocks x width / stride @ dilation), got {shown(value)}")
        parts = {name: int(match[i]) for i, name in enumerate(StageSpec.__dataclass_fields__, 1) if match[i]}
    try:
        return StageSpec(**parts)
    except InputError as error:  # which names the field, but cannot know the stage
        raise InputError(str(error).replace("network.stages.", f"{where}.", 1)) from None
