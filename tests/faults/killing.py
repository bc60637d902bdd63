"""Kill a run at chosen moments, over and over, until it comes to its end."""

import contextlib
import multiprocessing
import os
import random
import signal
import socket
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import victim
from victim import Job, Marks, fingerprint, steps_of

PATIENCE = 120  # seconds a run may take
PHASE = {"save": 0.4, "validation": 0.2, "resume": 0.18, "anywhere": 0.22}  # where kills are aimed at


@dataclass
class Tally:
    """Where kills fell."""

    kills: Counter[str] = field(default_factory=Counter)

    def note(self, phases: list[str]) -> None:
        """A kill; a save goes on beside steps and validation."""
        self.kills["all"] += 1
        for phase in phases or ["elsewhere"]:
            self.kills[phase] += 1

    def share(self, phase: str) -> float:
        """Of all kills."""
        return self.kills[phase] / max(self.kills["all"], 1)

    def __str__(self) -> str:
        rows = [f"{self.kills['all']} kills"]
        for phase in (*victim.PHASES, "elsewhere"):
            rows.append(f"  {phase:<11}{self.kills[phase]:>4} {self.share(phase):>6.1%} " + "#" * self.kills[phase])
        return "\n".join(rows)


def context() -> Any:
    """Processes that begin with everything imported and nothing run."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else lost partners are told with stack traces
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["victim"])
    return made


class Party:
    """The processes of a run.

    Args:
        job: what they do.
    """

    def __init__(self, job: Job):
        Marks(Path(job.marks)).clear()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = [context().Process(target=victim.run, args=(job, rank, port)) for rank in range(job.world)]
        for process in self.processes:
            process.start()

    def is_alive(self) -> bool:
        """Whether all are."""
        return all(process.is_alive() for process in self.processes)

    def join(self, seconds: float) -> None:
        """Wait for all."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(until - time.monotonic(), 0))

    def kill(self, rng: random.Random) -> None:
        """Kill one, or now and then all; the others end by themselves."""
        for process in self.processes if rng.random() < 0.3 else [rng.choice(self.processes)]:
            kill_group(process)
        self.join(PATIENCE)
        assert not any(process.is_alive() for process in self.processes), "a process outlived its partner"

    @property
    def exit_codes(self) -> set[int | None]:
        """Of all."""
        return {process.exitcode for process in self.processes}


def kill_group(process: multiprocessing.Process) -> None:
    """SIGKILL to a process and its workers."""
    with contextlib.suppress(ProcessLookupError):
        assert process.pid is not None
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.join()


def finish(job: Job) -> None:
    """Let a run come to its end."""
    party = Party(job)
    party.join(PATIENCE)
    assert party.exit_codes == {0}, party.exit_codes


def kill_once(job: Job, rng: random.Random) -> list[str] | None:
    """Start a run, kill it somewhere; the phases that the kill fell into, None where it came to its end before."""
    party, marks = Party(job), Marks(Path(job.marks))
    aim = rng.choices(list(PHASE), list(PHASE.values()))[0]
    begun = time.monotonic()
    if aim == "anywhere":
        party.join(rng.uniform(0.05, 2.5))
    else:
        for _ in range(rng.choice((1, 1, 2, 3)) if aim != "resume" else 1):
            while party.is_alive() and not marks[aim] and time.monotonic() - begun < PATIENCE:
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.03))
    if not party.is_alive():
        party.join(PATIENCE)
        assert party.exit_codes == {0}, party.exit_codes
        return None
    phases = marks.now()
    party.kill(rng)
    return phases


def undisturbed(job: Job) -> tuple[str, dict[int, set[str]]]:
    """The fingerprint of a run that nobody kills, and what its steps were."""
    finish(job)
    steps = steps_of(Path(job.log))
    assert all(len(noted) == 1 for noted in steps.values())
    return fingerprint(Path(job.out)), steps


def killed(job: Job, rng: random.Random, tally: Tally) -> tuple[str, dict[int, set[str]]]:
    """The same of one that is killed 1 to 4 times."""
    for _ in range(rng.randint(1, 4)):
        phases = kill_once(job, rng)
        if phases is None:
            break
        tally.note(phases)
    finish(replace(job, slow_s=0.0))
    return fingerprint(Path(job.out)), steps_of(Path(job.log))
