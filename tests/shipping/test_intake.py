import inspect
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import make_photos, save_image
from PIL import Image

from skipway.data import pool
from skipway.data.images.decode import decode
from skipway.data.images.reading import PHOTO, Reading
from skipway.data.pool import Pool
from skipway.data.preprocess import Preprocess
from skipway.errors import ReadError
from skipway.shipping import intake
from skipway.shipping.intake import read_files


def fitting(reading: Reading = PHOTO) -> Preprocess:
    numbers = (0.5,) * reading.channels
    return Preprocess(12, numbers, numbers, reading)


def here(path: Path, preprocess: Preprocess) -> torch.Tensor:
    """The same in this process."""
    return preprocess.fit(decode(path, preprocess.reading, at_least=preprocess.image_size))


@pytest.fixture
def hostile(monkeypatch):
    """Files of some names do what no file should to what reads them."""

    def read(path: Path, reading: Reading, *, at_least: int = 0) -> torch.Tensor:
        if path.stem == "hangs":
            time.sleep(60)
        if path.stem == "grows":
            list(iter(lambda: bytearray(1 << 26), None))
        if path.stem == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        if path.stem == "prints":
            os.write(2, b"a C library warns\n")
        return decode(path, reading, at_least=at_least)

    monkeypatch.setattr(intake, "decode", read)
    monkeypatch.setitem(Pool.__init__.__kwdefaults__, "time_limit_s", 6)  # time enough for the others on a busy machine
    monkeypatch.setitem(Pool.__init__.__kwdefaults__, "memory_limit", 1 << 28)


def some_files(folder: Path, names: list[str]) -> list[Path]:
    for seed, name in enumerate(names):
        save_image(folder / f"{name}.png", seed, (14 + seed, 20))
    return [folder / f"{name}.png" for name in names]


@pytest.mark.parametrize("count", [0, 1, 8, 9, 30])
def test_files_come_in_order_as_this_process_reads_them(tmp_path, count):
    paths = some_files(tmp_path, [f"{i:02}" for i in range(count)])
    got = list(read_files(paths, fitting()))
    assert len(got) == count
    for path, image in zip(paths, got, strict=True):
        assert isinstance(image, torch.Tensor)
        assert image.equal(here(path, fitting()))


def test_deep_images_stay_deep(tmp_path):
    deep = fitting(Reading(1, deep=True))
    Image.frombytes("I;16", (12, 12), os.urandom(288)).save(tmp_path / "x.png")
    [image] = read_files([tmp_path / "x.png"], deep)
    assert isinstance(image, torch.Tensor)
    assert image.dtype == torch.float32
    assert image.equal(here(tmp_path / "x.png", deep))


@pytest.mark.parametrize(("files", "processes"), [(1, 1), (16, 2), (50, 3)])
def test_as_many_processes_as_there_is_work_for_and_cores(tmp_path, monkeypatch, files, processes):
    asked = []
    start = Pool.__init__

    def noted(self, job, *, workers, **options):
        asked.append(workers)
        start(self, job, workers=0, **options)

    monkeypatch.setattr(Pool, "__init__", noted)
    monkeypatch.setattr(pool, "cores", lambda: 3)
    list(read_files(some_files(tmp_path, ["a"]) * files, fitting()))
    assert asked == [processes]


@pytest.mark.faults
def test_hostile_files_cost_themselves_alone_and_print_nothing(tmp_path, hostile, capfd):
    paths = some_files(tmp_path, ["a", "hangs", "b", "grows", "c", "crashes", "d", "prints", "e"])
    (tmp_path / "b.png").write_bytes(b"no image")
    got = list(read_files(paths, fitting()))
    errors = {Path(r.name).stem: r.reason for r in got if isinstance(r, ReadError)}
    assert errors == {
        "hangs": "took more than 6 s to read",
        "b": "not an image, or of a format that is not read",
        "grows": "needs more than 0.25 GiB to read",
        "crashes": "ended its reader (signal 11)",
    }
    assert [isinstance(r, ReadError) for r in got] == [path.stem in errors for path in paths]
    assert capfd.readouterr().err == ""


@pytest.mark.faults
def test_predict_leaves_out_a_file_that_hangs(skipway, trained, tmp_path, hostile):
    folder = make_photos(tmp_path / "p", num=2)
    bad = folder / "ants" / "hangs.png"
    save_image(bad, 1)
    result = skipway("predict", trained.folder, folder, "--top", "1")
    assert result.code == 0
    assert result.err.splitlines() == [f"left out {bad}: took more than 6 s to read", "left out 1 file in all"]
    named = [line.split()[0] for line in result.out.splitlines()]
    assert named == [str(folder / c / f"{i:03}.png") for c in ("ants", "bees") for i in range(2)]


def test_a_file_has_five_seconds():
    assert inspect.signature(Pool).parameters["time_limit_s"].default == 5


def test_without_fork_files_are_read_too(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_FORKS", False)
    paths = some_files(tmp_path, ["a", "b"])
    (tmp_path / "b.png").write_bytes(b"no image")
    image, error = read_files(paths, fitting())
    assert isinstance(image, torch.Tensor)
    assert image.equal(here(paths[0], fitting()))
    assert isinstance(error, ReadError)
    assert error.name == str(paths[1])
