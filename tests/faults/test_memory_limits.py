"""Memory that a control group limits: the kernel kills without a word, and the same command goes on all the same."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import make_photos

from skipway.run import Run

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

MOUNTED = Path("/sys/fs/cgroup")
FLAGS = ["--stages", "1x4", "--stem-width", "4", "--stem", "cifar", "--image-size", "512", "--batch-size", "32"]
FLAGS += ["--epochs", "2", "--workers", "0", "--kernels", "off", "--precision", "fp32", "--threads", "1"]


@pytest.fixture
def limited() -> Iterator[Callable[[int], Path]]:
    """Makes a control group of so many bytes; gone after the test."""
    one = (MOUNTED / "memory").is_dir()
    group = (MOUNTED / "memory" if one else MOUNTED) / f"skipway{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")

    def limit(size: int) -> Path:
        try:
            (group / ("memory.limit_in_bytes" if one else "memory.max")).write_text(str(size))
        except OSError as error:
            pytest.skip(f"no limit can be set here: {error}")
        return group

    yield limit
    group.rmdir()


def train(group: Path, photos: Path, out: Path, *flags: str) -> subprocess.CompletedProcess:
    """The command within a group."""

    def enter() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    command = [sys.executable, "-m", "skipway", "train", str(photos), "--out", str(out), *FLAGS, *flags]
    return subprocess.run(command, preexec_fn=enter, capture_output=True, text=True, timeout=300, check=False)


LIMIT = 1300 << 20


def micro_of(out: Path) -> int:
    return json.loads((out / "engine.json").read_text())["micro_batch"]


def test_a_new_run_takes_as_many_images_at_a_time_as_its_group_allows(tmp_path: Path, limited):
    done = train(limited(LIMIT), make_photos(tmp_path / "photos"), tmp_path / "run")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "images at a time, which fit the memory" in done.stdout
    assert 0 < micro_of(tmp_path / "run") < 32
    print(f"\n{micro_of(tmp_path / 'run')} images at a time within {LIMIT >> 20} MiB")


def test_a_run_that_the_kernel_kills_goes_on_in_smaller_pieces(tmp_path: Path, limited):
    """All of the batch at a time, as was asked for, is more than there is."""
    photos, run = make_photos(tmp_path / "photos"), tmp_path / "run"
    group, pieces = limited(LIMIT), []
    for _ in range(6):
        done = train(group, photos, run, "--micro-batch", "32")
        pieces.append((micro_of(run) or 32, done.returncode))
        assert "Traceback" not in done.stderr
        if done.returncode != -signal.SIGKILL:
            break
    print(f"\nimages at a time, exit code: {pieces}")
    assert pieces[0] == (32, -signal.SIGKILL)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert pieces[-1][0] < 32
    assert len(Run.open(run).steps()) == 2
    assert "the system killed the process before this one for want of memory" in done.stdout
