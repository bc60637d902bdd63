"""A run that is killed anywhere, as often as one likes, ends with the bits of one that was left in peace."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_photos
from killing import Party, Tally, finish, kill_once, killed, undisturbed
from victim import Job, Marks, fingerprint

pytestmark = pytest.mark.faults

SETTINGS: dict[str, dict[str, Any]] = {
    "network": {"stages": ["1x4", "1x8/2"], "stem_width": 4, "head_dropout": 0.2, "drop_path": 0.2},
    "data": {"cache": "off"},
    "augment": {"mixup": 0.2, "flip": True, "pad_crop": 0.1},
    "train": {"epochs": 3, "batch_size": 12, "lr": 0.05, "ema_decay": 0.9, "optimizer": "adamw"},
    "safety": {"save_steps": 3, "timeout_s": 20},
}
WAYS = [
    {"workers": workers, "micro_batch": micro_batch, "streamed": streamed}
    for streamed in (False, True)
    for workers in (0, 2)
    for micro_batch in (0, 6)
] + [{"world": 2, "workers": workers, "micro_batch": micro} for workers, micro in ((0, 0), (2, 3))]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("killed") / "photos", classes=("a", "b", "c"), num=40)


def job_of(
    photos: Path, out: Path, *, workers: int = 0, micro_batch: int = 0, streamed: bool = False, world: int = 1
) -> Job:
    out.mkdir(parents=True)
    settings = {**SETTINGS, "data": SETTINGS["data"] | {"workers": workers}, "speed": {"micro_batch": micro_batch}}
    where = (str(out / "run"), settings, str(out / "marks"), str(out / "log"))
    return Job(str(photos), *where, slow_s=0.004, streamed=streamed, world=world)


def check(photos: Path, folder: Path, ways: list[dict[str, Any]], runs: int, seed: int) -> Tally:
    """Kill runs of each configuration in turn, and hold each against its own undisturbed one."""
    rng, tally = random.Random(seed), Tally()
    whole = [undisturbed(job_of(photos, folder / f"whole{i}", **way)) for i, way in enumerate(ways)]
    for number in range(runs):
        way = number % len(ways)
        found, steps = killed(job_of(photos, folder / f"killed{number}", **ways[way]), rng, tally)
        assert (found, steps) == whole[way], f"run {number} of {ways[way]} ended with other bits"
    print(f"\n{runs} runs, seed {seed}\n{tally}")
    return tally


def test_killed_runs_end_with_the_same_bits(photos: Path, tmp_path: Path):
    tally = check(photos, tmp_path, [WAYS[7]], runs=3, seed=1)
    assert tally.kills["all"] >= 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_seventy_killed_runs_end_with_the_same_bits(photos: Path, tmp_path: Path):
    tally = check(photos, tmp_path, WAYS, runs=70, seed=2)
    assert tally.share("save") >= 0.3
    assert tally.share("validation") >= 0.1
    assert tally.share("resume") >= 0.1


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fingerprint of a run that nobody kills."""
    return undisturbed(job_of(photos, tmp_path_factory.mktemp("whole") / "whole"))[0]


@pytest.mark.parametrize("part", ["", "sampler position", "batch norm", "averaged weights", "schedule", "optimizer"])
def test_a_part_that_is_left_out_is_noticed(photos: Path, tmp_path: Path, whole: str, part: str):
    """The control: each part of the state counts, and the check sees it missing."""
    job = job_of(photos, tmp_path / "cut")
    party, marks, log = Party(job), Marks(Path(job.marks)), Path(job.log)
    while party.is_alive() and not (log.exists() and len(log.read_text().splitlines()) >= 14):
        pass
    while party.is_alive() and marks["save"]:
        pass
    party.kill(random.Random(0))
    finish(replace(job, forget=part, slow_s=0.0))
    assert (fingerprint(Path(job.out)) == whole) is (part == "")


def test_a_kill_is_one(photos: Path, tmp_path: Path):
    """The killer kills: a run that was killed is not finished, and what it was doing is known."""
    job = job_of(photos, tmp_path / "one")
    phases = kill_once(job, random.Random(5))
    assert phases is not None
    assert not (Path(job.out) / "mistakes.png").exists()
