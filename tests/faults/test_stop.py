"""Stopped from outside, with several processes: all leave within ten seconds, in the middle of validation too."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import make_photos
from victim import fingerprint

from skipway.run import Run

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300)]

FLAGS = ["--stages", "1x4", "1x8/2", "--stem-width", "4", "--workers", "0", "--epochs", "2", "--batch-size", "12"]
FLAGS += ["--lr", "0.05", "--kernels", "off", "--ema-decay", "0.9"]
SLOW = """
import atexit, os, sys, time
from skipway.evaluation import task
from skipway.training import loop
averaged, seconds, mark = task.averaged, float(sys.argv.pop(1)), sys.argv.pop(1)
atexit.register(lambda: open(mark + os.environ["RANK"], "w").write(str(time.time())))
def slowly(*arguments):
    open(mark, "a").close()
    time.sleep(seconds)
    return averaged(*arguments)
task.averaged, loop.at_once = slowly, lambda *_: 1
from skipway.cli import main
main(sys.argv[1:])
"""


def launch(photos: Path, out: Path, slow_s: float) -> list[subprocess.Popen]:
    """Two processes; each takes so long for an image of validation."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-c", SLOW, str(slow_s), str(out.with_suffix(".mark"))]
        command += ["train", str(photos), "--out", str(out), *FLAGS]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, env=os.environ | own, stdout=pipe, stderr=pipe, text=True))
    return processes


def ended(processes: list[subprocess.Popen], seconds: float) -> list[int]:
    for process in processes:
        said = process.communicate(timeout=seconds)
        assert "Traceback" not in said[1], said[1]
    return [process.returncode for process in processes]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("stop") / "photos", classes=("a", "b", "c"), num=80)


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert ended(launch(photos, out, 0), 200) == [0, 0]
    return fingerprint(out)


@pytest.mark.parametrize("who", [[0], [1], [0, 1]])
def test_a_signal_in_validation_ends_all_within_ten_seconds(photos: Path, tmp_path: Path, whole: str, who: list[int]):
    out = tmp_path / "run"
    processes = launch(photos, out, 2.5)  # 12 images each: 30 s
    until = time.monotonic() + 120
    while not out.with_suffix(".mark").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(1)
    began = time.time()
    for rank in who:
        processes[rank].send_signal(signal.SIGTERM)
    codes = ended(processes, 60)
    gone = time.time() - began
    took = max(float(Path(f"{out.with_suffix('.mark')}{rank}").read_text()) for rank in range(2)) - began
    print(f"\nSIGTERM in validation to {who}: {codes}, all done after {took:.1f} s, Python gone after {gone:.1f} s")
    assert codes[0] == 75
    assert took < 10  # the interpreter then takes a second of processor time, which a busy machine may not have
    assert Run.open(out).summary["status"] == "stopped"
    assert ended(launch(photos, out, 0), 200) == [0, 0]
    assert fingerprint(out) == whole
