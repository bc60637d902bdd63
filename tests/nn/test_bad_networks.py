"""Impossible networks, each refused where it is made: the message names the field, what came and what is allowed."""

import re
from typing import Any, get_args, get_origin, get_type_hints

import pytest

import skipway
from skipway.errors import InputError
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.nn.twin import twin
from skipway.nn.zoo import dilated, find

BASIC: Any = ("1x8", "1x16/2")  # as a person writes it

# What the network is made with, and what the message says of it, in this order.
REFUSED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"stages": ()}, ("network.stages", "at least one stage", "3x16")),
    ({"stages": "1x8"}, ("network.stages", "a list", "'1x8'")),
    ({"stages": ("1x8", "3x")}, ("network.stages[1]", "3x32/2", "'3x'")),
    ({"stages": (None,)}, ("network.stages[0]", "3x32/2", "None")),
    ({"stages": ({"depth": 1},)}, ("network.stages[0].width", "missing")),
    ({"stages": ({"depth": 1, "widht": 8},)}, ("network.stages[0]", "'widht'", "'width'")),
    ({"stages": ("1x8", "0x8")}, ("network.stages[1].depth", "between 1 and 4096", "0")),
    ({"stages": ("1x0",)}, ("network.stages[0].width", "between 1 and 65536", "0")),
    ({"stages": ({"depth": -1, "width": 8},)}, ("network.stages[0].depth", "between 1 and 4096", "-1")),
    ({"stages": ({"depth": 1, "width": -8},)}, ("network.stages[0].width", "between 1 and 65536", "-8")),
    ({"stages": ("1x8/0",)}, ("network.stages[0].stride", "between 1 and 2", "0")),
    ({"stages": ("1x8", "1x16/3")}, ("network.stages[1].stride", "between 1 and 2", "3")),
    ({"stages": ("1x8@0",)}, ("network.stages[0].dilation", "between 1 and 64", "0")),
    ({"stem_width": 0}, ("network.stem_width", "between 1 and 65536", "0")),
    ({"in_channels": 0}, ("network.in_channels", "between 1 and 65536", "0")),
    ({"num_classes": -1}, ("network.num_classes", "between 1 and", "-1")),
    ({"drop_path": 1}, ("network.drop_path", "between 0 and 0.99", "1")),
    ({"block_dropout": -0.1}, ("network.block_dropout", "between 0 and 0.99", "-0.1")),
    ({"head_dropout": float("nan")}, ("network.head_dropout", "finite", "nan")),
    ({"drop_path": 10**400}, ("network.drop_path", "finite", "10000")),
    ({"norm_groups": 2**64}, ("network.norm_groups", "64 bits", "18446744073709551616")),
    ({"name": "\ud800"}, ("network.name", "UTF-8", "ud800")),
    ({"groups": 2}, ("network.groups", "1 with basic blocks", "2")),
    ({"group_width": 32}, ("network.group_width", "64 with basic blocks", "32")),
    ({"block": "bottleneck", "group_width": 4, "groups": 32}, ("network.group_width 4", "network.stages[0].width 8", "divide by 64")),
    ({"block": "bottleneck", "groups": 0}, ("network.groups", "at least 1", "0")),
    ({"norm": "group"}, ("network.norm_groups 32", "8 channels", "must divide 8, 16")),
    ({"norm": "group", "norm_groups": 8, "stem": "tiered"}, ("network.norm_groups 8", "3 channels", "3, 4, 8, 16")),
    ({"norm": "group", "norm_groups": 2, "stem": "identity", "block": "preact"}, ("network.norm_groups 2", "3 channels", "3, 8, 16")),
    ({"shortcut": "zero_pad", "stages": ("1x16", "1x8")}, ("network.stages[1]", "8 channels after 16", "network.shortcut zero_pad", "projection")),
    ({"shortcut": "zero_pad", "stem_width": 64}, ("network.stages[0]", "8 channels after 64", "network.shortcut zero_pad")),
    ({"init": "fixup"}, ("network.init", "he with norm batch", "fixup")),
    ({"init": "fixup", "norm": "none", "shortcut": "none"}, ("network.init", "he without skips", "fixup")),
    ({"init": "fixup", "norm": "none", "branch_scale": "skipinit"}, ("network.branch_scale", "none with fixup", "skipinit")),
    ({"init": "fixup", "norm": "none", "weight_standardisation": True}, ("network.weight_standardisation", "off with fixup", "True")),
    ({"shortcut": "none", "drop_path": 0.1}, ("network.drop_path", "0 without skips", "0.1")),
    ({"shortcut": "none", "zero_init_last": True}, ("network.zero_init_last", "off without skips", "True")),
    ({"shortcut": "none", "branch_scale": "layer_scale"}, ("network.branch_scale", "none without skips", "layer_scale")),
    ({"zero_init_last": True, "norm_scale": False}, ("network.zero_init_last", "off without norm_scale", "True")),
    ({"stem": "whitening", "stem_components": 13}, ("network.stem_components", "12, the numbers of a patch", "13")),
    ({"stem": "whitening", "stem_patch": 0}, ("network.stem_patch", "between 1 and 16", "0")),
    ({"stem": "whitening", "stem_patch": 16, "in_channels": 129}, ("network.stem_patch 16", "66048 filters", "65536")),
    ({"stem": "whitening", "shortcut": "zero_pad"}, ("network.stages[0]", "8 channels after 24", "the stem is the first")),
    ({"weight_standardisation": True, "stem": "identity", "in_channels": 1}, ("network.weight_standardisation", "off", "one channel", "network.stages[0]")),
]  # fmt: skip


def check_refused(make: Any, parts: tuple[str, ...]) -> None:
    pattern = ".*".join(re.escape(part) for part in parts)
    with pytest.raises(InputError, match=f"(?s){pattern}"):
        make()


@pytest.mark.parametrize(("changes", "parts"), REFUSED, ids=[parts[0] for _, parts in REFUSED])
def test_network_spec_refuses_what_cannot_be(changes, parts):
    check_refused(lambda: NetworkSpec(**{"stages": BASIC, "stem_width": 8} | changes), parts)


def test_table_has_only_what_makes_the_difference():
    """Without the changes the network is a good one: it is they that are refused."""
    assert skipway.build(NetworkSpec(BASIC, stem_width=8, stem="cifar"))


ENUMS = {name: get_args(kind) for name, kind in get_type_hints(NetworkSpec).items() if get_origin(kind)}
ENUMS.pop("stages")


@pytest.mark.parametrize(("name", "choice"), [(name, choice) for name in ENUMS for choice in ENUMS[name]])
def test_unknown_name_suggests_the_nearest(name, choice):
    """One letter too many, as typed in a hurry."""
    parts = (f"network.{name} '{choice}{choice[-1]}'", f"Did you mean '{choice}'", f"Known: {', '.join(ENUMS[name])}")
    check_refused(lambda: NetworkSpec(BASIC, **{name: choice + choice[-1]}), parts)  # pyrefly: ignore


def spec_with(**changes: Any) -> NetworkSpec:
    return NetworkSpec(**{"stages": BASIC, "stem_width": 8, "stem": "cifar"} | changes)  # pyrefly: ignore


@pytest.mark.parametrize(
    ("spec", "size", "parts"),
    [
        (spec_with(), 1, ("network custom", "cifar stem", "2 times", "--image-size", "at least 2", "1")),
        (spec_with(), 0, ("at least 2", "0")),
        (spec_with(stages=("1x8/2",) * 5), 31, ("32 times", "at least 32", "31")),
        (find("resnet50"), 31, ("network resnet50", "imagenet stem", "32 times", "at least 32", "31")),
        (spec_with(stem="deep", stem_pool="none"), 3, ("4 times", "at least 4", "3")),
        (spec_with(stem="space_to_depth"), 7, ("at least 8", "7")),
        (spec_with(stem="space_to_depth"), 9, ("space_to_depth", "divide by 4", "9")),
        (spec_with(stem="whitening"), 2, ("patches of 2 pixels", "2 times", "at least 3", "2")),
        (spec_with(norm="group", norm_groups=8, blur="max"), 3, ("network.norm_groups 8", "one pixel", "more than 3")),
        (spec_with(norm="group", norm_groups=8), 2, ("network.norm_groups 8", "one channel a group", "more than 2")),
    ],
)  # fmt: skip
def test_stride_that_leaves_no_pixels_is_refused(spec, size, parts):
    check_refused(lambda: spec.check_image_size(size), parts)
    if size:
        check_refused(lambda: skipway.build(spec, image_size=size), parts)
        check_refused(lambda: skipway.describe(spec, image_size=size), parts)


@pytest.mark.parametrize(("stride", "least"), [(0, 4), (3, 4), (12, 4), (-8, 4), (2, 4), (1, 4)])
def test_output_stride_that_cannot_be_is_refused(stride, least):
    parts = ("output_stride", "power of two", f"at least {least}", f"got {stride}")
    check_refused(lambda: dilated(find("resnet50"), stride), parts)


def test_output_stride_that_dilates_too_far_is_refused():
    spec = spec_with(stages=("1x8/2",) * 8)
    check_refused(lambda: dilated(spec, 1), ("network.stages", "dilation", "between 1 and 64", "128"))
    assert dilated(spec, 8).downsampling == 8


def test_twin_of_a_twin_is_refused():
    check_refused(lambda: twin(find("plain20")), ("plain20", "no skips already"))


def test_stage_alone_is_refused_too():
    check_refused(lambda: StageSpec(1, 8, 3), ("network.stages.stride", "between 1 and 2", "3"))
