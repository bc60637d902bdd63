"""Saves that are cut off, files that are damaged, disks that are full: always a whole checkpoint is left."""

import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import make_photos
from killing import context
from saving import save, save_for_ever
from test_numbers import settings, train

from skipway.cli import main
from skipway.nn.weight_files import read_safetensors
from skipway.training.vault import MANIFEST, Vault

pytestmark = pytest.mark.faults
HERE = Path(__file__).parent


def number_of(folder: Path) -> int:
    """Which checkpoint one is, by every tensor in it."""
    tensors = read_safetensors(folder / "state.safetensors")[0]
    (number,) = {value for tensor in tensors.values() for value in tensor.flatten().tolist()}
    assert int((folder / "position.json").read_text()) == number == int(folder.name[-5:])
    return int(number)


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_killed_while_saving(tmp_path: Path, kills: int):
    """After each kill there is a whole checkpoint, the last one that was done or the one under way."""
    rng, left, run = random.Random(kills), Counter[str](), tmp_path / "run"
    run.mkdir()
    next_one = 0
    while left["kills"] < kills:
        process = context().Process(target=save_for_ever, args=(str(run), rng.uniform(0, 0.004), next_one))
        process.start()
        until = time.monotonic() + 30
        while not (run / "checkpoints").is_dir() or not any(Path(run, "checkpoints").glob(".*.tmp")):
            assert time.monotonic() < until
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        torn = [path.name for path in (run / "checkpoints").glob(".*.tmp")]
        left["kills"] += 1
        left["inside a save"] += bool(torn)
        done = int((run / "done").read_text()) if (run / "done").exists() else -1
        found = Vault(run).find()
        if found.folder is None:
            assert done == -1
            continue
        number = number_of(found.folder)
        assert number in (done, done + 1)
        left["one further than told"] += number > done
        assert found.damaged == ()
        next_one = number + 1
    print(f"\n{dict(left)}")
    assert left["inside a save"] >= 0.3 * kills


@pytest.mark.parametrize("file", ["state.safetensors", "position.json", MANIFEST])
def test_every_cut_and_flipped_bit_is_noticed(tmp_path: Path, file: str):
    """Truncations and single flipped bits, at random, in each file of the newest checkpoint."""
    rng = random.Random(file)
    for number in (1, 2):
        save(tmp_path, number)
    newest = tmp_path / "checkpoints" / "epoch-00002"
    whole = (newest / file).read_bytes()
    for _ in range(60):
        bad = bytearray(whole)
        if rng.random() < 0.5:
            del bad[rng.randrange(len(whole)) :]
        else:
            bad[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (newest / file).write_bytes(bad)
        found = Vault(tmp_path).find()
        assert found.folder is not None
        assert found.folder.name == "epoch-00001", bytes(bad[:200])
        assert str(newest) in found.damaged[0]
    (newest / file).write_bytes(whole)
    assert Vault(tmp_path).find().folder == newest


def test_a_run_goes_on_from_the_one_before_and_says_so(tmp_path, monkeypatch):
    photos = make_photos(tmp_path / "photos")
    whole, _ = train(photos, tmp_path / "whole", settings())
    cut = Path(shutil.copytree(whole.folder, tmp_path / "cut"))
    (cut / "summary.json").write_text('{"status": "running"}')
    newest = cut / "checkpoints" / "epoch-00003-batch-0000000"
    (newest / "state.safetensors").write_bytes((newest / "state.safetensors").read_bytes()[:-1])
    run, said = train(photos, cut, settings())
    assert f"passed over a damaged checkpoint: {newest}: state.safetensors has" in said
    assert "going on after 2 whole epochs" in said
    assert run.finished
    assert run.steps() == whole.steps()
    (cut / "summary.json").write_text('{"status": "running"}')
    before = {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()}
    for path in cut.glob("checkpoints/*/state.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(
        Exception, match=r"no checkpoint in .* is whole: .*epoch-00003.*epoch-00002.*choose another --out"
    ):
        train(photos, cut, settings())
    now = {path: path.read_bytes() for path in cut.rglob("*") if path.is_file() and path.name != "state.safetensors"}
    assert now == {path: content for path, content in before.items() if path.name != "state.safetensors"}


def test_order_of_system_calls(tmp_path: Path):
    """What the kernel is asked for, by strace: data before names, names before the pointer, the pointer before rm."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    for number in (1, 2):
        save(tmp_path, number)
    log = tmp_path / "calls"
    traced = "trace=fsync,rename,renameat,renameat2,unlink,unlinkat,rmdir"
    command = [strace, "-f", "-y", "-e", traced, "-o", str(log), sys.executable, str(HERE / "saving.py")]
    subprocess.run([*command, str(tmp_path), "3"], check=True, capture_output=True, timeout=120)
    said = []
    for line in log.read_text().splitlines():
        if match := re.search(r"fsync\(\d+<([^>]+)>\)", line):
            said.append(f"sync {Path(match[1]).name}")
        elif match := re.search(r'rename\w*\(.*"([^"]+)"[^"]*"([^"]+)"', line):
            said.append(f"name {Path(match[2]).name}")
        elif match := re.search(r'(?:unlink|rmdir|unlinkat)\(.*"([^"]+)"', line):
            said.append(f"gone {Path(match[1]).name}")
    first = said.index("sync state.safetensors")
    assert said[first:][:9] == [
        *("sync state.safetensors", "sync position.json", "sync manifest.json", "sync .epoch-00003.tmp"),
        *("name epoch-00003", "sync checkpoints", "sync .newest.tmp", "name newest", "sync checkpoints"),
    ]
    assert "gone epoch-00001" in said[first + 9 :]
    assert not any(row.startswith("gone epoch") for row in said[: first + 9])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator:
    """Mounts a file system in memory with these options; gone after the test."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=False, capture_output=True
        )
        if done.returncode:
            pytest.skip("only root may mount a file system")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


def left_over(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.name.endswith(".tmp")]


def test_disk_of_one_checkpoint_and_a_half(tmp_path, small_disk, monkeypatch):
    """A later save finds no room: the run stops loudly, the old checkpoint is whole, and with room it goes on."""
    monkeypatch.setattr("skipway.training.place.ROOM", 0)
    photos = make_photos(tmp_path / "photos")
    wide = settings(epochs=3)
    wide["network"] = {"stages": ["1x16", "1x32/2"], "stem_width": 16}
    whole, _ = train(photos, tmp_path / "whole", wide)
    size = sum(p.stat().st_size for p in (whole.folder / "checkpoints" / "epoch-00003-batch-0000000").iterdir())
    others = sum(p.stat().st_size for p in whole.folder.rglob("*") if p.is_file() and "checkpoints" not in p.parts)
    disk = small_disk(f"size={int(1.5 * size) + others}")
    with pytest.raises(OSError, match="No space left|No space"):
        train(photos, disk / "run", wide)
    assert left_over(disk) == []
    found = Vault(disk / "run").find()
    assert found.folder is not None
    assert found.damaged == ()
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    run, _ = train(photos, disk / "run", wide)
    assert run.steps() == whole.steps()


def test_disk_without_inodes_and_read_only_disk(tmp_path, small_disk, monkeypatch):
    monkeypatch.setattr("skipway.training.place.ROOM", 0)
    photos = make_photos(tmp_path / "photos")
    whole, _ = train(photos, tmp_path / "whole", settings())
    files = sum(1 for _ in whole.folder.rglob("*"))
    disk = small_disk(f"size=64m,nr_inodes={files - 4}")
    with pytest.raises(OSError, match="No space left"):
        train(photos, disk / "run", settings())
    assert left_over(disk) == []
    subprocess.run(["mount", "-o", "remount,nr_inodes=1000", str(disk)], check=True)
    run, _ = train(photos, disk / "run", settings())
    assert run.steps() == whole.steps()
    shutil.copytree(run.folder, disk / "again")
    (disk / "again" / "summary.json").write_text('{"status": "running"}')
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(Exception, match=r"[Rr]ead-only|no permission"):
        train(photos, disk / "again", settings(epochs=3))
    assert Vault(disk / "again").find().folder is not None


def test_folder_that_vanishes(tmp_path, monkeypatch):
    photos = make_photos(tmp_path / "photos")
    from skipway.training.loop import Trainer

    step = Trainer._step

    def vanish(self, batch, epoch, number):
        if number == 5:
            shutil.rmtree(tmp_path / "run")
        return step(self, batch, epoch, number)

    monkeypatch.setattr(Trainer, "_step", vanish)
    with pytest.raises(OSError, match="No such file or directory"):
        train(photos, tmp_path / "run", settings())
    assert not (tmp_path / "run" / "spec.toml").exists()


def _as_nobody(photos: str, out: str) -> None:
    os.setuid(65534)
    os.environ["SKIPWAY_CACHE"] = "/nonexistent"
    torch.set_num_threads(1)
    flags = ["--stages", "1x4", "1x8/2", "--stem-width", "4", "--workers", "0", "--epochs", "2", "--batch-size", "8"]
    main(["train", photos, "--out", out, *flags, "--kernels", "off"])


def test_folder_without_permission(tmp_path, capfd):
    """As a user who is not root."""
    if os.getuid() != 0:
        pytest.skip("only root may become another user")
    photos = make_photos(tmp_path / "photos")
    for path in (tmp_path, *tmp_path.parents):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(0o755)
    out = tmp_path / "owned"
    out.mkdir(mode=0o755)
    process = context().Process(target=_as_nobody, args=(str(photos), str(out / "run")))
    process.start()
    process.join(120)
    assert process.exitcode == 2
    assert list(out.iterdir()) == []
