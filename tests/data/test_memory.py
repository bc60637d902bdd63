"""The memory a process may take, read from made-up control groups of both versions."""

from pathlib import Path

import pytest

from skipway.data import memory as memory_module
from skipway.data.memory import group_name, kills, limits, memory


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make groups: groups(what /proc/self/cgroup says, file -> content)."""

    def make(said: str, files: dict[str, str]) -> None:
        (tmp_path / "self").write_text(said)
        for name, content in files.items():
            path = tmp_path / "mounted" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        monkeypatch.setattr(memory_module, "GROUPS", tmp_path / "self")
        monkeypatch.setattr(memory_module, "MOUNTED", tmp_path / "mounted")

    return make


V1 = "5:cpu,cpuacct:/job\n4:memory:/slurm/job_7/step_0\n1:name=systemd:/x\n0::/\n"
STEP = "memory/slurm/job_7/step_0"


def test_limits_of_version_one_count_those_around_it(groups):
    own, above = f"{STEP}/memory.limit_in_bytes", "memory/slurm/job_7/memory.limit_in_bytes"
    root = {"memory/memory.limit_in_bytes": "9223372036854771712\n"}
    groups(V1, {own: "9223372036854771712\n", above: "300000000\n", **root})
    assert min(limits()) == memory() == 300_000_000
    assert len(limits()) == 3


def test_limits_of_version_two(groups):
    groups("0::/user.slice/run\n", {"user.slice/run/memory.max": "max\n", "user.slice/memory.max": "70000000\n"})
    assert limits() == [70_000_000]
    assert memory() == 70_000_000


@pytest.mark.parametrize("root", ["", "unified/"])
def test_a_container_sees_its_own_group_at_the_top(groups, root):
    groups("0::/kubepods/pod1/abc\n", {f"{root}memory.max": "500000000\n"})
    assert limits() == [500_000_000]


def test_a_container_of_version_one(groups):
    groups("4:memory:/docker/abc\n", {"memory/memory.limit_in_bytes": "600000000\n"})
    assert limits() == [600_000_000]


def test_no_groups_and_damaged_ones_leave_the_machine(groups, tmp_path, monkeypatch):
    groups("nonsense\n4:memory:/a\n0::/b\n", {"memory/a/memory.limit_in_bytes": "?", "b/memory.max": ""})
    assert limits() == []
    assert memory() > 0
    monkeypatch.setattr(memory_module, "GROUPS", tmp_path / "nowhere")
    assert (limits(), kills(), group_name()) == ([], 0, "")


def test_kills_for_want_of_memory_are_counted(groups):
    groups(V1, {f"{STEP}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"})
    assert kills() == 3
    assert group_name().endswith(STEP)


def test_kills_of_version_two(groups):
    groups("0::/run\n", {"run/memory.events.local": "low 0\nmax 9\noom 2\noom_kill 2\n"})
    assert kills() == 2
