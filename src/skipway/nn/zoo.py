"""Names -> NetworkSpec: the networks of the papers, as data.

CIFAR networks of depth 6n+2 (He et al. 2015, section 4.2) have n basic blocks at 16, 32 and 64 channels, those of
depth 9n+2 n bottlenecks. Names of ImageNet networks are torchvision's and timm's.
"""

import dataclasses
import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass, replace

from skipway.errors import InputError, unknown
from skipway.network_spec import STEM_DOWNSAMPLING, NetworkSpec, StageSpec
from skipway.nn.twin import twin

SMALL_IMAGE = 64  # pixels a side: up to here the ImageNet stem throws away more than it saves

_HE15 = "He et al. 2015, arXiv:1512.03385"
_HE16 = "He et al. 2016, arXiv:1603.05027"
_WRN = "Zagoruyko and Komodakis 2016, arXiv:1605.07146"
_XIE = "Xie et al. 2016, arXiv:1611.05431"
_BAG = "He et al. 2018, arXiv:1812.01187"
_SE = "Hu et al. 2017, arXiv:1709.01507"
_ECA = "Wang et al. 2019, arXiv:1910.03151"
_RS = "Bello et al. 2021, arXiv:2103.07579"
_BIT = "Kolesnikov et al. 2019, arXiv:1912.11370"
_BLUR = "Zhang 2019, arXiv:1904.11486"
_GN = "Wu and He 2018, arXiv:1803.08494"
_TIMM = "Wightman, timm"

_DEPTHS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    26: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
}
_RS_DEPTHS = {
    **{depth: _DEPTHS[depth] for depth in (50, 101, 152, 200)},
    270: (4, 29, 53, 4),
    350: (4, 36, 72, 4),
    420: (4, 44, 87, 4),
}
_BASIC = (10, 18, 34)  # the depths of two-convolution blocks; the others are bottlenecks


@dataclass(frozen=True)
class ZooEntry:
    """A named network and where it comes from."""

    spec: NetworkSpec
    source: str


def _cifar(depth: int) -> NetworkSpec:
    """Of depth 6n+2 with basic blocks, or 9n+2 with bottlenecks; shortcut A, as in the paper."""
    deep = depth in (164, 1001)
    n = (depth - 2) // (9 if deep else 6)
    stages = (StageSpec(n, 16), StageSpec(n, 32, 2), StageSpec(n, 64, 2))
    return NetworkSpec(stages, block="bottleneck" if deep else "basic", shortcut="zero_pad", stem="cifar")


def _imagenet(depth: int, *, width: int = 64, depths: tuple[int, ...] = ()) -> NetworkSpec:
    stages = tuple(StageSpec(d, width * 2**i, 1 if i == 0 else 2) for i, d in enumerate(depths or _DEPTHS[depth]))
    block = "basic" if depth in _BASIC else "bottleneck"
    return NetworkSpec(stages, block=block, stem="imagenet", stem_width=width, num_classes=1000)


def _d(spec: NetworkSpec) -> NetworkSpec:
    """ResNet-D: three 3x3 in the stem, shortcuts that average before they project."""
    return replace(spec, stem="deep", shortcut="avg_pool")


def _t(spec: NetworkSpec) -> NetworkSpec:
    return replace(spec, stem="tiered", shortcut="avg_pool")


def _v2(depth: int, *, width: int = 64) -> NetworkSpec:
    spec = _imagenet(depth, width=width)
    return replace(spec, block="preact" if spec.block == "basic" else "preact_bottleneck")


def _resnext(depth: int, groups: int, group_width: int) -> NetworkSpec:
    return replace(_imagenet(depth), groups=groups, group_width=group_width)


def _small() -> Iterator[tuple[str, NetworkSpec, str]]:
    """Networks for 32-pixel images, without their plain twins."""
    tutorial = NetworkSpec((StageSpec(2, 16), StageSpec(2, 32, 2)), stem="cifar", stem_bias=True)
    yield "tutorial", tutorial, "the from-scratch path: the smallest one, 43,242 parameters"
    for depth in (20, 32, 44, 56, 110, 164, 1001, 1202):
        spec = _cifar(depth)
        source = f"{_HE16}, table 5, original" if depth in (164, 1001) else f"{_HE15}, section 4.2"
        yield f"resnet{depth}", spec, f"{source}, shortcut A"
        yield f"resnet{depth}_b", replace(spec, shortcut="projection"), f"{source}, with shortcut B"
        pre = replace(spec, block="preact" if spec.block == "basic" else "preact_bottleneck")
        yield f"preact_resnet{depth}", pre, f"{_HE16}, fig. 4e, shortcut A"
        yield f"preact_resnet{depth}_b", replace(pre, shortcut="projection"), f"{_HE16}, fig. 4e, with shortcut B"
    for depth, k in ((16, 4), (16, 8), (22, 8), (28, 10), (40, 2), (40, 4)):
        n = (depth - 4) // 6
        stages = tuple(StageSpec(n, 16 * k * 2**i, 1 if i == 0 else 2) for i in range(3))
        yield f"wrn{depth}_{k}", NetworkSpec(stages, block="preact", stem="cifar"), f"{_WRN}, WRN-{depth}-{k}"
    for groups in (8, 16):
        stages = tuple(StageSpec(3, 64 * 2**i, 1 if i == 0 else 2) for i in range(3))
        spec = NetworkSpec(stages, block="bottleneck", stem="cifar", stem_width=64, groups=groups)
        yield f"resnext29_{groups}x64d", spec, f"{_XIE}, section 5.3"


def _large() -> Iterator[tuple[str, NetworkSpec, str]]:
    """Networks for 224-pixel images."""
    for depth in (18, 34, 50, 101, 152):
        spec, name = _imagenet(depth), f"resnet{depth}"
        bottleneck = spec.block == "bottleneck"
        yield name, spec, f"{_HE15}, table 1" + (", stride on the 3x3 (v1.5)" if bottleneck else "")
        yield f"{name}_a", replace(spec, shortcut="zero_pad"), f"{_HE15}, table 1, with shortcut A"
        if bottleneck:
            yield f"{name}_v1", replace(spec, block="bottleneck_v1"), f"{_HE15}, table 1, as printed (v1)"
            yield f"{name}c", replace(spec, stem="deep"), f"{_BAG}, ResNet-C"
        yield f"{name}d", _d(spec), f"{_BAG}, ResNet-D"
        yield f"resnetv2_{depth}", _v2(depth), f"{_HE16}, on ImageNet"
        yield f"resnetv2_{depth}d", _d(_v2(depth)), f"{_HE16}, with the stem and shortcuts of ResNet-D"
        yield f"seresnet{depth}", replace(spec, attention="se"), _SE
    yield "resnet26", _imagenet(26), _TIMM
    yield "resnet26d", _d(_imagenet(26)), f"{_BAG}, ResNet-D"
    yield "resnet200d", _d(_imagenet(200)), f"{_BAG}, ResNet-D"
    for depth in (10, 26, 50):
        yield f"resnet{depth}t", _t(_imagenet(depth)), f"{_TIMM}: a stem that grows in width"
    yield "resnetv2_50t", _t(_v2(50)), f"{_TIMM}: a stem that grows in width"
    for depth, groups, width in ((50, 32, 4), (101, 32, 4), (101, 32, 8), (101, 64, 4)):
        name, spec = f"resnext{depth}_{groups}x{width}d", _resnext(depth, groups, width)
        yield name, spec, _XIE
        yield f"se{name}", replace(spec, attention="se"), _SE
    yield "resnext50d_32x4d", _d(_resnext(50, 32, 4)), f"{_XIE}, as ResNet-D"
    for depth in (50, 101):
        yield f"wide_resnet{depth}_2", replace(_imagenet(depth), group_width=128), f"{_WRN}, table 8"
        yield f"ecaresnet{depth}d", replace(_d(_imagenet(depth)), attention="eca"), _ECA
    for depth in (26, 50):
        yield f"ecaresnet{depth}t", replace(_t(_imagenet(depth)), attention="eca"), _ECA
    yield "ecaresnet269d", replace(_d(_imagenet(269)), attention="eca"), _ECA
    for depth, depths in _RS_DEPTHS.items():
        spec = replace(_d(_imagenet(depth, depths=depths)), stem_pool="conv", attention="se", attention_reduction=4)
        yield f"resnetrs{depth}", spec, f"{_RS}, table 7"
    for depth in (18, 50):
        yield f"resnetblur{depth}", replace(_imagenet(depth), blur="blur"), _BLUR
    yield "resnetblur50d", replace(_d(_imagenet(50)), blur="blur"), _BLUR
    yield "resnetaa50", replace(_imagenet(50), blur="avg"), f"{_BLUR}, with an average"
    yield "resnetaa50d", replace(_d(_imagenet(50)), blur="avg"), f"{_BLUR}, with an average"
    yield "resnet50_gn", replace(_imagenet(50), norm="group"), _GN
    yield "resnetv2_50d_gn", replace(_d(_v2(50)), norm="group"), _GN
    for depth, factor in ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4)):
        spec = replace(_v2(depth, width=64 * factor), norm="group", weight_standardisation=True, stem_pool="max_zero")
        yield f"resnetv2_{depth}x{factor}_bit", spec, f"{_BIT}, BiT R{depth}x{factor}"


def _plain_name(name: str) -> str:
    """resnet20 -> plain20, preact_resnet20 -> preact_plain20, wrn16_8 -> plain_wrn16_8."""
    return name.replace("resnet", "plain") if "resnet" in name else f"plain_{name}"


def _zoo() -> dict[str, ZooEntry]:
    zoo = {}
    for name, spec, source in (*_small(), *_large()):
        zoo[name] = ZooEntry(replace(spec, name=name), source)
        has_twin = spec.stem == "cifar" or name in {f"resnet{depth}" for depth in (18, 34, 50, 101, 152)}
        if has_twin and not name.endswith("_b"):
            plain = _plain_name(name)
            zoo[plain] = ZooEntry(replace(twin(spec).spec, name=plain), f"{source.split(', shortcut')[0]}, plain")
    return zoo


ZOO = _zoo()


def find(name: str) -> NetworkSpec:
    """The spec of a named network.

    Raises:
        InputError: no such name; the nearest is suggested.
    """
    if name not in ZOO:
        raise unknown("network", name, ZOO)
    return ZOO[name].spec


def matching(pattern: str = "*") -> dict[str, ZooEntry]:
    """The entries whose names fit a pattern: "*50*"; a bare word matches anywhere in the name."""
    wanted = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    return {name: entry for name, entry in ZOO.items() if fnmatch.fnmatchcase(name, wanted)}


def resolve_stem(spec: NetworkSpec, image_size: int) -> tuple[NetworkSpec, str]:
    """Settle `stem="auto"` by the image size.

    Args:
        spec: the network.
        image_size: pixels a side.

    Returns:
        The spec with a stem of its own, and a sentence: which and why, or a warning where the one that was asked for
        is made for larger images ("" where there is nothing to say).
    """
    if spec.stem != "auto":
        shrinks = image_size <= SMALL_IMAGE and STEM_DOWNSAMPLING.get(spec.stem, 1) > 1
        return spec, f"warning: {stem_warning(spec.stem, image_size)}" if shrinks else ""
    if image_size <= SMALL_IMAGE:
        kind, why = "cifar", f"{image_size}-pixel images keep their resolution (3x3, no pooling)"
    else:
        own = ZOO[spec.name].spec.stem if spec.name in ZOO else "imagenet"
        kind = own if own in STEM_DOWNSAMPLING else "imagenet"
        why = f"{image_size}-pixel images are reduced 4 times first"
    return dataclasses.replace(spec, stem=kind), f"stem {kind}: {why}"


def stem_warning(stem: str, image_size: int) -> str:
    """What an ImageNet stem costs on small images, with the figure."""
    return (
        f"the {stem} stem reduces {image_size}-pixel images 4 times at once; on CIFAR-100 that cost about 16 points "
        "of accuracy (59.8% against 75.9%, reported by users of timm); the cifar stem keeps the resolution"
    )


def dilated(spec: NetworkSpec, output_stride: int) -> NetworkSpec:
    """The network with a larger last feature map: strides past `output_stride` become dilations.

    Args:
        spec: the network.
        output_stride: how many times smaller the last feature map may be: 8, 16, 32, ...

    Returns:
        The spec, with the same parameters (Chen et al. 2017, arXiv:1706.05587; as torchvision's
        replace_stride_with_dilation).

    Raises:
        InputError: a value that is not a power of two, or that the stem alone exceeds.
    """
    reached = replace(spec, stages=(StageSpec(1, spec.stages[0].width),)).downsampling if spec.stem != "auto" else 1
    if not isinstance(output_stride, int) or output_stride < reached or output_stride & (output_stride - 1):
        raise InputError(f"output_stride must be a power of two and at least {reached}, got {output_stride}")
    stages, dilation = [], 1
    for stage in spec.stages:
        stride = stage.stride
        if reached * stride > output_stride:
            dilation, stride = dilation * stride, 1
        reached *= stride
        stages.append(replace(stage, stride=stride, dilation=stage.dilation * dilation))
    return replace(spec, stages=tuple(stages))
