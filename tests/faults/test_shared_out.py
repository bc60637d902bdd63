"""Weights shared out over processes (FSDP2), each of which saves its part: killed, damaged, gone on with by others."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_photos
from killing import Party, Tally, finish, killed, undisturbed
from test_kill import SETTINGS, job_of
from victim import Job, fingerprint, steps_of

from skipway.run import Run
from skipway.training.parts import file_name
from skipway.training.vault import Vault

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("shared") / "photos", classes=("a", "b", "c"), num=40)


def shared(photos: Path, out: Path, world: int = 2) -> Job:
    """GroupNorm and no mixup, whose partners are of the same process: another number of processes computes the same."""
    job = job_of(photos, out, world=world)
    network = SETTINGS["network"] | {"norm": "group", "norm_groups": 2, "head_dropout": 0.0, "drop_path": 0.0}
    train = SETTINGS["train"] | {"ema_decay": 0.0, "precision": "fp32"}
    own = {
        "network": network,
        "train": train,
        "augment": SETTINGS["augment"] | {"mixup": 0.0},
        "speed": {"shard": True},
    }
    return replace(job, settings=job.settings | own)


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[int, set[str]], Path]:
    """An undisturbed run: its fingerprint, its steps, its folder."""
    job = shared(photos, tmp_path_factory.mktemp("whole") / "whole")
    return (*undisturbed(job), Path(job.out))


def cut(job: Job) -> Job:
    """A run that was killed in the middle of its second epoch."""
    party = Party(job)
    while party.is_alive() and not (Path(job.log).exists() and max(steps_of(Path(job.log)), default=0) > 1400):
        pass
    party.kill(random.Random(0))
    return replace(job, slow_s=0.0)


def test_killed_runs_end_with_the_same_bits(photos: Path, tmp_path: Path, whole):
    rng, tally = random.Random(3), Tally()
    for number in range(6):
        found = killed(shared(photos, tmp_path / f"killed{number}"), rng, tally)
        assert found == whole[:2], f"run {number} ended with other bits"
    print(f"\n6 runs\n{tally}")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_damaged_part_is_noticed_and_the_checkpoint_before_is_used(photos: Path, tmp_path: Path, whole, rank: int):
    job = cut(shared(photos, tmp_path / "cut"))
    newest = Vault(Path(job.out)).find().folder
    assert newest is not None
    path = newest / file_name(rank, 2)
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)
    found = Vault(Path(job.out)).find()
    assert found.folder is not None
    assert found.folder.name < newest.name
    assert file_name(rank, 2) in found.damaged[0]
    finish(job)
    assert (fingerprint(Path(job.out)), steps_of(Path(job.log))) == whole[:2]


@pytest.mark.parametrize("processes", [1, 3])
def test_another_number_of_processes_goes_on(photos: Path, tmp_path: Path, whole, processes: int):
    """And back again: three read what two wrote, two what three wrote."""
    job = cut(shared(photos, tmp_path / "cut"))
    finish(replace(job, world=processes))
    found, wanted = ([row["loss"] for row in Run.open(folder).steps()] for folder in (Path(job.out), whole[2]))
    assert len(found) == len(wanted)
    assert found == pytest.approx(wanted, rel=2e-3)
    newest = Vault(Path(job.out)).find().folder
    assert newest is not None
    assert (newest / file_name(processes - 1, processes)).is_file()
