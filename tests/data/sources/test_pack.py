import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_photos
from PIL import Image

import skipway as package
from skipway.data.files import FileSource
from skipway.data.open import open_source
from skipway.data.source import ArraySource
from skipway.data.sources import pack as pack_module
from skipway.data.sources.pack import pack
from skipway.data.sources.packed import from_npy, to_npy
from skipway.data_spec import DataSpec
from skipway.errors import InputError, ReadError


def opened(path: Path | str, **options) -> Any:
    return open_source(DataSpec(path=str(path), workers=0, **options))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


def in_memory(images: torch.Tensor, labels: torch.Tensor, classes: tuple[str, ...], **more) -> ArraySource:
    splits = {"train": torch.arange(0, len(labels) - 2), "test": torch.arange(len(labels) - 2, len(labels))}
    return ArraySource(images, labels, classes, splits, "mine", **more)


@pytest.fixture
def split_photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", splits=("train", "val"), num=10)


def test_files_are_copied_byte_for_byte_and_read_back_the_same(tmp_path, split_photos):
    extra = split_photos / "train" / "ants" / "x.y.jpeg"
    Image.new("RGB", (5, 4), "red").save(extra)
    before = {path: path.read_bytes() for path in split_photos.rglob("*") if path.is_file()}
    packed = package.pack(split_photos, tmp_path / "out", shard_size_mb=0.01)
    folder, shards = opened(split_photos), opened(tmp_path / "out")
    assert packed.samples == {"train": 21, "val": 20}
    assert packed.shards == len(list((tmp_path / "out").glob("*.tar"))) > 4
    assert packed.bytes == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
    assert {split: len(part) for split, part in shards.splits.items()} == packed.samples
    assert shards.classes == folder.classes
    where = {folder.name(i): i for i in range(len(folder))}
    assert sorted(shards.name(i) for i in range(len(shards))) == sorted(where)
    for split, part in shards.splits.items():
        for i in part.tolist():
            j = where[shards.name(i)]
            assert shards.name(i).startswith(split)
            assert shards.files.get(i) == Path(folder.files.get(j)).read_bytes()
            assert shards.labels[i] == folder.labels[j]
            assert shards.read(i).equal(folder.read(j))
    assert {path: path.read_bytes() for path in split_photos.rglob("*") if path.is_file()} == before


def test_packing_twice_gives_the_same_bytes(tmp_path, split_photos, monkeypatch):
    pack(split_photos, tmp_path / "a", shard_size_mb=0.01)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    for path in split_photos.rglob("*.png"):
        os.utime(path, (1e9, 1e9))
    pack(split_photos, tmp_path / "b", shard_size_mb=0.01)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    pack(split_photos, tmp_path / "c", shard_size_mb=0.01, seed=1)
    assert contents(tmp_path / "a").keys() == contents(tmp_path / "c").keys()
    assert contents(tmp_path / "a") != contents(tmp_path / "c")
    with tarfile.open(tmp_path / "a" / "train-000000.tar") as tar:
        for info in tar:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")


def test_each_shard_is_a_fair_sample(tmp_path):
    labels = torch.arange(4000) // 1000  # one class behind the other
    source = in_memory(torch.zeros(4000, 1, 4, 4, dtype=torch.uint8), labels, ("a", "b", "c", "d"))
    pack(source, tmp_path / "out", shard_size_mb=1)
    shards = opened(tmp_path / "out")
    part = torch.from_numpy(shards.files.rows[:, 0])
    full = [shards.labels[part == i].bincount(minlength=4) for i in range(5)]
    for counts in full:
        assert (counts - counts.sum() / 4).abs().max() < 5 * (counts.sum() * 3 / 16) ** 0.5


@pytest.mark.parametrize("channels", [1, 3])
def test_images_in_memory_survive(tmp_path, channels):
    images = torch.randint(0, 256, (6, channels, 7, 5), dtype=torch.uint8)
    source = in_memory(images, torch.tensor([0, 1, 0, 1, 1, 0]), ("dark/1", "7"))
    pack(source, tmp_path / "out")
    shards = opened(tmp_path / "out")
    assert (shards.channels, shards.deep, shards.classes) == (channels, False, ("dark/1", "7"))
    for i in range(6):
        j = int(shards.name(i)[5:-1])
        assert shards.read(i).equal(images[j])
        assert shards.labels[i] == source.labels[j]


@pytest.mark.parametrize("channels", [1, 3])
def test_deep_images_in_memory_survive_to_the_bit(tmp_path, channels):
    images = torch.randn(6, channels, 7, 5) * 1e3
    images[0, 0, 0, :3] = torch.tensor([1 / 3, -0.0, 1e-42])
    pack(in_memory(images, torch.tensor([0, 1, 0, 1, 1, 0]), ("a", "b")), tmp_path / "out")
    shards = opened(tmp_path / "out")
    assert (shards.channels, shards.deep) == (channels, True)
    assert {split: len(part) for split, part in shards.splits.items()} == {"train": 4, "test": 2}
    for i in range(6):
        j = int(shards.name(i)[5:-1])
        assert shards.read(i).numpy().tobytes() == images[j].numpy().tobytes()
    pack(tmp_path / "out", tmp_path / "again")  # shards of shards
    again = opened(tmp_path / "again")
    assert sorted(again.files.get(i) for i in range(6)) == sorted(shards.files.get(i) for i in range(6))


def test_files_of_16_bits_stay_so(tmp_path):
    root = tmp_path / "scans"
    for i in range(4):
        (root / f"c{i % 2}").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 65536, (5, 6)).astype(np.uint16)
        Image.fromarray(pixels).save(root / f"c{i % 2}" / f"{i}.png")
    pack(root, tmp_path / "out")
    shards = opened(tmp_path / "out")
    assert shards.deep
    files = sorted(path.read_bytes() for path in root.rglob("*.png"))
    assert sorted(shards.files.get(i) for i in range(4)) == files


def test_several_labels_and_groups(tmp_path):
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=torch.uint8)
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 4, 4).contiguous()
    groups = torch.tensor([5, 5, 0, 9])
    source = in_memory(images, labels, ("x", "y", "z"), groups=groups)
    pack(source, tmp_path / "out")
    shards = opened(tmp_path / "out")
    assert shards.labels.dtype == torch.uint8
    for i in range(4):
        j = int(shards.name(i)[5:-1])
        assert shards.labels[i].tolist() == labels[j].tolist()
        assert shards.groups[i] == groups[j]


def test_shards_tell_their_classes_without_shards_json(tmp_path, split_photos):
    pack(split_photos, tmp_path / "out")
    whole = opened(tmp_path / "out")
    (tmp_path / "out" / "shards.json").unlink()
    source = opened(tmp_path / "out")
    assert source.classes == whole.classes == ("ants", "bees")
    assert source.labels.equal(whole.labels)
    assert list(source.splits) == ["train", "val"]


def test_webdataset_readers_find_numbers(tmp_path, photos):
    pack(photos, tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "all-000000.tar") as tar:
        names = tar.getnames()
        assert [name.split(".")[1] for name in names[:3]] == ["png", "cls", "json"]
        assert len({name.split(".")[0] for name in names}) == 40
        for name in names[1::3]:
            facts = json.loads(member(tar, name.replace(".cls", ".json")))
            assert facts["class"] == ("ants", "bees")[int(member(tar, name))]


def test_files_without_an_ending_get_one(tmp_path):
    class Nameless:
        fingerprint = ""

        def __len__(self):
            return 2

        def name(self, index):
            return f"row {index}"

        def get(self, index):
            if index:
                raise ReadError(self.name(index), "gone")
            path = tmp_path / "x.jpg"
            Image.new("RGB", (3, 3)).save(path)
            return path.read_bytes()

    source = FileSource(Nameless(), torch.tensor([0, 1]), ("a", "b"), {"all": torch.arange(2)})
    packed = pack(source, tmp_path / "out")
    assert packed.samples == {"all": 1}
    assert packed.bad == {"row 1": "gone"}
    with tarfile.open(tmp_path / "out" / "all-000000.tar") as tar:
        assert tar.getnames()[0] == "00000000.jpg"


def test_bad_files_are_named_or_stop(tmp_path, photos):
    (photos / "ants" / "bad.png").write_bytes(b"no image")
    assert list(pack(photos, tmp_path / "out").bad) == ["ants/bad.png"]
    with pytest.raises(ReadError, match="bad.png"):
        pack(DataSpec(path=str(photos), bad_files="stop"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_nothing_is_written_over(tmp_path, photos):
    out = tmp_path / "out"
    out.mkdir()
    pack(photos, out)  # empty is new
    first = contents(out)
    with pytest.raises(InputError, match="holds something already"):
        pack(photos, out)
    assert contents(out) == first
    with pytest.raises(InputError, match="holds something already"):
        pack(photos, photos / "ants" / "000.png")
    with pytest.raises(InputError, match="inside the data"):
        pack(photos, photos / "shards")
    (tmp_path / "new.packing").mkdir()
    (tmp_path / "new.packing" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="in the way"):
        pack(photos, tmp_path / "new")
    assert (tmp_path / "new.packing" / "mine.txt").read_text() == "mine"
    with pytest.raises(InputError, match="shard_size_mb"):
        pack(photos, tmp_path / "new2", shard_size_mb=0)


KILLED = """
import sys, time
from skipway.data.sources import pack as module
add = module._add
def slow(file, name, data):
    add(file, name, data)
    if len(list(folder.glob("*.tar"))) >= 2:
        print("half", flush=True)
        time.sleep(60)
module._add = slow
from pathlib import Path
folder = Path(sys.argv[2] + ".packing")
module.pack(sys.argv[1], sys.argv[2], shard_size_mb=0.01)
"""


@pytest.mark.faults
def test_a_killed_pack_is_recognised_and_starts_over(tmp_path, photos):
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", KILLED, photos, out], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"half\n"
    with pytest.raises(InputError, match="being packed by another process"):
        pack(photos, out)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not out.exists()
    with pytest.raises(InputError, match="half packed"):
        opened(tmp_path / "out.packing")
    pack(photos, out, shard_size_mb=0.01)
    assert not (tmp_path / "out.packing").exists()
    pack(photos, tmp_path / "other", shard_size_mb=0.01)
    assert contents(out) == contents(tmp_path / "other")


def test_a_full_disk_leaves_nothing(tmp_path, photos, monkeypatch):
    def full(file, name, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack_module, "_add", full)
    with pytest.raises(InputError, match="No space left"):
        pack(photos, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_shards_that_are_missing_or_changed(tmp_path, split_photos):
    pack(split_photos, tmp_path / "out", shard_size_mb=0.01)
    path = tmp_path / "out" / "train-000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-512])
    assert "copy it again" in opened(tmp_path / "out").bad["train-000001.tar"]
    path.unlink()
    with pytest.raises(InputError, match=r"lacks 1 of its \d+ shards, first train-000001.tar"):
        opened(tmp_path / "out")
    path.write_bytes(whole)
    (tmp_path / "out" / "stray.tar").write_bytes(whole)
    assert opened(tmp_path / "out").bad["stray.tar"] == "not listed in shards.json"
    one = opened(path)  # one of them is a set too
    assert list(one.splits) == ["train"]
    assert one.classes == ("ants", "bees")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"classes": [1], "splits": {}, "format": "x"}', '{"classes": "ab", "splits": []}']
)
def test_a_damaged_shards_json(tmp_path, photos, text):
    pack(photos, tmp_path / "out")
    (tmp_path / "out" / "shards.json").write_text(text)
    with pytest.raises(InputError, match="is damaged"):
        opened(tmp_path / "out")


def test_a_newer_format_and_other_classes(tmp_path, photos):
    pack(photos, tmp_path / "out")
    path = tmp_path / "out" / "shards.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "format": "skipway-shards-9"}))
    with pytest.raises(InputError, match="skipway-shards-9"):
        opened(tmp_path / "out")
    path.write_text(json.dumps({**facts, "classes": ["ants"]}))
    with pytest.raises(InputError, match="'bees' is not among the 1 classes"):
        opened(tmp_path / "out")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        to_npy(torch.zeros(1, 2, 2))[:-1],
        to_npy(torch.zeros(2, 2, 2)),
        to_npy(torch.zeros(1, 2, 2)).replace(b"(1, 2, 2)", b"(9, 9, 9)"),
        to_npy(torch.zeros(1, 2, 2)).replace(b"<f4", b"|O4"),
    ],
)
def test_arrays_that_are_none(data):
    with pytest.raises(ReadError):
        from_npy(data, "x.npy")


def test_the_command(tmp_path, photos, skipway):
    result = skipway("data", "pack", photos, tmp_path / "out", "--shard-size-mb", "0.01")
    assert result.code == 0
    assert "all 40 in" in result.out
    assert skipway("data", "pack", photos, tmp_path / "out").code == 2
