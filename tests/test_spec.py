import dataclasses
from typing import Any

import pytest
from conftest import ours
from hypothesis import given
from hypothesis import strategies as st

from skipway import recipes
from skipway.compose import compose, read_config
from skipway.errors import InputError
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.spec import (
    SECTIONS,
    AugmentSpec,
    DataSpec,
    RunSpec,
    TrainSpec,
    differences,
    from_toml,
    to_toml,
)


def anything(value: Any) -> Any:  # what a type checker would refuse, as a file or a person may say it
    return value


stage_specs = st.builds(StageSpec, st.integers(1, 9), st.integers(1, 512), st.sampled_from([1, 2]))
network_specs = st.builds(
    NetworkSpec,
    st.lists(stage_specs, min_size=1, max_size=5).map(tuple),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20),
    block=st.sampled_from(["basic", "bottleneck"]),
    shortcut=st.sampled_from(["projection", "none"]),
    stem=st.sampled_from(["auto", "cifar", "imagenet"]),
    stem_bias=st.booleans(),
    in_channels=st.integers(1, 12),
)
run_specs = st.builds(
    RunSpec,
    network_specs,
    data=st.builds(DataSpec, st.text(max_size=20), val_fraction=st.floats(0.001, 0.9)),
    augment=st.builds(AugmentSpec, mixup=st.floats(0, 1e6), flip=st.booleans()),
    train=st.builds(
        TrainSpec,
        epochs=st.integers(1, 10**6),
        lr=st.floats(0, 1e9),
        milestones=st.lists(st.floats(0.001, 0.999), max_size=4).map(tuple),
    ),
)


@given(run_specs)
def test_spec_round_trips_through_toml(spec):
    assert from_toml(to_toml(spec)) == spec


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipe_is_complete_and_round_trips(name):
    spec = recipes.RECIPES[name]()
    assert spec.recipe == name
    assert from_toml(to_toml(spec)) == spec


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainSpec(epochs=0), r"train\.epochs must be at least 1, got 0"),
        (lambda: TrainSpec(lr=float("nan")), r"train\.lr must be a finite number, got nan"),
        (lambda: TrainSpec(lr=float("inf")), r"train\.lr must be a finite number, got inf"),
        (lambda: TrainSpec(momentum=1), r"train\.momentum must be between 0 and 0\.9999, got 1"),
        (lambda: TrainSpec(epochs=True), r"train\.epochs must be a whole number, got True"),
        (lambda: TrainSpec(milestones=(0.5, 1.5)), r"train\.milestones must lie between 0 and 1"),
        (lambda: TrainSpec(milestones=anything("0.5")), r"train\.milestones must be a list, got '0.5'"),
        (
            lambda: TrainSpec(schedule=anything("cosin")),
            r"unknown train\.schedule 'cosin'\. Did you mean 'cosine'",
        ),
    ],
)
def test_spec_names_the_field_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_stage_can_be_written_short():
    spec = NetworkSpec(anything(("3x16", "2x32/2")))
    assert spec.stages == (StageSpec(3, 16, 1), StageSpec(2, 32, 2))


def test_field_names_are_unique_over_the_sections():
    names = [f.name for cls in SECTIONS.values() for f in dataclasses.fields(cls)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[network]\nstages = ['1x8']\n[trian]\n", "unknown section 'trian'. Did you mean 'train'"),
        (
            "[network]\nstages = ['1x8']\n[train]\nepoch = 3\n",
            "unknown field of train 'epoch'. Did you mean 'epochs'",
        ),
        ("[network]\nname = 'x'\n", r"network\.stages is missing"),
        ("[network", "not a TOML file"),
    ],
)
def test_from_toml_says_what_is_wrong(text, message):
    with pytest.raises(InputError, match=message):
        from_toml(text)


def test_differences_lists_changed_fields():
    spec = recipes.default()
    other = dataclasses.replace(spec, train=dataclasses.replace(spec.train, epochs=7))
    assert differences(spec, other) == ["train.epochs: 30 -> 7"]
    assert differences(spec, spec) == []


def test_compose_lays_flags_over_config_over_recipe(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        "recipe = 'demo'\n[train]\nepochs = 5\nlr = 0.2\n[network]\nname = 'resnet18'\nzero_init_last = true\n"
    )
    spec = compose("photos", config=config, settings={"train": {"epochs": 6}})
    demo = recipes.demo()
    assert (spec.recipe, spec.train.epochs, spec.train.lr) == ("demo", 6, 0.2)
    assert spec.train.batch_size == demo.train.batch_size
    assert (spec.data.path, spec.network.name, ours(spec).zero_init_last) == ("photos", "resnet18", True)


def test_compose_drops_changes_to_a_network_that_a_later_layer_replaces(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text("[network]\nname = 'resnet18'\nshortcut = 'none'\n")
    settings: dict[str, Any] = {"network": {"name": "resnet20"}}
    assert ours(compose(config=config, settings=settings)).shortcut == "zero_pad"


def test_compose_leaves_the_stem_open_unless_it_is_named():
    assert ours(compose(settings={"network": {"name": "resnet18"}})).stem == "auto"
    assert ours(compose(settings={"network": {"name": "resnet18", "stem": "imagenet"}})).stem == "imagenet"


def test_spec_toml_of_a_run_is_a_config_file(tmp_path):
    spec = dataclasses.replace(recipes.demo(), network=NetworkSpec((StageSpec(1, 4),), stem="cifar"))
    (tmp_path / "spec.toml").write_text(to_toml(spec))
    assert compose(config=tmp_path / "spec.toml") == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 3", "unknown section"),
        ("train = 3", r"must be a section: \[train\]"),
        ("a=[", "is not TOML"),
    ],
)
def test_read_config_says_what_is_wrong(tmp_path, text, message):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(tmp_path / "c.toml")
    with pytest.raises(InputError, match="cannot be read"):
        read_config(tmp_path / "none.toml")
