import dataclasses
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from skipway import cli_bench
from skipway.errors import InputError
from skipway.flags import Flags
from skipway.nn import kernels
from skipway.nn.network import build
from skipway.training import bench as bench_module
from skipway.training.bench import Bench, bench, speed_of
from skipway.training.guard import BadNumbers
from skipway.training.rehearsal import asked_of, trainer_of
from skipway.training.roofline import Rate, Roofline, Sizes, conv_flops, measure_roofline
from skipway.training.stopwatch import Timed, repeated, timed

CPU = torch.device("cpu")
SIZES = Sizes(matmul=32, batch=2, convs=((8, 8),), yardstick=(4, 4), copy_bytes=1 << 16)
RATE = Rate("matmul 32", "bf16", "TFLOP/s", 2.0, 1.0, 3.0, 7)
ROOF = Roofline((RATE,), RATE, RATE)
SMALL = {"data": {"image_size": 16}, "train": {"batch_size": 4}, "speed": {"compile": "off"}}


@pytest.fixture
def tiny_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A roofline of tiny pieces, for tests of what is done with it."""
    monkeypatch.setattr(bench_module, "measure_roofline", lambda device, precision: ROOF)


@pytest.fixture(scope="module")
def found() -> Bench:
    return bench("tutorial", seconds=0.05, settings=SMALL, roofline=ROOF)


def test_flops_of_a_convolution_are_those_that_torch_counts():
    x, w = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(4, 4, 3, 3, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        y = F.conv2d(x, w, padding=1)
    assert counter.get_total_flops() == conv_flops(2, 4, 8, backward=False) == 2 * 2 * 64 * 4 * 4 * 9
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(y, (x, w), torch.ones_like(y))
    both = conv_flops(2, 4, 8, backward=True)
    assert counter.get_total_flops() + conv_flops(2, 4, 8, backward=False) == both


def test_rates_against_a_hand_count():
    # batches of 10 in a median of 0.5 s: 20 images/s; 3 GFLOP a step: 0.006 TFLOP/s, 0.6% of a peak of 1
    speed = speed_of(Timed(2.5, (0.4, 0.5, 1.0)), batch_size=10, flops=3 * 10**9, peak_tflops=1.0)
    assert dataclasses.asdict(speed) == pytest.approx(
        {
            "images_per_s": 20,
            "low": 10,
            "high": 25,
            "steps": 3,
            "step_ms": 500,
            "warm_up_s": 2.5,
            "tflops": 0.006,
            "mfu": 0.006,
        }
    )


def test_training_counts_three_forward_passes_of_every_image(found: Bench):
    network = build("tutorial", image_size=16).eval()
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 16, 16))
    assert found.flops == counter.get_total_flops()
    training, inference = found.training, found.inference
    assert training.tflops * 1e12 == pytest.approx(3 * found.flops * training.images_per_s)
    assert inference.tflops * 1e12 == pytest.approx(found.flops * inference.images_per_s)
    assert training.mfu == pytest.approx(training.tflops / 2.0)
    assert training.step_ms == pytest.approx(1000 * 4 / training.images_per_s)


def test_roofline_measures_every_piece():
    roof = measure_roofline(CPU, precision="fp32", sizes=SIZES)
    assert [(rate.work, rate.precision) for rate in roof.rates] == [
        ("matmul 32", "fp32"),
        ("matmul 32", "bf16"),
        ("conv 3x3, 8 channels, 8 px, forward", "fp32"),
        ("conv 3x3, 8 channels, 8 px, forward + backward", "fp32"),
        ("conv 3x3, 4 channels, 4 px, forward", "fp32"),
        ("conv 3x3, 4 channels, 4 px, forward + backward", "bf16"),
        ("copy of 0.0625 MiB", ""),
    ]
    assert all(0 < rate.low <= rate.value <= rate.high and rate.n == 7 for rate in roof.rates)
    assert roof.yardstick == roof.rates[-2]
    assert roof.peak.value == max(rate.value for rate in roof.rates if rate.precision == "fp32")
    assert [rate.unit for rate in roof.rates if not rate.precision] == ["GB/s"]


def test_yardstick_is_the_one_of_the_documentation():
    sizes = Sizes()
    assert (sizes.batch, sizes.yardstick) == (500, (128, 16))


def test_a_rate_is_work_by_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("skipway.training.roofline.repeated", lambda run, device: [0.5, 0.25, 1.0])
    roof = measure_roofline(CPU, precision="fp32", sizes=SIZES)
    matmul, copy = roof.rates[0], roof.rates[-1]
    assert (matmul.value, matmul.low, matmul.high) == pytest.approx(tuple(2 * 32**3 / 1e12 / s for s in (0.5, 1, 0.25)))
    assert copy.value == pytest.approx(2 * 65536 / 1e9 / 0.5)


def test_repeats_end_after_seven_or_when_they_take_long(monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    assert len(repeated(lambda: calls.append(1), CPU)) == 7
    assert len(calls) == 8
    monkeypatch.setattr("skipway.training.stopwatch.PATIENCE", 0.0)
    assert len(repeated(lambda: None, CPU)) == 3


def test_timed_leaves_the_warm_up_out():
    calls: list[int] = []

    def run() -> None:
        calls.append(1)
        time.sleep(0.05 if len(calls) <= 3 else 0.001)

    result = timed(run, CPU, 0.02)
    assert result.warm_up >= 0.15
    assert max(result.steps) < 0.05
    assert sum(result.steps) >= 0.02
    assert len(calls) == 3 + len(result.steps)


def test_steps_of_an_accelerator_are_not_waited_for_one_by_one(monkeypatch: pytest.MonkeyPatch):
    did: list[str] = []
    monkeypatch.setattr("skipway.training.stopwatch.synchronise", lambda _: did.append("wait"))
    result = timed(lambda: did.append("step"), torch.device("meta"), 0.0)
    assert did == ["step"] * 3 + ["wait"] + ["step"] * 10 + ["wait"]
    assert len(result.steps) == 10
    assert len(set(result.steps)) == 1


def test_parts_make_a_step(found: Bench):
    assert list(found.parts_ms) == ["input", "forward", "backward", "update"]
    assert all(part > 0 for part in found.parts_ms.values())


def test_settings_reach_the_run():
    settings: dict[str, dict[str, Any]] = {
        "data": {"image_size": 16},
        "network": {"stem_width": 8},
        "train": {"batch_size": 6, "precision": "fp32"},
        "speed": {"compile": "off", "micro_batch": 3},
    }
    result = bench("tutorial", seconds=0.01, settings=settings, roofline=ROOF)
    assert (result.batch_size, result.image_size) == (6, 16)
    wanted = {"precision": "fp32", "channels_last": True, "compiled": False, "micro_batch": 3}
    assert result.engine == wanted | {"kernels": not kernels.load()}
    assert result.parameters != 43_242
    assert result.training.steps >= 3


def test_a_given_peak_takes_the_place_of_the_measured_one():
    result = bench("tutorial", seconds=0.01, peak_tflops=6.8, settings=SMALL, roofline=ROOF)
    assert (result.peak_tflops, result.peak) == (6.8, "given")
    assert result.training.mfu == pytest.approx(result.training.tflops / 6.8)


def test_network_keeps_its_classes(tmp_path: Path):
    settings = {"data": {"image_size": 32}, "train": {"batch_size": 2}, "speed": {"compile": "off"}}
    asked = asked_of("resnet18", settings, trust_code=False)
    network = trainer_of(asked, tmp_path).learner.network
    stems = 3 * 64 * 7 * 7 - 3 * 64 * 3 * 3
    assert sum(p.numel() for p in network.parameters()) == 11_689_512 - stems  # with a head of 1000 classes


@pytest.mark.parametrize(("network", "size"), [("resnet18", 224), ("resnet20", 32), ("tutorial", 32)])
def test_images_have_the_familys_size(network: str, size: int):
    assert asked_of(network, {}, trust_code=False).data.image_size == size


def test_a_run_is_measured_with_its_own_settings(trained, tmp_path: Path):
    before = sorted(path.name for path in trained.folder.iterdir())
    result = bench(str(trained.folder), seconds=0.01, settings={"speed": {"compile": "off"}}, roofline=ROOF)
    assert (result.batch_size, result.image_size) == (TINY["train"]["batch_size"], 16)
    assert result.parameters == trained.summary["num_parameters"]
    assert sorted(path.name for path in trained.folder.iterdir()) == before
    assert list(Path.cwd().iterdir()) == []  # nothing is kept


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": {"folds": 3}}, "data.folds does not apply to bench"),
        ({"train": {"epochs": 3}}, "train.epochs does not apply to bench"),
        ({"train": {"freeze": "backbone"}}, "train.freeze does not apply"),
        ({"speed": {"keep_hard": 0.5}}, "speed.keep_hard does not apply"),
        ({"train": {"batch_size": 10**8}}, "train.batch_size 100000000 at 32 pixels wants"),
        ({"data": {"image_size": 5000}}, "data.image_size must be between 0 and 4096"),
        ({"somewhere": {"x": 1}}, "unknown section 'somewhere'"),
    ],
)
def test_what_does_not_apply_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        bench("tutorial", settings=settings, roofline=ROOF)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "long"])
def test_bounds_of_seconds_and_peak(value):
    with pytest.raises(InputError, match="seconds must be between 0.01 and 1000000"):
        bench("tutorial", seconds=value, roofline=ROOF)
    with pytest.raises(InputError, match="peak_tflops must be between 0 and 1000000"):
        bench("tutorial", peak_tflops=value, roofline=ROOF)


def test_numbers_that_are_none_cost_one_message(monkeypatch: pytest.MonkeyPatch):
    def bad(*_: Any) -> Bench:
        raise BadNumbers("the loss", "the first is in the output of stem", ())

    monkeypatch.setattr(bench_module, "_measured", bad)
    with pytest.raises(InputError, match="tutorial does not get through .* the loss is no finite number; the first is"):
        bench("tutorial", settings=SMALL, roofline=ROOF)


def test_unknown_network_is_named():
    with pytest.raises(InputError, match="unknown network 'resnet21'"):
        bench("resnet21", roofline=ROOF)


@pytest.mark.usefixtures("tiny_machine")
def test_verb_prints_one_json_object(capsys: pytest.CaptureFixture[str]):
    flags = Flags(image_size=16, batch_size=4, compile="off")
    assert cli_bench.bench("tutorial", seconds=0.01, json=True, flags=flags) == 0
    table = json.loads(capsys.readouterr().out)
    assert set(table) == {f.name for f in dataclasses.fields(Bench)}
    assert set(table["training"]) >= {"images_per_s", "low", "high", "steps", "step_ms", "tflops", "mfu"}
    assert table["roofline"]["peak"]["value"] == table["peak_tflops"] == 2.0
    assert table["machine"]["threads"] == torch.get_num_threads()


def test_table_says_what_was_measured(found: Bench):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(cli_bench.report(found), soft_wrap=True)
    text = console.export_text()
    assert "tutorial, 43,242 parameters" in text
    assert "16 pixels, batches of 4" in text
    assert "matmul 32" in text
    assert "as a share of 2 TFLOP/s, the fastest measured (matmul 32)" in text
    assert f"{found.training.images_per_s:,.1f}" in text
