"""Files that nobody should have: a public collection, and what a folder may hold beside images."""

import hashlib
import os
import resource
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY_FLAGS, save_image

from skipway.data.loader import Loader
from skipway.data.pool import MEMORY_LIMIT, TIME_LIMIT_S
from skipway.data.preprocess import plain
from skipway.data.sources.folder import open_folder
from skipway.data_spec import DataSpec
from skipway.run import Run

GOOD = 30


def tree_hash(root: Path) -> str:
    """Over every name, size, time and byte below a folder."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        facts = path.lstat()
        digest.update(f"{path.relative_to(root)} {facts.st_size} {facts.st_mtime_ns} {facts.st_mode}".encode())
        if path.is_file() and not path.is_symlink():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def most_memory(whose: int) -> int:
    """Bytes that this process held at most, or the largest of its children that have ended."""
    return resource.getrusage(whose).ru_maxrss * 1024


@pytest.fixture
def mixed(shared_data, tmp_path) -> Path:
    """All malformed files, in two classes, among good images."""
    root = tmp_path / "mixed"
    for i in range(GOOD):
        save_image(root / ("a" if i % 2 else "b") / f"good{i:02}.png", i, (40, 30), brightness=127 * (i % 2))
    for i, file in enumerate(sorted((shared_data / "malformed").iterdir())):
        shutil.copy(file, root / ("a" if i % 2 else "b") / file.name)
    return root


@pytest.mark.faults
def test_reading_doctor_and_training_survive_every_malformed_file(mixed, tmp_path, skipway, shared_data):
    before, original = tree_hash(mixed), tree_hash(shared_data / "malformed")
    earlier = most_memory(resource.RUSAGE_CHILDREN)  # of children of tests before this one
    num_files = sum(path.is_file() for path in mixed.rglob("*"))
    spec = DataSpec(str(mixed), workers=2)

    source = open_folder(mixed, spec)
    loader = Loader(source, plain(source, spec, 32), spec)
    usable = source.splits["all"]
    started = time.monotonic()
    seen = torch.cat([batch.indices for batch in loader.batches(usable, 16)])
    assert len(seen) >= GOOD + 100
    assert time.monotonic() - started < TIME_LIMIT_S * len(usable)
    named = {*loader.bad, *(source.name(i) for i in seen.tolist())}
    assert len(named) == num_files  # each file is read, or named
    assert len(loader.bad) > 100
    assert all(reason.strip() for reason in loader.bad.values())

    found = skipway("doctor", mixed, "--json", "--workers", 2)
    assert found.code == 11
    assert "Traceback" not in found.out + found.err

    flags = [*TINY_FLAGS, "--image-size", 32, "--out", tmp_path / "run"]
    flags[flags.index("--workers") + 1] = "2"
    trained = skipway("train", mixed, *flags)
    assert trained.code == 0, trained.err
    assert set(Run.open(tmp_path / "run").summary["bad_files"]) == set(loader.bad)

    inherited = most_memory(resource.RUSAGE_SELF)
    assert most_memory(resource.RUSAGE_CHILDREN) <= max(earlier, inherited + MEMORY_LIMIT)
    assert tree_hash(mixed) == before
    assert tree_hash(shared_data / "malformed") == original


@pytest.mark.faults
def test_what_is_no_regular_file_is_named_and_never_opened(tmp_path):
    root = tmp_path / "p"
    for i in range(6):
        save_image(root / ("a" if i % 2 else "b") / f"{i}.png", i)
    os.mkfifo(root / "a" / "pipe.jpg")
    (root / "a" / "zeros.png").symlink_to("/dev/zero")
    (root / "a" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "b" / "empty.png").touch()
    with (root / "b" / "sparse.png").open("wb") as file:
        file.truncate(20 << 30)
    with (root / "b" / "sparse.jpg").open("wb") as file:
        file.write(b"\xff\xd8\xff\xe0" + b"\0" * 16)
        file.truncate(20 << 30)
    spec = DataSpec(str(root), workers=2)
    started = time.monotonic()
    source = open_folder(root, spec)
    loader = Loader(source, plain(source, spec, 8), spec)
    assert len(torch.cat([batch.indices for batch in loader.batches(source.splits["all"], 4)])) == 6
    assert time.monotonic() - started < 30
    assert set(loader.bad) == {
        "a/pipe.jpg", "a/zeros.png", "a/gone.png", "b/empty.png", "b/sparse.png", "b/sparse.jpg",
    }  # fmt: skip
    assert loader.bad["a/pipe.jpg"] == loader.bad["a/zeros.png"] == "not a regular file"
    assert loader.bad["a/gone.png"] == "a link to nothing"
    assert loader.bad["b/empty.png"] == "empty (0 bytes)"
