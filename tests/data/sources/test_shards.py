import io
import json
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from skipway.data.open import open_source
from skipway.data.sources import samples
from skipway.data.sources.pack import pack
from skipway.data.sources.samples import key_and_extension
from skipway.data.sources.shards import expand, is_shard
from skipway.data_spec import DataSpec
from skipway.errors import InputError, ReadError


def opened(path: Path | str, **options) -> Any:
    return open_source(DataSpec(path=str(path), workers=0, **options))


def png(seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def shard(path: Path, *members: tuple[str, bytes | str]) -> Path:
    """A tar file of these members, in this order, as WebDataset's writer makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, data in members:
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def numbered(path: Path, labels: list[int], first: int = 0) -> Path:
    members = []
    for i, label in enumerate(labels, first):
        members += [(f"{i:06}.png", png(i)), (f"{i:06}.cls", str(label))]
    return shard(path, *members)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a/{000..003}.tar", ["a/000.tar", "a/001.tar", "a/002.tar", "a/003.tar"]),
        ("train-{8..11}.tar", ["train-8.tar", "train-9.tar", "train-10.tar", "train-11.tar"]),
        ("{train,val}-{0..1}.tar", ["train-0.tar", "train-1.tar", "val-0.tar", "val-1.tar"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{098..101}", ["098", "099", "100", "101"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_patterns(pattern, names):
    assert expand(pattern) == names


@pytest.mark.parametrize("pattern", ["{a}.tar", "{0..x}.tar", "{0..999999999}.tar", "{0..999}{0..999}.tar", "{}.tar"])
def test_patterns_that_are_none(pattern):
    with pytest.raises(InputError):
        expand(pattern)


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        ("0001.jpg", "0001", "jpg"),
        ("a/b/0001.JPG", "a/b/0001", "jpg"),
        ("0001.seg.png", "0001", "seg.png"),
        ("v1.2/0001.jpg", "v1.2/0001", "jpg"),
        ("README", "README", ""),
    ],
)
def test_the_key_ends_at_the_first_dot(name, key, extension):
    assert key_and_extension(name) == (key, extension)


def test_numbers_in_cls(tmp_path):
    path = numbered(tmp_path / "a.tar", [0, 2, 1, 2])
    assert is_shard(path)
    source = opened(path)
    assert source.classes == ("0", "1", "2")
    assert source.labels.tolist() == [0, 2, 1, 2]
    assert [source.files.get(i) for i in range(4)] == [png(i) for i in range(4)]
    assert list(source.splits) == ["all"]
    assert source.name(1) == "a.tar/000001.png"


def test_names_in_txt_cls_and_json(tmp_path):
    path = shard(
        tmp_path / "a.tar",
        ("1.png", png(1)), ("1.txt", "wasp\n"),
        ("2.cls", "bee"), ("2.png", png(2)),
        ("3.json", json.dumps({"label": "ant"})), ("3.png", png(3)),
        ("4.json", json.dumps({"width": 8})), ("4.png", png(4)), ("4.cls", "ant"),
        ("5.json", json.dumps({"class": "bee", "label": 7})), ("5.png", png(5)), ("5.cls", "7"),
    )  # fmt: skip
    source = opened(path)
    assert source.classes == ("ant", "bee", "wasp")
    assert source.labels.tolist() == [2, 1, 0, 0, 1]


def test_several_labels(tmp_path):
    lists = [["a", "c"], ["b"], [], ["c", "a"]]
    members = [
        m for i, row in enumerate(lists) for m in ((f"{i}.png", png(i)), (f"{i}.json", json.dumps({"classes": row})))
    ]
    source = opened(shard(tmp_path / "a.tar", *members))
    assert source.classes == ("a", "b", "c")
    assert source.labels.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1]]


def test_folders_stay_in_the_key(tmp_path):
    path = shard(tmp_path / "a.tar", ("x/1.png", png(1)), ("x/1.cls", "0"), ("y/1.png", png(2)), ("y/1.cls", "1"))
    source = opened(path)
    assert source.labels.tolist() == [0, 1]
    assert source.name(1) == "a.tar/y/1.png"


def test_samples_that_are_none_are_named(tmp_path):
    path = shard(
        tmp_path / "a.tar",
        ("0.png", png(0)), ("0.cls", "1"),
        ("two.png", png(1)), ("two.seg.png", png(2)), ("two.cls", "0"),
        ("none.cls", "0"),
        ("unlabelled.png", png(3)),
        ("odd.png", png(4)), ("odd.cls", "-1.5\x00"),
        ("broken.png", png(5)), ("broken.json", "{"),
        ("deep.png", png(6)), ("deep.json", "[" * 100_000),
        ("apart.png", png(7)), ("apart.cls", "0"), ("1.png", png(8)), ("1.cls", "0"), ("apart.seg.png", png(9)),
        ("empty.png", b""), ("empty.cls", "0"),
        ("README", "hello"),
        ("2.png", b"no image"), ("2.cls", "0"),
        ("../3.png", png(10)), ("../3.cls", "0"),
    )  # fmt: skip
    source = opened(path)
    assert [source.name(i) for i in range(len(source))] == [f"a.tar/{n}.png" for n in ("0", "apart", "1", "2")]
    assert source.splits["all"].tolist() == [0, 1, 2]
    for name, reason in {
        "two": "2 images",
        "none": "0 images",
        "unlabelled": "there is none",
        "odd": "no number from 0 and no name",
        "broken": "its label cannot be read",
        "deep": "its label cannot be read",
        "apart": "its members lie apart",
        "empty": "0 images",
        "empty.png": "empty (0 bytes)",
        "2.png": "not an image",
        "../3.png": "leads out",
    }.items():
        assert reason in source.bad[f"a.tar/{name}"], name
    with pytest.raises(ReadError, match="bad-files skip"):
        opened(path, bad_files="stop")


def test_a_tar_of_class_folders_is_no_shard(tmp_path):
    folders = shard(tmp_path / "a.tar", ("ants/1.png", png(1)), ("ants/1.txt", "a caption"), ("bees/2.png", png(2)))
    assert not is_shard(folders)
    assert opened(folders).classes == ("ants", "bees")
    (tmp_path / "b.tar").write_bytes(b"none")
    assert not is_shard(tmp_path / "b.tar")


def test_splits_by_file_name_and_by_folder(tmp_path):
    for name in ("set-train-000", "set-train-001", "set-val-000", "extra-0"):
        numbered(tmp_path / "s" / f"{name}.tar", [0, 1])
    source = opened(tmp_path / "s")
    assert {split: part.tolist() for split, part in source.splits.items()} == {"train": [2, 3, 4, 5], "val": [6, 7]}
    assert source.bad["extra-0.tar"].startswith("stands beside train and val")
    for split in ("training", "test"):
        numbered(tmp_path / "f" / split / "00.tar", [0, 1])
    assert {split: len(part) for split, part in opened(tmp_path / "f").splits.items()} == {"train": 2, "test": 2}
    pattern = opened(tmp_path / "s" / "set-train-{000..001}.tar")
    assert {split: len(part) for split, part in pattern.splits.items()} == {"train": 4}


def test_a_folder_above_all_shards_is_no_split(tmp_path):
    for name in ("dev", "test"):
        path = numbered(tmp_path / name / "0.tar", [0, 1])
        assert list(opened(path).splits) == ["all"]
        assert list(opened(path.parent).splits) == ["all"]
    assert list(opened(tmp_path / "{dev,test}" / "{0..0}.tar").splits) == ["val", "test"]


def test_a_pattern_names_what_is_missing(tmp_path):
    numbered(tmp_path / "0.tar", [0, 1])
    with pytest.raises(InputError, match=r"2 of the 3 shards .* first .*1.tar"):
        opened(tmp_path / "{0..2}.tar")


@pytest.mark.parametrize(
    ("labels", "message"),
    [(["1", "ant"], "numbers in places"), ([f"a caption of its own {i}" for i in range(1200)], "captions")],
)
def test_labels_that_are_no_classes(tmp_path, labels, message):
    members = [m for i, text in enumerate(labels) for m in ((f"{i}.png", b"x"), (f"{i}.txt", text))]
    with pytest.raises(InputError, match=message):
        opened(shard(tmp_path / "a.tar", *members))


def test_a_shard_that_breaks_off_or_is_none(tmp_path):
    path = numbered(tmp_path / "s" / "a.tar", [0, 1, 0, 1])
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"000003.png") + 600])
    numbered(tmp_path / "s" / "c.tar", [1])
    (tmp_path / "s" / "b.tar").write_bytes(b"none" * 500)
    source = opened(tmp_path / "s")
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert any(name.startswith("a.tar/") and "damaged" in reason for name, reason in source.bad.items())
    assert "not a whole tar file" in source.bad["b.tar/all"]
    for name in ("a.tar", "c.tar"):
        (tmp_path / "s" / name).unlink()
    with pytest.raises(InputError, match="holds no samples"):
        opened(tmp_path / "s")


def test_headers_are_read_once(tmp_path, monkeypatch):
    path = numbered(tmp_path / "a.tar", [0, 1])
    first = opened(path)

    def fail(self, part):
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(samples._Scan, "shard", fail)
        second = opened(path)
        assert second.labels.tolist() == first.labels.tolist()
        assert second.name(1) == first.name(1)
        assert second.fingerprint == first.fingerprint
        assert second.read(1).equal(first.read(1))
    numbered(path, [1, 0, 1])
    assert opened(path).labels.tolist() == [1, 0, 1]
    for kept in (tmp_path / "cache" / "index").iterdir():
        kept.write_bytes(b"damaged")
    assert opened(path).labels.tolist() == [1, 0, 1]


class Server(SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012
    cut = ""

    def do_GET(self):
        self.asked.append(self.path)
        if self.cut and self.path.endswith(self.cut):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
            return
        super().do_GET()

    def log_message(self, format, *_):
        pass


@pytest.fixture
def web(tmp_path) -> Iterator[str]:
    """An address that serves tmp_path/web."""
    (tmp_path / "web").mkdir()
    Server.asked, Server.cut = [], ""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(tmp_path / "web")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_shards_from_the_web_are_fetched_once(tmp_path, web):
    for name, first in (("train-0", 0), ("train-1", 3), ("val-0", 6)):
        numbered(tmp_path / "web" / "set" / f"{name}.tar", [0, 1, 2], first)
    source = opened(f"{web}/set/{{train-0,train-1,val-0}}.tar")
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 6, "val": 3}
    assert [source.files.get(i) for i in range(9)] == [png(i) for i in range(9)]
    assert [path for path in Server.asked if path.endswith(".tar")] == [
        "/set/train-0.tar",
        "/set/train-1.tar",
        "/set/val-0.tar",
    ]
    Server.asked.clear()
    assert len(opened(f"{web}/set/train-{{0..1}}.tar")) == 6
    assert Server.asked == []  # as it would be without a network


def test_what_was_fetched_is_kept_when_the_next_one_fails(tmp_path, web):
    for i in range(2):
        numbered(tmp_path / "web" / f"{i}.tar", [0, 1])
    with pytest.raises(
        InputError, match=r"2.tar could not be fetched: the server says 404.*2 of 3 files are in the cache"
    ):
        opened(f"{web}/{{0..2}}.tar")
    numbered(tmp_path / "web" / "2.tar", [1, 0])
    Server.asked.clear()
    assert opened(f"{web}/{{0..2}}.tar").labels.tolist() == [0, 1, 0, 1, 1, 0]
    assert [path for path in Server.asked if path.endswith(".tar")] == ["/2.tar"]


def test_a_connection_that_ends_early_leaves_nothing(tmp_path, web):
    numbered(tmp_path / "web" / "0.tar", [0, 1])
    Server.cut = "0.tar"
    with pytest.raises(InputError, match="ended after 10 of 1,000 bytes"):
        opened(f"{web}/{{0..0}}.tar")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    Server.cut = ""
    assert len(opened(f"{web}/{{0..0}}.tar")) == 2


def test_packed_shards_from_the_web_bring_their_classes(tmp_path, web, photos):
    pack(photos, tmp_path / "web" / "packed", shard_size_mb=0.02)
    count = len(list((tmp_path / "web" / "packed").glob("*.tar")))
    assert count > 2
    source = opened(f"{web}/packed/all-{{000000..{count - 1:06}}}.tar")
    assert source.classes == ("ants", "bees")
    assert len(source) == 40


def test_no_network_is_said_in_one_message(tmp_path):
    with pytest.raises(InputError, match="could not be fetched"):
        opened("http://127.0.0.1:9/{0..3}.tar")


def test_urls_of_other_kinds(tmp_path):
    numbered(tmp_path / "0.tar", [0, 1])
    assert len(opened(f"file://{tmp_path}/{{0..0}}.tar")) == 2
    assert not (tmp_path / "cache" / "fetched").exists()
    with pytest.raises(InputError, match=r"file://.*1.tar could not be fetched"):
        opened(f"file://{tmp_path}/{{0..1}}.tar")
    with pytest.raises(InputError, match="s3:// is not read"):
        opened("s3://bucket/{0..3}.tar")
    with pytest.raises(InputError, match="names no file"):
        opened("http://127.0.0.1:9/shards/")
