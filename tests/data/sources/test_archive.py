import bz2
import contextlib
import gzip
import io
import lzma
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_photos, save_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from skipway.data.open import open_source
from skipway.data.pool import Pool
from skipway.data.sources import archive, tar_index
from skipway.data.sources.tar_index import unsafe
from skipway.data_spec import DataSpec
from skipway.errors import InputError, ReadError


def opened(path: Path, **options) -> Any:
    return open_source(DataSpec(path=str(path), workers=0, **options))


def png(seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def make_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as out:
        for name, data in members.items():
            out.writestr(name, data)
    return path


def make_tar(path: Path, members: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as out:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


CLASSES = {f"{name}/{i}.png": png(i + 10 * k) for k, name in enumerate(("ants", "bees")) for i in range(3)}
KINDS = [("zip", "zip"), ("tar", "tar"), ("tar.gz", "gztar"), ("tar.bz2", "bztar"), ("tar.xz", "xztar")]


@pytest.mark.parametrize(("suffix", "kind"), KINDS)
@pytest.mark.parametrize("top", [False, True])
def test_an_archive_is_the_folder_it_was_made_of(tmp_path, suffix, kind, top):
    root = make_photos(tmp_path / "x" / "photos", splits=("train", "val"), classes=("ants", "bees", "wasps"), num=3)
    made = shutil.make_archive(str(tmp_path / "made"), kind, root.parent if top else root, root.name if top else None)
    assert made.endswith(suffix)
    before = Path(made).read_bytes()
    ours, folder = opened(Path(made)), opened(root)
    assert [ours.name(i) for i in range(len(ours))] == [folder.name(i) for i in range(len(folder))]
    assert ours.classes == folder.classes
    assert ours.labels.equal(folder.labels)
    assert {k: v.tolist() for k, v in ours.splits.items()} == {k: v.tolist() for k, v in folder.splits.items()}
    assert all(ours.read(i).equal(folder.read(i)) for i in range(len(ours)))
    assert ours.bad == {}
    assert Path(made).read_bytes() == before
    assert os.listdir(tmp_path / "cwd") == []


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_zip_methods(tmp_path, method):
    source = opened(make_zip(tmp_path / "a.zip", CLASSES, method))
    assert [source.files.get(i) for i in range(6)] == list(CLASSES.values())


def test_a_method_that_is_not_read_is_named(tmp_path):
    path = make_zip(tmp_path / "a.zip", CLASSES)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_LZMA) as out:
        out.writestr("ants/z.png", png())
    source = opened(path)
    assert len(source) == 6
    assert "method 14" in source.bad["ants/z.png"]


def test_members_that_could_do_harm_are_named(tmp_path):
    harmful = {
        "/etc/x.png": "absolute",
        "../out.png": "leads out",
        "ants/../../out.png": "leads out",
        "C:/x.png": "absolute",
        "ants/empty.png": "empty",
    }
    for path in (
        make_zip(tmp_path / "a.zip", {**CLASSES, **dict.fromkeys(harmful, png()), "ants/empty.png": b""}),
        make_tar(tmp_path / "a.tar", {**CLASSES, **dict.fromkeys(harmful, png()), "ants/empty.png": b""}),
        make_tar(tmp_path / "a.tar.gz", {**CLASSES, **dict.fromkeys(harmful, png()), "ants/empty.png": b""}, "w:gz"),
    ):
        source = opened(path)
        assert len(source) == 6
        assert set(source.bad) == set(harmful)
        for name, reason in harmful.items():
            assert reason in source.bad[name]
        with pytest.raises(ReadError, match="bad-files skip"):
            opened(path, bad_files="stop")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_links_and_devices_in_a_tar_are_named(tmp_path, mode):
    path = tmp_path / ("a.tar" if mode == "w" else "a.tar.gz")
    with tarfile.open(path, mode) as out:
        for name, data in CLASSES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
        for name, kind in (
            ("s", tarfile.SYMTYPE),
            ("h", tarfile.LNKTYPE),
            ("d", tarfile.CHRTYPE),
            ("f", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(f"ants/{name}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            out.addfile(info)
    source = opened(path)
    assert source.bad == {
        "ants/s.png": "a link",
        "ants/h.png": "a link",
        "ants/d.png": "not a regular file",
        "ants/f.png": "not a regular file",
    }


def test_a_link_in_a_zip_is_named(tmp_path):
    path = make_zip(tmp_path / "a.zip", CLASSES)
    with zipfile.ZipFile(path, "a") as out:
        info = zipfile.ZipInfo("ants/link.png")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        out.writestr(info, "/etc/passwd")
    assert opened(path).bad == {"ants/link.png": "a link"}


def test_an_encrypted_member_is_named(tmp_path):
    data = bytearray(make_zip(tmp_path / "a.zip", {**CLASSES, "ants/secret.png": png()}).read_bytes())
    place = data.rindex(b"PK\x01\x02")  # the last member's entry in the directory
    data[place + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    source = opened(tmp_path / "a.zip")
    assert "encrypted" in source.bad["ants/secret.png"]
    assert len(source) == 6


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_read_once(tmp_path):
    first, second = png(1), png(2)
    path = make_zip(tmp_path / "a.zip", {**CLASSES, "ants/x.png": first})
    with zipfile.ZipFile(path, "a") as out:
        out.writestr("ants/x.png", second)
    source = opened(path)
    [index] = [i for i in range(len(source)) if source.name(i) == "ants/x.png"]
    assert source.files.get(index) == first
    assert list(source.bad) == ["ants/x.png (again)"]


def test_bombs_are_named_and_never_unpacked(tmp_path):
    zeros = bytes(2 << 20)
    source = opened(make_zip(tmp_path / "a.zip", {**CLASSES, "ants/bomb.png": zeros}))
    assert "a bomb" in source.bad["ants/bomb.png"]
    huge = tar_index.MAX_MEMBER + 1
    found = tar_index.Members()
    found.take("a/b.png", (0, 0, huge, huge, 0, 0))
    assert "more than" in found.bad["a/b.png"]
    found.take("a/c.png", (0, 0, huge, 100, 8, 0))  # its packed bytes would be read at once
    assert "more than" in found.bad["a/c.png"]
    assert found.names == []


def test_a_lying_directory_unpacks_no_more_than_it_says(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"ants/a.png": png(), "bees/liar.png": bytes(1 << 20)})
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    data[place + 24 : place + 28] = struct.pack("<I", 100)
    path.write_bytes(data)
    source = opened(path)
    assert "cut short" in source.bad["bees/liar.png"] or "damaged" in source.bad["bees/liar.png"]


def test_a_compressed_bomb_stops_early(tmp_path, monkeypatch):
    make_tar(tmp_path / "a.tar.gz", {**CLASSES, "ants/zeros.txt": bytes(70 << 20)}, "w:gz")
    with pytest.raises(InputError, match="plain .tar or a .zip"):
        opened(tmp_path / "a.tar.gz")
    monkeypatch.setattr(archive, "IN_MEMORY", 100)
    with pytest.raises(InputError, match=r"images in .* take more than"):
        opened(make_tar(tmp_path / "b.tar.gz", CLASSES, "w:gz"))


def test_litter_is_passed_over_and_strays_are_named(tmp_path):
    litter = {"__MACOSX/ants/._1.png": b"x", "ants/.DS_Store": b"x", "ants/Thumbs.db": b"x", ".git/a.png": png()}
    source = opened(make_zip(tmp_path / "a.zip", {**CLASSES, **litter, "stray.png": png(), "ants/notes.txt": b"x"}))
    assert set(source.bad) == {"stray.png", "ants/notes.txt"}
    assert source.classes == ("ants", "bees")


def test_one_folder_above_all_is_looked_through_with_a_readme_beside_it(tmp_path):
    members = {f"data/PetImages/{name}": data for name, data in CLASSES.items()}
    source = opened(make_zip(tmp_path / "a.zip", {**members, "readme.txt": b"x", "docs/license.txt": b"x"}))
    assert source.classes == ("ants", "bees")
    assert source.name(0) == "ants/0.png"
    assert list(source.bad) == ["docs"]


def test_a_class_of_folders_of_its_own_is_no_top(tmp_path):
    source = opened(make_zip(tmp_path / "a.zip", {"ants/1.png": png(), "ants/2.png": png(), "ants/deep/3.png": png()}))
    assert source.classes == ("ants",)
    assert len(source) == 3


def test_an_empty_class_folder_is_a_fault(tmp_path):
    with pytest.raises(InputError, match="class folder wasps"):
        opened(make_zip(tmp_path / "a.zip", {**CLASSES, "wasps/": b""}))


def test_zip_names_without_a_mark_are_utf8_where_they_can_be(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"bären/1.png": png(), "bees/2.png": png()})
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):
        place = -1
        while (place := data.find(mark, place + 1)) >= 0:
            data[place + at] &= ~0x08
    path.write_bytes(data)
    assert opened(path).classes == ("bees", "bären")
    path.write_bytes(path.read_bytes().replace("ä".encode(), b"\x84\x61"))  # code page 437
    assert opened(path).classes == ("bees", "bäaren")


def test_backslashes_of_windows_archivers(tmp_path):
    source = opened(make_zip(tmp_path / "a.zip", {name.replace("/", "\\"): data for name, data in CLASSES.items()}))
    assert source.classes == ("ants", "bees")


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_no_archive_is_said_so(tmp_path, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(b"not an archive" * 100)
    with pytest.raises(InputError, match="is not a whole"):
        opened(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("length", [4096, 4096 + 100, 4096 + 512 + 100])  # behind a member, in a header, in an image
@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_tar_that_breaks_off_is_read_up_to_there(tmp_path, suffix, length):
    whole = make_tar(tmp_path / "a.tar", CLASSES).read_bytes()
    cut = whole[:length]
    compress = {"tar": bytes, "tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}[suffix]
    (tmp_path / f"b.{suffix}").write_bytes(compress(cut))
    source = opened(tmp_path / f"b.{suffix}")
    assert len(source) == 4
    assert any("damaged" in reason or "cut short" in reason for reason in source.bad.values())
    assert [source.files.get(i) for i in range(4)] == list(CLASSES.values())[:4]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_broken_header_inside_a_tar_is_noticed(tmp_path, suffix):
    data = bytearray(make_tar(tmp_path / "a.tar", CLASSES).read_bytes())
    place = data.index(b"bees/1.png")
    data[place : place + 512] = b"\xff" * 512
    path = tmp_path / f"b.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix == "tar.gz" else data)
    source = opened(path)
    assert len(source) == 4
    assert any("damaged" in reason for reason in source.bad.values())


def test_bytes_changed_inside_a_zip_are_noticed(tmp_path):
    path = make_zip(tmp_path / "a.zip", CLASSES, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 6] ^= 1
    path.write_bytes(data)
    assert "checksum differs" in opened(path).bad["ants/0.png"]


def test_an_archive_with_nothing_in_class_folders(tmp_path):
    with pytest.raises(InputError, match="class folder a in .* has no images"):
        opened(make_zip(tmp_path / "a.zip", {"a/notes.txt": b"x"}))


def test_groups_by_name(tmp_path):
    members = {f"{name}/patient{i % 2}_{i}.png": png(i) for name in ("a", "b") for i in range(4)}
    assert opened(make_zip(tmp_path / "a.zip", members), group=r"patient(\d)").groups.tolist() == [0, 0, 1, 1] * 2


def test_the_fingerprint_follows_the_bytes(tmp_path):
    path = make_zip(tmp_path / "a.zip", CLASSES)
    first = opened(path).fingerprint
    assert opened(path).fingerprint == first
    make_zip(path, {**CLASSES, "ants/0.png": png(99)})
    assert opened(path).fingerprint != first


class _Sum:
    def __init__(self, source):
        self.source = source

    def __call__(self, index: int) -> int:
        return int(self.source.read(index).sum())


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_forked_processes_do_not_move_each_others_place(tmp_path, suffix):
    members = {f"{name}/{i}.png": png(i) for name in ("a", "b") for i in range(60)}
    path = tmp_path / f"a.{suffix}"
    source = opened(make_zip(path, members) if suffix == "zip" else make_tar(path, members, f"w:{suffix[4:]}"))
    source.read(0)  # the file is open before the fork
    expected = [int(source.read(i).sum()) for i in range(len(source))]
    with Pool(_Sum(source), workers=2) as pool:
        assert [value for part in pool.map([[i] for i in range(len(source))]) for value in part] == expected
    assert pickle.loads(pickle.dumps(source)).read(3).equal(source.read(3))  # as spawn sends it


@given(st.text("ab./\\C:\0", max_size=12))
def test_safe_names_stay_below(name):
    if not unsafe(name):
        root = os.path.abspath("/somewhere/deep")
        for path in (name, name.replace("\\", "/")):
            below = os.path.normpath(os.path.join(root, path))
            assert below == root or below.startswith(root + os.sep)


def test_a_member_of_another_size_than_told(tmp_path):
    path = make_tar(tmp_path / "a.tar", CLASSES)
    source = opened(path)
    with open(path, "r+b") as file:
        file.truncate(700)
    with pytest.raises(ReadError, match="cut short"):
        source.read(5)


def test_members_in_their_own_words(tmp_path):
    save_image(tmp_path / "x.png", 1)
    source = opened(make_zip(tmp_path / "a.zip", {**CLASSES, "ants/bad.png": b"no image"}))
    assert source.bad["ants/bad.png"].startswith("not an image")
    assert "all" in source.splits
    assert torch.cat(list(source.splits.values())).tolist() == [0, 1, 2, 4, 5, 6]


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A tar header with a size as it is never written."""
    data = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    data[124:136], data[156:157], data[148:156] = size, kind, b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


@pytest.mark.parametrize(
    "block",
    [
        header("ants/x.png", b"\xff" * 10 + b"\xf0\x00"),  # -4096: back to a member before
        header("ants/x.png", b"\x80" + b"\xff" * 11),
        header("ants/x.png", b"77777777777\0", b"L"),  # a long name of 8 GiB
        header("ants/x.png", b"00000000000\0", b"L") * 3000,  # names of names of names
    ],
)
def test_sizes_made_to_mislead(tmp_path, block):
    whole = make_tar(tmp_path / "a.tar", CLASSES).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    (tmp_path / "b.tar").write_bytes(whole[:end] + block + whole[end:])
    source = opened(tmp_path / "b.tar")
    assert len(source) == 6
    assert source.bad


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_flipped_bytes_cost_one_message_at_most(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    whole = (make_zip(path, CLASSES) if suffix == "zip" else make_tar(path, CLASSES, f"w:{suffix[4:]}")).read_bytes()
    rng = np.random.default_rng(0)
    read = refused = 0
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 3).tolist():
            data[place] = int(rng.integers(256))
        path.write_bytes(data[: int(rng.integers(len(data)))] if rng.random() < 0.2 else data)
        try:
            source = opened(path)
        except InputError as error:
            assert "a." in str(error)  # the file's name
            refused += 1
            continue
        for index in source.splits["all"].tolist():
            with contextlib.suppress(ReadError):
                assert source.read(index).shape == (3, 8, 8)
                read += 1
    assert read > 30
    assert refused > 3
