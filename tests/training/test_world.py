"""Several processes train what one does: the same samples, the same losses within rounding, exact evaluation."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from conftest import make_photos, newest
from torch import Tensor, nn

from skipway.data.loader import Batch
from skipway.errors import InputError
from skipway.run import Run
from skipway.training.feeding import in_step
from skipway.training.hard import UNSEEN
from skipway.training.world import ALONE, World, is_lost

FLAGS = ["--stages", "1x8", "1x8/2", "--stem-width", "8", "--workers", "0", "--epochs", "2", "--batch-size", "10"]
FLAGS += ["--lr", "0.05", "--precision", "fp32", "--mixup", "0", "--kernels", "off"]


def together(processes: int, *arguments: Any, timeout: float = 200, **environment: str) -> subprocess.CompletedProcess:
    """`torchrun -m skipway`, with one thread each."""
    run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "skipway"]
    own = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, *(run if processes > 1 else ["-m", "skipway"]), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=own, check=False)


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in Run.open(run).steps()]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("world") / "photos", classes=("a", "b", "c"), num=17)


GROUPS = ["--norm", "group", "--norm-groups", "4"]


@pytest.mark.parametrize(
    "norm",
    [
        pytest.param(GROUPS, marks=pytest.mark.slow),
        ["--sync-norm"],
        pytest.param([*GROUPS, "--shard", "--micro-batch", "3"], marks=pytest.mark.slow),
    ],
)
def test_two_processes_learn_what_one_does(photos, tmp_path, norm):
    """Batches of 10 over 2, 46 training images: a sum of two means in place of one mean, rounded elsewhere."""
    for processes in (1, 2):
        done = together(processes, "train", photos, "--out", tmp_path / str(processes), *FLAGS, *norm)
        assert done.returncode == 0, done.stderr[-2000:]
    alone, both = Run.open(tmp_path / "1"), Run.open(tmp_path / "2")
    assert (alone.summary["processes"], both.summary["processes"]) == (1, 2)
    assert len(alone.steps()) == len(both.steps()) == 8
    assert losses(both.folder) == pytest.approx(losses(alone.folder), rel=2e-4)
    for a, b in zip(alone.metrics(), both.metrics(), strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=2e-4)
        assert b["val_loss"] == pytest.approx(a["val_loss"], rel=1e-3)
        assert b["train_accuracy"] == pytest.approx(a["train_accuracy"], abs=0.051)
    one, two = newest(alone.folder), newest(both.folder)
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.allclose(value.double(), two[key].double(), rtol=0.01, atol=2e-4), key


def test_what_two_processes_say_is_said_once(photos, tmp_path):
    hard = ["--keep-hard", "0.4", "--hard-by", "last"]
    done = together(2, "train", photos, "--out", tmp_path / "run", *FLAGS, *hard)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("best epoch") == 1
    known = newest(tmp_path / "run")["last_losses"] < UNSEEN
    assert known.sum() > 2 * 4 * 2  # one process learnt from so many at most: 2 of 5, in 4 batches, in 2 epochs
    assert (tmp_path / "run" / "summary.json").is_file()
    evaluated = together(1, "evaluate", tmp_path / "run", "--split", "val", "--json")
    found = json.loads(evaluated.stdout)
    best = max(Run.open(tmp_path / "run").metrics(), key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert found["accuracy"] == best["val_accuracy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", *FLAGS], "unknown data set 'nowhere'"),
        (["PHOTOS", *(f if f != "10" else "2" for f in FLAGS)], "train.batch_size 2 is too small for 2 processes"),
    ],
)
def test_bad_input_ends_all_and_each_says_who_it_is(photos, tmp_path, arguments, message):
    arguments = [photos if a == "PHOTOS" else a for a in arguments]
    done = together(2, "train", *arguments, "--out", tmp_path / "run")
    assert done.returncode != 0
    assert f"skipway: {message}" in done.stderr
    assert "skipway, process 1: " in done.stderr
    assert not (tmp_path / "run").exists()


def test_parts_are_all_and_their_sizes_differ_by_one():
    items = torch.arange(11)
    parts = [World(rank, 4).part(items) for rank in range(4)]
    assert torch.cat(parts).tolist() == items.tolist()
    assert sorted(map(len, parts)) == [2, 3, 3, 3]


def test_alone_nothing_is_asked_of_anyone():
    assert ALONE.agreed(3) == 3
    assert ALONE.total(torch.tensor([1.5, 2])).tolist() == [1.5, 2.0]
    assert ALONE.first_does(lambda: "x") == "x"
    network = nn.Linear(2, 2)
    assert ALONE.wrapped(network, all_used=True) is network
    assert ALONE.part_of_evaluation(torch.arange(3))[0].tolist() == [0, 1, 2]


def batch(number: int, images: int = 3) -> Batch:
    return Batch(torch.zeros(images, 3, 2, 2), torch.zeros(images), torch.arange(images), number)


def numbers(batches: list[Batch], count: int, *, together: bool) -> list[tuple[int, int | None]]:
    return [(i, None if b is None else b.number) for i, b in in_step(iter(batches), count, least=2, together=together)]


def test_in_step_has_something_for_each_number():
    some = [batch(1), batch(2, images=1), batch(4)]
    assert numbers(some, 6, together=False) == [(0, None), (1, 1), (2, None), (3, None), (4, 4), (5, None)]
    assert numbers(some, 6, together=True) == [(0, 1), (1, 1), (2, 2), (3, 4), (4, 4), (5, 4)]
    assert numbers([], 2, together=False) == [(0, None), (1, None)]
    with pytest.raises(InputError, match="none of the training images of this process"):
        numbers([], 2, together=True)
    assert [b and b.number for _, b in in_step([batch(0, images=1)], 1, least=1, together=False)] == [0]


def test_lost_processes_are_told_from_other_errors():
    assert is_lost(RuntimeError("[../third_party/gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:3"))
    assert is_lost(RuntimeError("[..gloo/unbound_buffer.cc:81] Timed out waiting 5000ms for recv operation"))
    assert not is_lost(RuntimeError("shape '[2]' is invalid"))


def _compare(rank: int, size: int, port: int, folder: str) -> None:
    """In each process: SyncNorm over a part of the images, beside nn.BatchNorm2d over all."""
    import torch.distributed as dist

    from skipway.nn.sync_norm import synchronised

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=size)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(7, 4, 3, 5, generator=generator, dtype=torch.float32) * 3 + 2
    dy = torch.randn(7, 4, 3, 5, generator=generator)
    whole, part = nn.BatchNorm2d(4, momentum=0.3), nn.Sequential(nn.BatchNorm2d(4, momentum=0.3))
    with torch.no_grad():
        whole.weight.copy_(torch.rand(4, generator=generator) + 0.5)
    part[0].load_state_dict(whole.state_dict())
    part = synchronised(part, torch.device("cpu"))
    inner = part.get_submodule("0")

    def passed(norm: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        y = norm(x)
        y.backward(dy)
        assert x.grad is not None
        return y.detach(), x.grad

    world = World(rank, size)
    mine = world.part(torch.arange(7))
    wanted, found = passed(whole, x, dy), passed(part, x[mine], dy[mine])
    for a, b in zip(wanted, found, strict=True):
        assert (a[mine] - b).abs().max() < 1e-5
    for key, value in whole.state_dict().items():
        assert torch.allclose(value.double(), inner.state_dict()[key].double(), atol=1e-6), key
    for name in ("weight", "bias"):
        grad = inner.get_parameter(name).grad
        assert grad is not None
        own = grad.clone()
        dist.all_reduce(own)
        assert torch.allclose(own, getattr(whole, name).grad, atol=1e-4)
    part.eval(), whole.eval()
    assert torch.equal(part(x), whole(x)) or torch.allclose(part(x), whole(x), atol=1e-6)
    Path(folder, f"done{rank}").touch()
    dist.destroy_process_group()


def test_sync_norm_is_batch_norm_over_all_images(tmp_path):
    mp.spawn(_compare, args=(3, 29631, str(tmp_path)), nprocs=3)  # pyrefly: ignore[missing-attribute]
    assert len(list(tmp_path.glob("done*"))) == 3
