"""The space of specs: whatever is said either works to the end or is refused with the field's name.

Strategies come from the fields themselves (type, choices, bounds), so a field that is added is covered.
"""

import dataclasses
import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, example, find, given, settings
from hypothesis import strategies as st

import skipway
from skipway.errors import InputError
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.nn.zoo import resolve_stem
from skipway.spec import AugmentSpec, DataSpec, RunSpec, TrainSpec, from_toml, to_toml
from skipway.speed_spec import SpeedSpec
from skipway.train_spec import TRACKERS

LEAST: dict[type, dict[str, Any]] = {  # what a spec cannot be made without
    StageSpec: {"depth": 1, "width": 8},
    NetworkSpec: {"stages": (StageSpec(1, 8),)},
    DataSpec: {},
    AugmentSpec: {},
    TrainSpec: {},
    SpeedSpec: {},
}
PLACES = {
    StageSpec: "network.stages",
    NetworkSpec: "network",
    DataSpec: "data",
    AugmentSpec: "augment",
    TrainSpec: "train",
    SpeedSpec: "speed",
}
SECTIONS = {place: cls for cls, place in PLACES.items() if cls is not StageSpec}

# Values for networks that are built and run: small, with what fits together and what does not.
SMALL: dict[str, st.SearchStrategy[Any]] = {
    "depth": st.integers(1, 2),
    "width": st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16]),
    "dilation": st.sampled_from([1, 1, 2, 3, 64]),
    "stem_width": st.sampled_from([1, 2, 3, 4, 6, 8, 16]),
    "stem_patch": st.integers(1, 4),
    "stem_components": st.sampled_from([0, 0, 1, 3, 4]),
    "norm_groups": st.sampled_from([1, 2, 3, 4, 8, 32]),
    "groups": st.sampled_from([1, 2, 3]),
    "group_width": st.sampled_from([8, 16, 32, 64, 96, 128]),
    "attention_reduction": st.sampled_from([1, 4, 16, 1000]),
    "in_channels": st.integers(1, 5),
    "num_classes": st.integers(1, 4),
    "name": st.sampled_from(["custom", "", "resnet50", "resnet50d", "resnet50t"]),
}

TEXTS = {  # texts of a form that hardly any text has
    "window": st.sampled_from(["auto", "full", "40/400", "-600/1500.5"]),
    "frame": st.sampled_from(["first", "middle", "last", "0", "17"]),
    "track": st.lists(st.sampled_from(TRACKERS), max_size=3).map(tuple),
}
SMALL |= TEXTS
FITTING = TEXTS | {
    name: SMALL[name] for name in ("group_width", "norm_groups")
}  # of all numbers hardly any goes with a width


def values(cls: type, field: dataclasses.Field, special: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """What a field may hold, from its type and its bounds, or from `special`."""
    kind, low, high = get_type_hints(cls)[field.name], field.metadata["low"], field.metadata["high"]
    if field.name in special:
        return special[field.name]
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is tuple:
        if get_args(kind)[0] is float:
            return st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), max_size=4).map(tuple)
        if get_args(kind)[0] is str:
            return st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=3).map(tuple)
        return st.lists(specs(get_args(kind)[0], special), min_size=1, max_size=3).map(tuple)
    if kind is int:
        return st.integers(-(2**63) if low is None else low, 2**63 - 1 if high is None else high)
    if kind is float:
        return st.floats(low, high, allow_nan=False, allow_infinity=False)
    if kind is bool:
        return st.booleans()
    assert kind is str, f"{cls.__name__}.{field.name} wants a strategy here"
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def choices(draw: st.DrawFn, cls: type, special: dict[str, st.SearchStrategy[Any]]) -> dict[str, Any]:
    """A value for each field, whether or not they go together."""
    return {f.name: draw(values(cls, f, special)) for f in dataclasses.fields(cls)}


@st.composite
def specs(draw: st.DrawFn, cls: type, special: dict[str, st.SearchStrategy[Any]]) -> Any:
    """A valid spec: fields drawn one after the other, each kept where the spec goes with those before."""
    spec = cls(**LEAST[cls])
    fields = draw(st.permutations(dataclasses.fields(cls))) if cls is NetworkSpec else dataclasses.fields(cls)
    for f in fields:
        value = draw(values(cls, f, special))
        try:
            spec = dataclasses.replace(spec, **{f.name: value})
        except InputError:
            continue
    return spec


def refusal(make: Any, place: str) -> str:
    """The message that `make` fails with, "" where it does not; any other exception goes through."""
    try:
        make()
    except InputError as error:
        assert place in str(error)
        assert len(str(error)) < 1000
        return str(error)
    return ""


def smallest(spec: NetworkSpec) -> int:
    """The smallest image that the spec admits; every smaller one is refused by name."""
    for size in range(4 * spec.downsampling + spec.stem_patch + 1):
        message = refusal(lambda size=size: spec.check_image_size(size), "--image-size")
        if not message:
            assert size >= spec.smallest_image >= spec.downsampling
            return size
        assert str(size) in message
    raise AssertionError("no image is large enough")


def check_network(spec: NetworkSpec, more: int) -> None:
    """Build it, run it at the smallest size, at `more` pixels on top, and train at twice the smallest."""
    size = smallest(spec)
    network = skipway.build(spec)
    outputs = spec.num_classes if spec.head == "linear" else spec.out_width
    last = [name for name, _ in network.blocks()][-1]
    with torch.no_grad():
        for pixels in {size, size + more}:
            if refusal(lambda pixels=pixels: spec.check_image_size(pixels), "--image-size"):
                assert spec.stem == "space_to_depth"
                continue
            y = network.eval()(torch.randn(1, spec.in_channels, pixels, pixels))
            assert y.shape == (1, outputs)
            assert y.isfinite().all()
            description = skipway.describe(spec, image_size=pixels)
            assert description.parameters == sum(p.numel() for p in network.parameters())
            assert description.layers[-1].output == (outputs,) or spec.head == "features"
            assert network.features(torch.randn(1, spec.in_channels, pixels, pixels))[last].shape[2] == spec.last_map(
                pixels
            )
    y = network.train()(torch.randn(2, spec.in_channels, 2 * size, 2 * size))
    assert y.shape == (2, outputs)
    assert y.isfinite().all()
    y.square().sum().backward()
    for name, p in network.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name


valid_choice = specs(NetworkSpec, SMALL).map(vars)
any_choice = valid_choice | valid_choice | choices(NetworkSpec, SMALL)
quickly = settings(derandomize=True, phases=[Phase.generate], max_examples=500)
by_chance = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@settings(by_chance, max_examples=200)
@given(any_choice, st.integers(1, 9), st.sampled_from([16, 100]))
@example({"stages": ("1x8",), "norm": "group", "norm_groups": 8, "stem": "identity"}, 1, 16)
@example(
    {"stages": ("1x4/2", "1x8/2"), "block": "preact", "shortcut": "zero_pad", "in_channels": 1, "stem": "identity"},
    3,
    16,
)
@example({"stages": ("1x8/2",), "stem": "imagenet", "blur": "blur", "stem_pool": "max_zero"}, 5, 16)
@example({"stages": ("1x8@64", "1x8@64"), "stem": "cifar", "blur": "blur"}, 1, 16)
@example(
    {"stages": ("1x8",), "stem": "cifar", "stem_width": 1, "weight_standardisation": True, "block": "bottleneck"}, 1, 16
)
@example({"stages": ("1x1",), "stem": "cifar", "attention": "eca", "checkpoint": True, "last_act": False}, 1, 16)
@example({"stages": ("1x8/2",), "stem": "space_to_depth", "blur": "avg", "shortcut": "avg_pool"}, 1, 16)
@example({"stages": ("1x8/2", "1x8/2"), "stem": "whitening", "blur": "max", "stem_patch": 3}, 1, 16)
@example({"stages": ("1x8/2", "1x8/2"), "stem": "deep", "blur": "max", "norm": "group", "norm_groups": 4}, 3, 16)
@example({"stages": ("2x8", "2x8/2"), "stem": "cifar", "drop_path": 0.9, "drop_path_by": "batch"}, 1, 16)
def test_network_spec_is_refused_by_name_or_works_to_the_end(choice, more, open_size):
    made = []
    if refusal(lambda: made.append(NetworkSpec(**choice)), "network."):
        return
    (spec,) = made
    if refusal(lambda: made.append(resolve_stem(spec, open_size)[0]), "network."):
        assert spec.stem == "auto"
        return
    check_network(made[-1], more)


@settings(by_chance, max_examples=60)
@given(st.fixed_dictionaries({name: specs(cls, FITTING) for name, cls in SECTIONS.items()}), st.text(max_size=9))
def test_run_spec_of_every_field_round_trips_through_toml(sections, recipe):
    spec = RunSpec(recipe=recipe.encode(errors="ignore").decode(), **sections)
    assert from_toml(to_toml(spec)) == spec


FIELDS = [(cls, f.name) for cls in PLACES for f in dataclasses.fields(cls)]


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=[f"{PLACES[c]}.{n}" for c, n in FIELDS])
def test_field_holds_another_value_and_refuses_wrong_types(cls, name):
    """Another value than the default is kept; what is kept has the field's type, and goes through TOML."""
    where = f"{PLACES[cls]}.{name}" if name != "stages" else "network.stages"
    kept = [value for value in WRONG + texts_and_numbers() if keeps(cls, name, value, where)]
    kind = get_type_hints(cls)[name]
    for value in kept:
        allowed = {float: (float, int), tuple: (tuple, list)}.get(get_origin(kind) or kind, (kind,))
        assert type(value) in allowed if get_origin(kind) is not Literal else value in get_args(kind)
    assert kept or get_origin(kind) is Literal


WRONG: list[Any] = [
    None, [], (), {}, set(), [None], [[]], [1], ["1x8"], [{"depth": 1}], [{1: 2}], [{"depth": None, "width": 8}],
    ["1x8/3"], ["0x8"], ["1x8@0"], ["9" * 5000 + "x8"], ["1x"], [math.nan], [10**400], (0.5, "0.5"), {"depth": 1},
    b"1", object(), int, 1j, np.float64(0.5), np.int64(1), np.array([1, 2]), True, False,
]  # fmt: skip


def texts_and_numbers() -> list[Any]:
    numbers = [0, 1, 2, 64, -1, 0.5, -0.5, 1.5, math.nan, math.inf, -math.inf, 1e308]
    huge = [2**62, 2**63 - 1, 2**63, -(2**63) - 1, 10**400, -(10**400), 10**5000]
    return [*numbers, *huge, "", "text", "1", "None", "nan", "\0\n\x7f", "é", "\ud800", "x" * 2000, "40/400", "last"]


def keeps(cls: type, name: str, value: Any, where: str) -> bool:
    """Whether the field takes the value. If so it goes through TOML, if not the message names the field."""
    made = []
    if refusal(lambda: made.append(cls(**LEAST[cls] | {name: value})), where):
        return False
    (spec,) = made
    sections: dict[str, Any] = {"network": NetworkSpec((StageSpec(1, 8),))}
    sections |= {"network": NetworkSpec((spec,))} if cls is StageSpec else {PLACES[cls]: spec}
    whole = RunSpec(**sections)
    assert from_toml(to_toml(whole)) == whole
    return True


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=4,
)


@settings(by_chance, max_examples=150)
@given(st.sampled_from(FIELDS), anything)
def test_field_takes_no_value_that_toml_would_not_give_back(field, value):
    cls, name = field
    keeps(cls, name, value, PLACES[cls])


@settings(by_chance, max_examples=150)
@given(st.from_regex(r"[0-9x/@ -]{0,8}", fullmatch=True) | st.text(max_size=8))
def test_stage_text_is_a_stage_or_refused_by_name(text):
    made = []
    if not refusal(lambda: made.append(NetworkSpec((text,))), "network.stages[0]"):  # pyrefly: ignore
        (stage,) = made[0].stages
        numbers = f"{stage.depth}x{stage.width}/{stage.stride}@{stage.dilation}"
        assert NetworkSpec((numbers,)) == made[0]  # pyrefly: ignore


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=[f"{PLACES[c]}.{n}" for c, n in FIELDS])
def test_strategies_vary_every_field(cls, name):
    """A field that stays at its default would be covered in name only."""
    start = getattr(cls(**LEAST[cls]), name)
    for special in (SMALL, FITTING):
        varied = find(specs(cls, special), lambda spec: getattr(spec, name) != start, settings=quickly)
        assert getattr(varied, name) != start
