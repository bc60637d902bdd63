"""Numbers gone bad and memory gone: nothing bad is ever saved, and the run says where it came from."""

import io
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, make_photos, newest
from rich.console import Console

import skipway
from skipway.errors import InputError
from skipway.nn.weight_files import read_safetensors
from skipway.run import Run
from skipway.training import guard as guard_module
from skipway.training import recovery
from skipway.training.guard import BadNumbers, Guard, bad_weights, first_bad
from skipway.training.loop import Trainer
from skipway.training.step import Learner

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("numbers") / "photos")


def settings(*, safety: dict[str, Any] | None = None, **train: Any) -> dict[str, dict[str, Any]]:
    """Four steps an epoch."""
    return {**TINY, "train": TINY["train"] | {"epochs": 3} | train, "safety": safety or {}}


def train(photos: Path, out: Path, settings: dict[str, dict[str, Any]]) -> tuple[Run, str]:
    """A run, and what it said."""
    said = io.StringIO()
    run = skipway.train(photos, settings=settings, out=out, console=Console(file=said, width=300))
    return run, said.getvalue()


def finite(folder: Path) -> bool:
    kept = read_safetensors(folder / "weights.safetensors")[0] if (folder / "weights.safetensors").exists() else {}
    return not bad_weights(newest(folder)) and not bad_weights(kept)


def plant(monkeypatch: pytest.MonkeyPatch, step: int, what: str) -> None:
    """A gradient, or a loss, that is no number, once, in the step of that number (from 1)."""
    backward, calls = Learner._backward, [0]

    def planted(self: Learner, *arguments: Any) -> Any:
        loss, right, logits = backward(self, *arguments)
        calls[0] += 1
        if calls[0] == step:
            if what == "loss":
                return loss * float("nan"), right, logits
            grad = self.network.get_parameter("stages.1.0.conv2.weight").grad
            assert grad is not None
            grad[0, 0, 0, 0] = float("inf")
        return loss, right, logits

    monkeypatch.setattr(Learner, "_backward", planted)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_stop_names_step_layer_and_samples(photos, tmp_path, monkeypatch, what):
    plant(monkeypatch, 6, what)
    with pytest.raises(InputError, match=rf"the {what} of step 6 \(epoch 2\) is no finite number"):
        train(photos, tmp_path / "run", settings(safety={"save_steps": 1}))
    report = json.loads((tmp_path / "run" / recovery.REPORT).read_text())
    assert (report["epoch"], report["step"], report["num_samples"]) == (2, 6, 8)
    if what == "gradient":
        assert report["where"] == "going back, the first is the gradient of stages.1.0.conv2.weight (1 in all)"
    assert finite(tmp_path / "run")


def test_a_rate_that_is_far_too_high_stops_with_finite_weights(photos, tmp_path):
    wild = settings(lr=1e15, precision="fp32", warmup_epochs=0.0)
    with pytest.raises(InputError, match=r"is no finite number.*names the samples.*--bad-numbers back or skip"):
        train(photos, tmp_path / "run", wild)
    report = json.loads((tmp_path / "run" / recovery.REPORT).read_text())
    assert report["num_samples"] > 0
    assert all(Path(photos, name).is_file() for name in report["samples"])
    assert finite(tmp_path / "run")


def test_skip_leaves_the_batch_out_as_if_it_had_not_been(photos, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        plant(patch, 6, "loss")
        run, said = train(photos, tmp_path / "run", settings(safety={"bad_numbers": "skip"}))
    assert run.finished
    assert "the batch is left out" in said
    assert len(run.steps()) == 11
    one, calls = Trainer._one, [0]

    def without(self: Trainer, *arguments: Any) -> None:
        calls[0] += 1
        if calls[0] != 6:
            one(self, *arguments)

    monkeypatch.setattr(Trainer, "_one", without)
    other, _ = train(photos, tmp_path / "other", settings())
    a, b = newest(run.folder), newest(other.folder)
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


def test_skipping_ends_when_nothing_else_comes(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(Learner, "_backward", lambda self, x, y: (x.sum() * float("nan"), x.sum(), x))
    with pytest.raises(InputError, match="every batch of epoch 1 was left out"):
        train(photos, tmp_path / "run", settings(safety={"bad_numbers": "skip"}))
    monkeypatch.setattr(recovery, "SKIPS", 3)
    with pytest.raises(InputError, match="3 batches one after the other were left out"):
        train(photos, tmp_path / "other", settings(safety={"bad_numbers": "skip"}))
    assert finite(tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 2])
def test_back_goes_on_from_the_last_checkpoint_with_half_the_rate(photos, tmp_path, monkeypatch, workers):
    plant(monkeypatch, 7, "gradient")
    wanted = settings(safety={"bad_numbers": "back", "save_steps": 1}, schedule="constant", warmup_epochs=0.0)
    wanted["data"] = {"workers": workers}
    run, said = train(photos, tmp_path / "run", wanted)
    assert run.finished
    assert "back to 1 whole epoch and 2 batches, rates times 0.5" in said
    steps = run.steps()
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert [row["lr"] for row in steps] == [0.1] * 6 + [0.05] * 6
    assert finite(run.folder)


def test_a_run_that_went_back_resumes_with_its_rate(photos, tmp_path, monkeypatch):
    wanted = settings(safety={"bad_numbers": "back", "save_steps": 1}, schedule="constant", warmup_epochs=0.0)
    with monkeypatch.context() as patch:
        plant(patch, 3, "loss")
        whole, _ = train(photos, tmp_path / "whole", wanted)
    with monkeypatch.context() as patch:
        plant(patch, 3, "loss")
        step, calls = Trainer._step, [0]

        def cut(self: Trainer, *arguments: Any) -> Any:
            calls[0] += 1
            if calls[0] == 9:
                raise KeyboardInterrupt
            return step(self, *arguments)

        patch.setattr(Trainer, "_step", cut)
        with pytest.raises(KeyboardInterrupt):
            train(photos, tmp_path / "cut", wanted)
    again, _ = train(photos, tmp_path / "cut", wanted)
    assert [(row["loss"], row["lr"]) for row in again.steps()] == [(row["loss"], row["lr"]) for row in whole.steps()]


def test_going_back_ends_too(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(Learner, "_backward", lambda self, x, y: (x.sum() * float("inf"), x.sum(), x))
    with pytest.raises(InputError, match="no finite number"):
        train(photos, tmp_path / "run", settings(safety={"bad_numbers": "back"}))
    assert finite(tmp_path / "run")


def test_weights_that_are_none_are_not_saved(photos, tmp_path, monkeypatch):
    """Where a bad number reaches the weights all the same, no checkpoint holds it."""
    step = Trainer._step

    def poisoned(self: Trainer, batch: Any, epoch: int, number: int) -> Any:
        made = step(self, batch, epoch, number)
        if number == 7:
            with torch.no_grad():
                self.learner.network.get_parameter("head.linear.weight")[0, 0] = float("nan")
        return made

    monkeypatch.setattr(Trainer, "_step", poisoned)
    with pytest.raises(InputError, match=r"no longer a finite number|head.linear.weight .* is not saved"):
        train(photos, tmp_path / "run", settings())
    assert finite(tmp_path / "run")
    assert len(Run.open(tmp_path / "run").metrics()) == 1


def test_the_first_bad_layer_is_found_and_buffers_come_back():
    network = skipway.build("resnet20", num_classes=3).train()
    objective_like = type("O", (), {"hardness": staticmethod(lambda logits, targets: logits.sum(1))})
    guard = Guard(network)
    before = {key: value.clone() for key, value in network.named_buffers()}
    guard.before()
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        network.get_parameter("stages.1.1.conv1.weight")[0, 0, 0, 0] = float("nan")
    loss = network(images).sum()
    with pytest.raises(BadNumbers) as caught:
        guard.check(loss, images, torch.zeros(4), objective_like, network)  # pyrefly: ignore[bad-argument-type]
    assert "stages.1.1.conv1 (Conv, whose weight is not finite)" in caught.value.where
    assert caught.value.places == (0, 1, 2, 3)
    assert all(torch.equal(value, before[key]) for key, value in network.named_buffers())
    images[2] = float("inf")
    guard.before()
    with pytest.raises(BadNumbers, match="in the images already") as caught:
        guard.check(loss, images, torch.zeros(4), objective_like, network)  # pyrefly: ignore[bad-argument-type]
    assert caught.value.places == (2,)


def test_hooks_are_gone_after_a_look():
    network = skipway.build("tutorial")
    with first_bad(network) as found:
        network(torch.zeros(2, 1 if network.spec.in_channels == 1 else 3, 32, 32))
    assert found == []
    assert not any(module._forward_hooks for module in network.modules())


SHORT = RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.mark.parametrize("error", [SHORT, MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to")])
def test_out_of_memory_halves_the_pieces_and_keeps_the_batch(photos, tmp_path, monkeypatch, error):
    computed = Learner._computed

    def greedy(self: Learner, inputs: torch.Tensor) -> torch.Tensor:
        if len(inputs) > 3 and self.network.training:
            raise error
        return computed(self, inputs)

    monkeypatch.setattr(Learner, "_computed", greedy)
    run, said = train(photos, tmp_path / "run", settings(epochs=1))
    assert run.finished
    assert "4 images at a time from here on" in said
    assert "2 images at a time from here on" in said
    assert json.loads((run.folder / "engine.json").read_text())["micro_batch"] == 2
    assert len(run.steps()) == 4
    monkeypatch.setattr(Learner, "_computed", lambda self, inputs: (_ for _ in ()).throw(error))
    with pytest.raises(InputError, match="out of memory with one image at a time"):
        train(photos, tmp_path / "never", settings(epochs=1))


def test_other_errors_are_not_taken_for_memory():
    assert not guard_module.is_out_of_memory(RuntimeError("shape mismatch"))
    assert not guard_module.is_out_of_memory(ValueError("out of memory"))


def test_a_real_limit_of_memory(photos, tmp_path):
    """An address space too small for the batch: the run goes on in smaller pieces, or says what to change."""
    code = (
        "import resource, sys, torch; torch.set_num_threads(1)\n"
        "import skipway, skipway.training.train, skipway.training.loop\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]), resource.RLIM_INFINITY))\n"
        "from skipway.cli import main\n"
        "main(['train', sys.argv[1], '--out', sys.argv[2], '--stages', '1x4', '--stem-width', '4', '--stem', 'cifar', '--image-size', '512',"
        " '--batch-size', '32', '--epochs', '1', '--workers', '0', '--kernels', 'off', '--precision', 'fp32'])"
    )
    room = str(900 << 20)
    done = subprocess.run(
        [sys.executable, "-c", code, str(photos), str(tmp_path / "run"), room],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 2), done.stderr
    assert "images at a time from here on" in done.stdout or "out of memory" in done.stderr, done.stdout + done.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY  # of this process


def test_report_of_a_step_that_learns_from_part_of_its_batch(photos, tmp_path, monkeypatch):
    plant(monkeypatch, 2, "loss")
    wanted = settings()
    wanted["speed"] = {"keep_hard": 0.5, "hard_by": "proxy"}
    with pytest.raises(InputError, match="no finite number"):
        train(photos, tmp_path / "run", wanted)
    assert json.loads((tmp_path / "run" / recovery.REPORT).read_text())["num_samples"] == 8
