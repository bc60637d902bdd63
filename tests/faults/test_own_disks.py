"""Two machines without a common disk: the run folder is on the first one's alone."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_photos
from victim import fingerprint

from skipway.run import Run

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300)]

FLAGS = ["--stages", "1x4", "1x8/2", "--stem-width", "4", "--workers", "0", "--epochs", "3", "--batch-size", "12"]
FLAGS += ["--lr", "0.05", "--kernels", "off", "--save-steps", "2", "--timeout-s", "60", "--out", "run"]


def launch(photos: Path, places: list[Path], *flags: str, code: str = "") -> list[subprocess.CompletedProcess]:
    """A process in each place, all of which name the run folder `run`; `code` runs before, in each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank, place in enumerate(places):
        place.mkdir(exist_ok=True)
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(places)), "OMP_NUM_THREADS": "1"}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        script = f"import os, sys, signal\n{code}\nfrom skipway.cli import main\nmain(sys.argv[1:])"
        command = [sys.executable, "-c", script, "train", str(photos), *FLAGS, *flags]
        pipe = subprocess.PIPE
        running.append(subprocess.Popen(command, cwd=place, env=os.environ | own, stdout=pipe, stderr=pipe, text=True))
    said = [process.communicate(timeout=200) for process in running]
    return [subprocess.CompletedProcess("", p.returncode, *s) for p, s in zip(running, said, strict=True)]


CUT = """
from skipway.training.loop import Trainer
step = Trainer._step
def cut(self, batch, epoch, number):
    if number == 9:
        os.kill(os.getpid(), signal.{})
    return step(self, batch, epoch, number)
Trainer._step = cut
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("disks") / "photos", classes=("a", "b", "c"), num=40)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_the_run_folder_is_on_the_first_machine_alone(photos: Path, tmp_path: Path, name: str):
    common = launch(photos, [tmp_path / "common", tmp_path / "common"])
    assert [done.returncode for done in common] == [0, 0], common[1].stderr
    here, there = tmp_path / "here", tmp_path / "there"
    cut = launch(photos, [here, there], code=CUT.format(name))
    assert cut[0].returncode in (75, -9), cut[0].stderr
    assert "Traceback" not in cut[1].stderr
    done = launch(photos, [here, there])
    assert [one.returncode for one in done] == [0, 0], done[1].stderr
    assert "going on after" in done[0].stdout
    assert Run.open(here / "run").finished
    assert list(there.iterdir()) == []
    assert fingerprint(here / "run") == fingerprint(tmp_path / "common" / "run")


def test_parts_of_each_process_want_a_common_disk(photos: Path, tmp_path: Path):
    done = launch(photos, [tmp_path / "here", tmp_path / "there"], "--shard")
    for one in done:
        assert one.returncode == 2
        assert "the run folder must be on a disk that all of them share" in one.stderr
        assert "Traceback" not in one.stderr
    assert list((tmp_path / "there").iterdir()) == []
