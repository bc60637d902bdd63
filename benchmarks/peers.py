"""Training with skipway beside its peers: images a second and peak memory, each contender in a process of its own.

    python benchmarks/peers.py [--workload resnet18-32|resnet50-224] [--rounds 5] [--seconds 60] [--only NAME ...]
        [--device cpu|cuda] [--warm] [--write]

resnet18-32: the 3x3 stem without a pool, batches of 256, 2,048 random images of 32 pixels in memory (.npz).
resnet50-224: batches of 32 at 224 pixels, 512 random JPEG files of 313 by 268 pixels in class folders.

Peers: plain PyTorch loops over timm's and torchvision's network, Lightning's Trainer, fastai's Learner, each with its
defaults and again hand-tuned (contenders.py says how). skipway comes as `skipway.train` does. The order turns round
with each round; before a round the machine must be idle, else it is waited for, then warned about. Warm-up is left out
of the speed: start-up is from the start of the process, with imports, reading and compilation, to the first step that
counts; skipway's holds its whole first epoch, validation and checkpoint too, since its records begin there. Its speed
is that of the steps of all later epochs; no peer validates or saves, and what it takes for that is left out. Caches are
empty, but with --warm, which keeps what a contender compiled for its later rounds. Memory is the process's peak
resident set and what its children hold for themselves.
--write puts the table into results.md in place of its section there.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, Outcome
from peers_data import Job, write_images
from results_page import put_section, spread

from skipway.device import choose_device
from skipway.training.machine import device_name

HERE = Path(__file__).parent
NEEDS = ("timm", "lightning", "fastai")
ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=2147483647:glibc.malloc.top_pad=67108864"
}
CLEAN = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "TORCHINDUCTOR_")  # of the caller's environment
IDLE, PATIENCE, LIMIT = 0.1, 120, 3600  # share of the processors; seconds; seconds a contender
VALIDATION = 256  # images: what skipway validates at once counts in its memory
Rounds = list[dict[str, Outcome]]


@dataclass(frozen=True)
class Workload:
    """network, pixels a side, images a step, how many training images."""

    network: str
    size: int
    batch: int
    images: int


WORKLOADS = {
    "resnet18-32": Workload("resnet18", 32, 256, 2048),
    "resnet50-224": Workload("resnet50", 224, 32, 512),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="resnet18-32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, help="another batch size than the workload's")
    parser.add_argument("--images", type=int, help="another number of training images")
    parser.add_argument("--warm", action="store_true", help="keep compiled code between rounds")
    parser.add_argument("--write", action="store_true", help="into results.md")
    options = parser.parse_args()
    workload = WORKLOADS[options.workload]
    names = [name for name in options.only if present(name)]
    batch, images = options.batch or workload.batch, options.images or workload.images
    with tempfile.TemporaryDirectory() as scratch:
        data = write_images(Path(scratch), workload.size, images, VALIDATION)
        job = Job(workload.network, workload.size, batch, data, options.seconds, options.device, 0.0)
        rounds, busy = run_rounds(names, job, options.rounds, Path(scratch) if options.warm else None)
    text = report(f"python benchmarks/peers.py {' '.join(sys.argv[1:])}", job, rounds, busy)
    print(f"\n{text}")
    if options.write:
        where = device_name(choose_device(options.device))
        put_section(f"## Training beside its peers: {options.workload}, {where}", text)


def present(name: str) -> bool:
    """Whether a contender's library is installed; says how to get it where not."""
    library = name.removesuffix("-tuned")
    if library not in NEEDS or importlib.util.find_spec(library):
        return True
    print(f"{name}: {library} is not installed: pip install 'skipway[bench]'")
    return False


def run_rounds(names: Sequence[str], job: Job, number: int, caches: Path | None) -> tuple[Rounds, list[float]]:
    """What each contender did in each round, and how busy the machine was before it. One that fails drops out."""
    rounds: Rounds = []
    busy = []
    names = list(names)
    for i in range(number):
        busy.append(wait_until_idle())
        rounds.append({})
        for name in names[:: 1 if i % 2 == 0 else -1]:
            outcome = run(name, job, caches)
            if outcome is None:
                names.remove(name)
                continue
            rounds[-1][name] = outcome
            print(
                f"round {i + 1}  {name:18} {outcome.images_per_s:9,.1f} images/s ({outcome.images:,} images, "
                f"{outcome.threads} threads)   start-up {outcome.start_up_s:5.1f} s   "
                f"{outcome.peak_bytes / 2**20:6,.0f} MiB   {outcome.engine}",
                flush=True,
            )
    return [{name: row[name] for name in CONTENDERS if name in names} for row in rounds], busy


def run(name: str, job: Job, caches: Path | None) -> Outcome | None:
    """One contender in a process of its own; None, and its last line, where it fails."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(CLEAN)}
        compiled = caches / name if caches else scratch
        environment |= {"TORCHINDUCTOR_CACHE_DIR": f"{compiled}/compiled", "SKIPWAY_CACHE": f"{scratch}/cache"}
        if name.endswith("-tuned"):
            environment |= ALLOCATOR
        told = asdict(job) | {"born": time.time()}
        arguments = [f"--{key}={value}" for key, value in told.items()]
        command = [sys.executable, str(HERE / "contenders.py"), name, *arguments]
        try:
            done = subprocess.run(
                command, env=environment, cwd=scratch, capture_output=True, text=True, timeout=LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            print(f"{name} failed: not done after {LIMIT} s")
            return None
    try:
        return Outcome(**json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        print(f"{name} failed: {(done.stderr.strip() or done.stdout.strip() or 'no output').splitlines()[-1]}")
        return None


def wait_until_idle() -> float:
    """The share of the processors that other programs take, at last; a warning where they do not become idle."""
    until = time.monotonic() + PATIENCE
    while (share := busy_share()) > IDLE and time.monotonic() < until:
        time.sleep(3)
    load = os.getloadavg()[0]
    if share > IDLE:
        print(f"warning: other programs take {share:.0%} of the processors (load {load:.1f}): these figures are rough")
    return share


def busy_share(seconds: float = 2.0) -> float:
    """Of all processors together, by Linux's own count."""

    def ticks() -> tuple[int, int]:
        numbers = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(numbers), numbers[3] + numbers[4]  # idle, and waiting for a disk

    before = ticks()
    time.sleep(seconds)
    after = ticks()
    return 1 - (after[1] - before[1]) / max(after[0] - before[0], 1)


def report(command: str, job: Job, rounds: Rounds, busy: Sequence[float]) -> str:
    """The section of results.md: how, a table, the ratios."""
    columns = {name: [row[name] for row in rounds] for name in rounds[0]}
    threads = {outcome.threads for outcomes in columns.values() for outcome in outcomes}
    lines = [
        f"`{command}` ({datetime.date.today()}; {device_name(choose_device(job.device))}, {os.cpu_count()} cores, "
        f"{'/'.join(map(str, sorted(threads)))} threads; {versions()}; batches of {job.batch} at {job.size} pixels; "
        f"n = {len(rounds)} rounds of {job.seconds:g} s each that alternate; other programs took "
        f"{spread([100 * share for share in busy])}% of the processors before a round; medians, in brackets the "
        "extremes)",
        "",
        *table(columns, cuda=job.device == "cuda"),
        "",
        *ratios(columns, cuda=job.device == "cuda"),
    ]
    return "\n".join(lines)


def table(columns: Mapping[str, Sequence[Outcome]], *, cuda: bool) -> list[str]:
    """One row a contender."""
    ours = columns.get("skipway")
    lines = ["| | images/s | skipway / it | start-up, s | peak memory, MiB |" + (" on the GPU, MiB |" if cuda else "")]
    lines.append("|---|---|---|---|---|" + ("---|" if cuda else ""))
    for name, outcomes in columns.items():
        ratio = spread(paired(ours, outcomes, "images_per_s"), 2) if ours and name != "skipway" else ""
        cells = [
            name.replace("-", ", "),
            spread([o.images_per_s for o in outcomes], 1),
            ratio,
            spread([o.start_up_s for o in outcomes]),
            spread([o.peak_bytes / 2**20 for o in outcomes]),
            *([spread([o.device_bytes / 2**20 for o in outcomes])] if cuda else []),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def ratios(columns: Mapping[str, Sequence[Outcome]], *, cuda: bool) -> list[str]:
    """skipway against the best of its peers with defaults, and hand-tuned."""
    sizes = {outcome.parameters for outcomes in columns.values() for outcome in outcomes}
    lines = [] if len(sizes) == 1 else [f"The networks are not alike: {sorted(sizes)} parameters.\n"]
    if "skipway" not in columns:
        return lines
    ours = columns["skipway"]
    lines.append(f"skipway: {ours[-1].engine}. Ratios are medians of the rounds' own ratios.\n")
    for kind in ("default", "hand-tuned"):
        rivals = [n for n in columns if n != "skipway" and n.endswith("-tuned") == (kind == "hand-tuned")]
        if not rivals:
            continue
        best = max(rivals, key=lambda n: statistics.median(o.images_per_s for o in columns[n]))
        speed = spread(paired(ours, columns[best], "images_per_s"), 2)
        memory = "device_bytes" if cuda else "peak_bytes"
        share = spread(paired(ours, columns[best], memory), 2)
        lines.append(f"- skipway / best {kind} peer ({best}): speed {speed}, peak memory {share}")
    return lines


def paired(ours: Sequence[Outcome], theirs: Sequence[Outcome], field: str) -> list[float]:
    return [getattr(a, field) / getattr(b, field) for a, b in zip(ours, theirs, strict=True)]


def versions() -> str:
    found: list[Any] = [f"Python {platform.python_version()}"]
    for name in ("torch", "torchvision", *NEEDS):
        if importlib.util.find_spec(name):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(found)


if __name__ == "__main__":
    main()
