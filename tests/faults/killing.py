"""Kill a run at chosen moments, over and over, until it comes to its end."""

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import victim
from victim import Job, Marks, fingerprint, steps_of

PATIENCE = 120  # seconds a run may take
PHASE = {"save": 0.42, "validation": 0.16, "resume": 0.16, "anywhere": 0.26}  # where kills are aimed at


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
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["victim"])
    return made


def start(job: Job) -> multiprocessing.Process:
    """A run in a process of its own."""
    Marks(Path(job.marks)).clear()
    process = context().Process(target=victim.run, args=(job,))
    process.start()
    return process


def finish(job: Job) -> None:
    """Let a run come to its end."""
    process = start(job)
    process.join(PATIENCE)
    assert process.exitcode == 0, process.exitcode


def kill_once(job: Job, rng: random.Random) -> list[str] | None:
    """Start a run, kill it somewhere; the phases that the kill fell into, None where it came to its end before."""
    process, marks = start(job), Marks(Path(job.marks))
    aim = rng.choices(list(PHASE), list(PHASE.values()))[0]
    begun = time.monotonic()
    if aim == "anywhere":
        process.join(rng.uniform(0.05, 2.5))
    else:
        for _ in range(rng.choice((1, 1, 2, 3)) if aim != "resume" else 1):
            while process.is_alive() and not marks[aim] and time.monotonic() - begun < PATIENCE:
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.03))
    if not process.is_alive():
        process.join()
        assert process.exitcode == 0, process.exitcode
        return None
    assert process.pid is not None
    os.killpg(os.getpgid(process.pid), signal.SIGKILL) if os.getpgid(process.pid) == process.pid else process.kill()
    process.join()
    return marks.now()


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
