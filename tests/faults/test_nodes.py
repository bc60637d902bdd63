"""Two machines, as network namespaces of this one, under torchrun: whatever is lost, nobody waits for ever, and the run
that is launched again ends with the bits of one that was left in peace."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import make_photos
from victim import fingerprint

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

TIMEOUT, SLACK = 15, 15
AGENTS = 120  # seconds that torchrun itself takes to give up where it loses the rendezvous
RETRIES = (
    6  # of Linux, for what is sent and not answered (tcp_retries2): its own 15 keep torchrun's agents for 15 minutes
)
CUT_OFF = 400  # seconds that they take at most, also where one is done and waits 300 s for the other
FLAGS = ["--stages", "1x8", "1x8/2", "--stem-width", "8", "--workers", "0", "--epochs", "200", "--batch-size", "10"]
FLAGS += ["--lr", "0.05", "--kernels", "off", "--ema-decay", "0.9", "--mixup", "0.2", "--save-steps", "2"]
FLAGS += ["--timeout-s", str(TIMEOUT)]


def ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True)


class Nodes:
    """Two namespaces joined by a pair of virtual cards."""

    def __init__(self, photos: Path, out: Path):
        self.names, self.photos, self.out = (f"skipway{os.getpid()}a", f"skipway{os.getpid()}b"), photos, out
        self.cards = (f"sw{os.getpid() % 10000}a", f"sw{os.getpid() % 10000}b")
        self.agents: list[subprocess.Popen] = []

    def open(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self.cards[0], "type", "veth", "peer", "name", self.cards[1])
        for i, (name, card) in enumerate(zip(self.names, self.cards, strict=True), 1):
            ip("link", "set", card, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{i}/24", "dev", card)
            ip("-n", name, "link", "set", card, "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("netns", "exec", name, "sh", "-c", f"echo {RETRIES} > /proc/sys/net/ipv4/tcp_retries2")

    def close(self) -> None:
        self.end()
        for name in self.names:
            ip("netns", "del", name, check=False)

    def link(self, state: str) -> None:
        """Cut or mend the connection."""
        ip("-n", self.names[1], "link", "set", self.cards[1], state)

    def launch(self, *, restarts: int = 0, epochs: int = 0) -> None:
        """torchrun on both."""
        flags = [f if f != "200" else str(epochs or 200) for f in FLAGS]
        for i, name in enumerate(self.names):
            own = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": self.cards[i]}
            command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
            command += ["--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-endpoint=10.77.0.1:29500"]
            command += [f"--local-addr=10.77.0.{i + 1}", f"--max-restarts={restarts}", "--rdzv-id=x"]
            command += [f"--rdzv-conf=is_host={1 - i},join_timeout=20,last_call_timeout=1,read_timeout=5"]
            command += ["-m", "skipway", "train", str(self.photos), "--out", str(self.out), *flags]
            with (self.out.parent / f"log{i}").open("a") as log:
                agent = subprocess.Popen(command, stdout=log, stderr=log, env=own, start_new_session=True)
            self.agents.append(agent)

    def workers(self, node: int) -> list[int]:
        """Process ids of a node's workers."""
        found = subprocess.run(["pgrep", "-P", str(self.agents[node].pid)], check=False, capture_output=True, text=True)
        return [int(word) for word in found.stdout.split()]

    def wait_for_steps(self, count: int) -> None:
        """Until so many steps are on the disk."""
        until = time.monotonic() + 120
        steps = self.out / "steps.jsonl"
        while not steps.exists() or len(steps.read_text().splitlines()) < count:
            assert time.monotonic() < until, self.said()
            assert all(agent.poll() is None for agent in self.agents), self.said()
            time.sleep(0.1)

    def ended(self, seconds: float) -> list[int]:
        """Exit codes of both agents, which end within so many seconds."""
        until = time.monotonic() + seconds
        for agent in self.agents:
            try:
                agent.wait(max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                pytest.fail(f"still running after {seconds:.0f} s: {self.said()}")
        codes = [agent.returncode for agent in self.agents]
        self.agents = []
        return codes

    def end(self) -> None:
        """Kill what is left."""
        for agent in self.agents:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(agent.pid, signal.SIGKILL)
            agent.wait()
        self.agents = []

    def said(self) -> str:
        """Both logs."""
        return "\n".join((self.out.parent / f"log{i}").read_text()[-3000:] for i in range(2))


EPOCHS = 30  # so that none is done before something is lost


def is_running(pid: int) -> bool:
    """Whether a process is there and has not ended; torchrun may be too busy to bury it."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("nodes") / "photos", classes=("a", "b", "c"), num=40)


@pytest.fixture
def nodes(photos: Path, tmp_path: Path) -> Iterator[Nodes]:
    if os.getuid() != 0:
        pytest.skip("only root may make network namespaces")
    made = Nodes(photos, tmp_path / "run")
    made.open()
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fingerprint of an undisturbed run on both."""
    made = Nodes(photos, tmp_path_factory.mktemp("whole") / "run")
    made.open()
    try:
        made.launch(epochs=EPOCHS)
        assert made.ended(200) == [0, 0], made.said()
    finally:
        made.close()
    return fingerprint(made.out)


def relaunched(nodes: Nodes) -> str:
    """The fingerprint of the run once it was started again and came to its end."""
    nodes.launch(epochs=EPOCHS)
    assert nodes.ended(200) == [0, 0], nodes.said()
    return fingerprint(nodes.out)


def test_a_worker_is_killed_and_torchrun_starts_again(nodes: Nodes, whole: str):
    nodes.launch(restarts=3, epochs=EPOCHS)
    nodes.wait_for_steps(12)
    for pid in nodes.workers(1):
        os.kill(pid, signal.SIGKILL)
    assert nodes.ended(200) == [0, 0], nodes.said()
    assert fingerprint(nodes.out) == whole


@pytest.mark.parametrize("node", [0, 1])
def test_a_machine_is_lost(nodes: Nodes, whole: str, node: int):
    """Agent and workers of the one that hosts the rendezvous (0), or of the other (1)."""
    nodes.launch(epochs=EPOCHS)
    nodes.wait_for_steps(12)
    os.killpg(nodes.agents[node].pid, signal.SIGKILL)
    for pid in nodes.workers(node):
        os.kill(pid, signal.SIGKILL)
    codes = nodes.ended(TIMEOUT + SLACK + AGENTS)
    assert codes[node] == -9
    assert codes[1 - node] not in (0, None)
    assert relaunched(nodes) == whole


def test_the_link_is_down_for_ten_seconds(nodes: Nodes, whole: str):
    nodes.launch(epochs=EPOCHS)
    nodes.wait_for_steps(8)
    nodes.link("down")
    time.sleep(10)
    nodes.link("up")
    codes = nodes.ended(CUT_OFF)
    if codes != [0, 0]:
        assert relaunched(nodes) == whole
    assert fingerprint(nodes.out) == whole


def test_the_link_is_down_for_good(nodes: Nodes, whole: str):
    nodes.launch(epochs=EPOCHS)
    nodes.wait_for_steps(8)
    workers = [*nodes.workers(0), *nodes.workers(1)]
    nodes.link("down")
    began = time.monotonic()
    while any(is_running(pid) for pid in workers):  # ours; torchrun's agents have a patience of their own
        assert time.monotonic() - began < TIMEOUT + SLACK, nodes.said()
        time.sleep(0.2)
    took = time.monotonic() - began
    codes = nodes.ended(CUT_OFF)
    print(f"\nour processes ended {took:.0f} s after the link went down, torchrun's {time.monotonic() - began:.0f} s")
    assert 0 not in codes
    nodes.link("up")
    assert relaunched(nodes) == whole


def test_a_process_is_stopped(nodes: Nodes, whole: str):
    """SIGSTOP: it neither dies nor answers; the other one names it."""
    nodes.launch(epochs=EPOCHS)
    nodes.wait_for_steps(8)
    (stopped,) = nodes.workers(1)
    os.kill(stopped, signal.SIGSTOP)
    began = time.monotonic()
    while nodes.agents[0].poll() is None:
        assert time.monotonic() - began < TIMEOUT + SLACK + AGENTS, nodes.said()
        time.sleep(0.2)
    assert f"pid {stopped}" in nodes.said()
    assert "is silent" in nodes.said()
    nodes.end()
    with contextlib.suppress(ProcessLookupError):
        os.kill(stopped, signal.SIGKILL)
    assert relaunched(nodes) == whole
