import dataclasses
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from skipway import cli_bench
from skipway.cache import cache_folder
from skipway.errors import InputError
from skipway.nn import kernels
from skipway.training import bench as bench_module
from skipway.training import ways as ways_module
from skipway.training.bench import bench
from skipway.training.engine import choose_engine
from skipway.training.plan import Plan
from skipway.training.rehearsal import asked_of, trainer_of
from skipway.training.roofline import Rate, Roofline
from skipway.training.ways import Way, fastest, keep, ways_of

RATE = Rate("matmul 32", "bf16", "TFLOP/s", 2.0, 1.0, 3.0, 7)
ROOF = Roofline((RATE,), RATE, RATE)
SMALL = {"data": {"image_size": 16}, "train": {"batch_size": 4, "precision": "fp32"}}
OWN, PLAIN, COMPILED = Way(False, True, 2.0, 1.0), Way(False, False, 3.0, 0.5), Way(True, False, 1.0, 1000.0)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ways_module, "kernels", SimpleNamespace(load=lambda: ""))


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return trainer_of(asked_of("tutorial", SMALL, trust_code=False), tmp_path).plan


def changed(plan: Plan, **sections: dict) -> Plan:
    spec = plan.spec
    for name, values in sections.items():
        spec = dataclasses.replace(spec, **{name: dataclasses.replace(getattr(spec, name), **values)})
    return dataclasses.replace(plan, spec=spec)


def test_the_fastest_way_depends_on_how_long_a_run_is(plan: Plan):
    keep(plan, [OWN, PLAIN, COMPILED])
    steps = plan.steps_per_epoch
    # own: 1 + 2 n; compiled: 1000 + n: equal at 999 steps
    for epochs, wanted in ((999 // steps - 1, OWN), (999 // steps + 1, COMPILED)):
        found = fastest(changed(plan, train={"epochs": epochs}))
        assert found is not None
        assert found[0] == wanted
    assert "the fastest of 3" in found[1]


@pytest.mark.parametrize(
    ("speed", "wanted"),
    [
        ({"compile": "off"}, OWN),
        ({"kernels": "off"}, PLAIN),
        ({"kernels": "off", "compile": "on"}, COMPILED),
        ({"kernels": "on", "compile": "on"}, None),
    ],
)
def test_what_was_asked_for_is_left_as_it_is(plan: Plan, speed: dict, wanted: Way | None):
    plan = changed(plan, train={"epochs": 2})
    keep(plan, [OWN, PLAIN, COMPILED])
    found = fastest(changed(plan, speed=speed))
    assert (found and found[0]) == wanted


@pytest.mark.parametrize(
    "sections",
    [
        {"data": {"image_size": 17}},
        {"train": {"batch_size": 3}},
        {"train": {"precision": "bf16"}},
        {"train": {"channels_last": False}},
        {"network": {"act": "silu"}},
        {"speed": {"micro_batch": 2}},
        {"speed": {"threads": 1}},
    ],
)
def test_another_run_is_not_meant(plan: Plan, sections: dict):
    keep(plan, [OWN])
    assert fastest(plan) is not None
    assert fastest(changed(plan, **sections)) is None


def test_other_classes_and_names_do_not_count(plan: Plan):
    keep(plan, [OWN])
    assert fastest(changed(plan, network={"num_classes": 7, "name": "mine"})) is not None


def test_kernels_that_cannot_be_made_are_not_taken(plan: Plan, monkeypatch: pytest.MonkeyPatch):
    keep(plan, [OWN, PLAIN])
    monkeypatch.setattr(ways_module, "kernels", SimpleNamespace(load=lambda: "no compiler"))
    found = fastest(plan)
    assert found is not None
    assert found[0] == PLAIN
    assert ways_of(plan.device) == [{"kernels": "off", "compile": "off"}, {"kernels": "off", "compile": "on"}]


@pytest.mark.parametrize("text", ["", "[]", '{"ways": 3, "on": ""}', '{"ways": [{"compiled": true}], "on": "x"}'])
def test_a_damaged_file_counts_as_none(plan: Plan, text: str):
    keep(plan, [OWN]).write_text(text)
    assert fastest(plan) is None


def test_a_cache_that_cannot_be_written_is_named(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot be written: .*SKIPWAY_CACHE names another"):
        keep(plan, [OWN])


def test_the_engine_takes_it_and_says_so(plan: Plan):
    keep(plan, [PLAIN, COMPILED])
    engine, said = choose_engine(changed(plan, train={"epochs": 2}))
    assert (engine.compiled, engine.kernels) == (False, False)
    assert "PyTorch's operators, not compiled: the fastest of 2" in said[0]
    assert choose_engine(changed(plan, train={"epochs": 1000}))[0].compiled


def test_bench_compares_and_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "cache"))
    tried: list[dict[str, str]] = [{"kernels": "off", "compile": "off"}, {"kernels": "off", "compile": "on"}]
    if not kernels.load():
        tried.insert(0, {"kernels": "on", "compile": "off"})
    assert ways_of(bench_module.torch.device("cpu")) == tried
    real = bench_module.trainer_of

    def compiler_fails(asked, folder):
        if asked.speed.compile == "on":
            raise RuntimeError("no compiler here\nand more")
        return real(asked, folder)

    monkeypatch.setattr(bench_module, "trainer_of", compiler_fails)
    found = bench("tutorial", seconds=0.02, settings=SMALL, roofline=ROOF, keep_fastest=True)
    assert len(found.ways) == len(tried) - 1
    assert found.failed == ("PyTorch's operators, compiled: no compiler here",)
    best = min(found.ways, key=lambda way: way.takes(6000))
    assert found.engine["kernels"] == best.kernels
    (place,) = (cache_folder() / "ways").iterdir()
    assert [Way(**way) for way in json.loads(place.read_text())["ways"]] == list(found.ways)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(cli_bench.report(found), soft_wrap=True)
    text = console.export_text()
    assert "PyTorch's operators, not compiled" in text
    assert "left out, since it failed: PyTorch's operators, compiled: no compiler here" in text
