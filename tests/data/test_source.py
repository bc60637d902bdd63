import gzip
import hashlib
import pickle
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_photos, save_image
from torchvision import datasets

from skipway.data import builtin
from skipway.data.builtin import fashion_sample, read_idx
from skipway.data.open import open_source
from skipway.data.split import hold_out, make_splits
from skipway.errors import InputError, ReadError
from skipway.spec import DataSpec


def opened(path: Path | str, **options):
    return open_source(DataSpec(path=str(path), **options))


def test_fashion_sample_is_balanced_and_small():
    source = fashion_sample()
    assert source.images.shape == (12_000, 1, 28, 28)
    assert len(source.classes) == 10
    for split, per_class in (("train", 1000), ("test", 200)):
        assert source.labels[source.splits[split]].bincount().tolist() == [per_class] * 10
    file = Path(builtin.__file__).parent / "fashion-sample.npz"
    assert file.stat().st_size <= 6_000_000
    assert "Zalando" in file.with_suffix(".LICENSE").read_text()


def test_folder_of_class_folders_is_one_undivided_set(tmp_path):
    source = opened(make_photos(tmp_path / "p", classes=("bees", "ants", "wasps"), num=3))
    assert source.classes == ("ants", "bees", "wasps")
    assert {name: part.tolist() for name, part in source.splits.items()} == {"all": list(range(9))}
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert source.name(4) == "bees/001.png"
    assert source.read(4).shape == (3, 16, 16)
    assert source.size == (16, 16)


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "val"), ["train", "val"]),
        (("Train", "VALID", "Test"), ["train", "val", "test"]),
        (("train", "validation"), ["train", "val"]),
        (("test",), ["test"]),
    ],
)
def test_split_folders_are_known_in_any_case(tmp_path, folders, splits):
    source = opened(make_photos(tmp_path / "p", splits=folders, num=2))
    assert list(source.splits) == splits
    assert all(len(indices) == 4 for indices in source.splits.values())
    assert sorted(torch.cat(list(source.splits.values())).tolist()) == list(range(4 * len(splits)))


def test_class_names_map_by_name_between_splits(tmp_path):
    make_photos(tmp_path / "p", splits=("train",), classes=("a", "b", "c"), num=2)
    make_photos(tmp_path / "p", splits=("val",), classes=("c",), num=2)
    source = opened(tmp_path / "p")
    assert source.labels[source.splits["val"]].tolist() == [2, 2]


def test_nested_folders_and_litter(tmp_path):
    root = make_photos(tmp_path / "p", num=2)
    save_image(root / "ants" / "deep" / "er" / "x.png", 9)
    for litter in (".DS_Store", "ants/.hidden.png", "ants/Thumbs.db", ".git/x/y.png", "__MACOSX/ants/z.png"):
        (root / litter).parent.mkdir(parents=True, exist_ok=True)
        (root / litter).write_bytes(b"x")
    source = opened(root)
    assert source.classes == ("ants", "bees")
    assert len(source) == 5
    assert source.bad == {}


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = make_photos(tmp_path / "p", num=2)
    (root / "ants" / "again").symlink_to(root / "ants")
    make_photos(tmp_path / "elsewhere", classes=("more",), num=3)
    (root / "bees" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    source = opened(root)
    assert source.labels.bincount().tolist() == [2, 5]


def test_files_that_are_no_images_are_left_out_and_named(tmp_path):
    root = make_photos(tmp_path / "p", num=2)
    (root / "ants" / "notes.txt").write_text("hello")
    (root / "bees" / "broken.jpg").write_bytes(b"not a jpeg")
    source = opened(root)
    assert source.splits["all"].tolist() == [0, 1, 2, 3]
    assert source.bad == {
        "ants/notes.txt": "not an image file",
        "bees/broken.jpg": "not an image, or of a format that is not read",
    }
    with pytest.raises(ReadError, match=r"ants/notes\.txt: not an image file \(--bad-files skip"):
        opened(root, bad_files="stop")


def test_folder_is_never_written(tmp_path):
    root = make_photos(tmp_path / "p", num=2)
    before = sorted((str(p), p.stat().st_mtime_ns) for p in root.rglob("*"))
    source = opened(root)
    [source.read(i) for i in range(4)]
    assert sorted((str(p), p.stat().st_mtime_ns) for p in root.rglob("*")) == before


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def test_fashion_is_found_in_a_local_copy(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "fashion-mnist"
    for prefix, count in (("train", 20), ("t10k", 10)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", np.full((count, 28, 28), count))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    monkeypatch.setenv("SKIPWAY_DATA", str(tmp_path / "data"))
    source = opened("fashion")
    assert source.images is not None
    assert source.images.shape == (30, 1, 28, 28)
    assert source.images[source.splits["test"]].unique().tolist() == [10]
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x03short"))
    with pytest.raises(InputError, match="is not a whole idx file"):
        opened("fashion")


def test_read_idx_is_the_layout_of_mnist(tmp_path):
    array = np.arange(24).reshape(2, 3, 4)
    write_idx(tmp_path / "x.gz", array)
    assert np.array_equal(read_idx(tmp_path / "x.gz"), array)


@pytest.fixture
def local_server():
    """Serves a folder on the loopback address until the test ends: folder -> its address."""
    servers = []

    def serve(folder: Path) -> str:
        class Quiet(SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_cifar_downloads_through_torchvision(tmp_path, monkeypatch, local_server):
    """A stand-in archive on a local server goes through torchvision's own download and checks."""
    root = tmp_path / "server" / "cifar-10-batches-py"
    root.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3072), dtype=np.uint8)
    batches = {f"data_batch_{i}": pixels for i in range(1, 6)} | {"test_batch": pixels}
    names = [f"class{i}" for i in range(10)]
    sums = {}
    for name, content in [
        *((n, {"data": d, "labels": list(range(10))}) for n, d in batches.items()),
        ("batches.meta", {"label_names": names}),
    ]:
        data = pickle.dumps(content)
        (root / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    archive = tmp_path / "server" / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root, root.name)
    kind = datasets.CIFAR10
    monkeypatch.setattr(kind, "url", f"{local_server(archive.parent)}/cifar.tar.gz")
    monkeypatch.setattr(kind, "filename", "cifar.tar.gz")
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(kind, "train_list", [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]})
    source = opened("cifar10")
    assert source.images is not None
    assert source.images.shape == (60, 3, 32, 32)
    assert source.classes == tuple(names)
    assert torch.equal(source.images[0].flatten(), torch.from_numpy(pixels[0]))


def test_failed_download_says_how_to_bring_the_files(tmp_path, monkeypatch, local_server):
    monkeypatch.setattr(datasets.CIFAR100, "url", f"{local_server(tmp_path)}/nothing.tar.gz")
    with pytest.raises(
        InputError, match=r"cifar100 could not be downloaded .* Put its files into one of these folders"
    ):
        opened("cifar100")


def test_hold_out_is_stratified_seeded_and_disjoint():
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 3 + [3])
    everything = torch.arange(len(labels))
    kept, held = hold_out(everything, labels, 0.1, 0)
    assert labels[held].bincount(minlength=4).tolist() == [10, 5, 1, 0]
    assert torch.equal(torch.cat([kept, held]).sort().values, everything)
    assert torch.equal(hold_out(everything, labels, 0.1, 0)[1], held)
    assert not torch.equal(hold_out(everything, labels, 0.1, 1)[1], held)


def test_splits_come_from_the_data_where_it_has_them(tmp_path):
    source = opened(make_photos(tmp_path / "p", splits=("train", "val", "test"), num=3))
    splits = make_splits(source, DataSpec())
    assert not splits.held_out
    assert splits.test is not None
    assert torch.equal(splits.train, source.splits["train"])
    assert torch.equal(splits.val, source.splits["val"])


def test_reading_a_file_does_not_intern_its_name(tmp_path, monkeypatch):
    """pathlib does, and worker processes then build the table of interned names anew, again and again."""
    source = opened(make_photos(tmp_path / "photos"))
    interned: list[str] = []
    intern = sys.intern
    monkeypatch.setattr(sys, "intern", lambda text: interned.append(text) or intern(text))
    for index in range(4):
        source.read(index)
    read = set(interned)
    assert not {Path(source.name(index)).name for index in range(4)} & read
