import pickle
import struct
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_image
from PIL import Image
from torchvision import datasets

from skipway.data.open import open_source
from skipway.data.sources.torchvision_sets import FIT
from skipway.data_spec import DataSpec
from skipway.errors import InputError

rng = np.random.default_rng(0)


def opened(name: str) -> Any:
    return open_source(DataSpec(path=f"torchvision:{name}", workers=0))


@pytest.fixture
def root(tmp_path) -> Path:
    """The cache, where torchvision's files are put."""
    (tmp_path / "cache").mkdir(exist_ok=True)
    return tmp_path / "cache"


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_sets_in_mnists_files(root, name):
    parts = {}
    for prefix, count in (("train", 7), ("t10k", 4)):
        parts[prefix] = rng.integers(0, 256, (count, 28, 28), np.uint8), (np.arange(count) % 10).astype(np.uint8)
        write_idx(root / name / "raw" / f"{prefix}-images-idx3-ubyte", parts[prefix][0])
        write_idx(root / name / "raw" / f"{prefix}-labels-idx1-ubyte", parts[prefix][1])
    source = opened(name.lower())
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 7, "test": 4}
    assert source.images[:, 0].numpy().tolist() == np.concatenate([parts["train"][0], parts["t10k"][0]]).tolist()
    assert source.labels.tolist() == [*range(7), *range(4)]
    assert source.classes == tuple(getattr(datasets, name).classes)
    assert source.channels == 1


def test_cifar10_of_pickles(root, monkeypatch):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    pixels = {}
    for name in ["data_batch_1", "test_batch"]:
        pixels[name] = rng.integers(0, 256, (5, 3072), np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels[name], "labels": [0, 1, 2, 3, 1]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b", "c", "d"]}))
    for attribute, value in (
        ("train_list", [["data_batch_1", None]]),
        ("test_list", [["test_batch", None]]),
        ("meta", {"filename": "batches.meta", "key": "label_names", "md5": None}),
    ):
        monkeypatch.setattr(datasets.CIFAR10, attribute, value)
    source = opened("CIFAR10")
    assert source.classes == ("a", "b", "c", "d")
    assert source.labels.tolist() == [0, 1, 2, 3, 1] * 2
    assert source.read(7).flatten().numpy().tolist() == pixels["test_batch"][2].tolist()
    assert source.read(7).equal(torch.from_numpy(pixels["test_batch"][2].reshape(3, 32, 32)))


def test_dtd_is_a_source_of_files(root):
    folder = root / "dtd" / "dtd"
    for split, names in (("train", ["a/1", "b/2"]), ("val", ["b/3"]), ("test", ["a/4", "b/5"])):
        (folder / "labels").mkdir(parents=True, exist_ok=True)
        (folder / "labels" / f"{split}1.txt").write_text("".join(f"{name}.jpg\n" for name in names))
        for name in names:
            save_image(folder / "images" / f"{name}.jpg", int(name[-1]))
    source = opened("DTD")
    assert source.classes == ("a", "b")
    assert {split: source.labels[part].tolist() for split, part in source.splits.items()} == {
        "train": [0, 1],
        "val": [1],
        "test": [0, 1],
    }
    assert source.name(2).endswith("images/b/3.jpg")
    expected = datasets.DTD(root, split="test")[1][0]
    assert source.read(4).permute(1, 2, 0).numpy().tolist() == np.asarray(expected).tolist()
    (folder / "images" / "b" / "2.jpg").write_bytes(b"no image")
    assert len(opened("DTD").bad) == 1


def test_pets_are_split_into_trainval_and_test(root):
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / "trainval.txt").write_text("big_cat_1 1 1 1\nsmall_dog_1 2 1 1\n")
    (folder / "annotations" / "test.txt").write_text("small_dog_2 2 1 1\nbig_cat_2 1 1 1\n")
    for name in ("big_cat_1", "small_dog_1", "small_dog_2", "big_cat_2"):
        save_image(folder / "images" / f"{name}.jpg", 1)
    source = opened("oxfordiiitpet")
    assert source.classes == ("Big Cat", "Small Dog")
    assert list(source.splits) == ["train", "test"]
    assert source.labels.tolist() == [0, 1, 1, 0]


def test_eurosat_is_undivided(root):
    for name in ("Forest", "River"):
        save_image(root / "eurosat" / "2750" / name / "1.jpg", 1)
    source = opened("EuroSAT")
    assert list(source.splits) == ["all"]
    assert source.classes == ("Forest", "River")


class Asked:
    """A set that hands out images and labels and holds nothing else."""

    def __init__(self, root, split="train"):
        if split not in ("train", "valid"):
            raise ValueError(f"Unknown value '{split}' for argument split. Valid values are {{'train', 'valid'}}.")
        self.count = {"train": 3, "valid": 2}[split]

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == 9:
            raise OSError("gone")
        return Image.new("L", (4 + index, 5), 10 * self.count + index), index


def test_a_set_that_holds_neither_arrays_nor_paths(monkeypatch):
    monkeypatch.setattr(datasets, "PCAM", Asked)
    source = opened("PCAM")
    assert {split: part.tolist() for split, part in source.splits.items()} == {"train": [0, 1, 2], "val": [3, 4]}
    assert source.classes == ("0", "1", "2")
    assert source.read(4).shape == (3, 5, 5)
    assert source.read(4).unique().tolist() == [21]
    assert source.name(4) == "pcam[4]"


def test_channels_first_arrays(monkeypatch):
    class Svhn:
        def __init__(self, root, split="train", download=False):
            if split not in ("train", "test", "extra"):
                raise ValueError("Unknown value 'val' for argument split.")
            assert download
            print("Using downloaded and verified file")
            self.data, self.labels = np.full((2, 3, 8, 6), ord(split[1]), np.uint8), np.arange(2)

    monkeypatch.setattr(datasets, "SVHN", Svhn)
    source = opened("SVHN")
    assert source.images.shape == (4, 3, 8, 6)
    assert source.classes == ("0", "1")


def test_what_torchvision_prints_is_kept_off_stdout(monkeypatch, capsys):
    test_channels_first_arrays(monkeypatch)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Using downloaded" in captured.err


def test_a_download_that_fails_says_where_the_files_go(monkeypatch, root):
    def fail(*arguments, **more):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    for name in ("MNIST", "Flowers102", "Food101"):
        with pytest.raises(InputError, match="no network here") as caught:
            opened(name)
        assert str(root) in str(caught.value)
        assert f"torchvision.datasets.{name}" in str(caught.value)


def test_a_missing_library_is_named(monkeypatch):
    class Needs:
        def __init__(self, root, split="train"):
            raise ModuleNotFoundError("No module named 'h5py'", name="h5py")

    monkeypatch.setattr(datasets, "PCAM", Needs)
    with pytest.raises(InputError, match="pip install h5py"):
        opened("PCAM")


def test_sets_for_other_tasks_are_refused_with_those_that_fit():
    for name in ("Kitti", "VOCDetection", "FakeData", "Kinetics", "ImageFolder"):
        with pytest.raises(InputError, match="images with one label each.*Flowers102"):
            opened(name)


def test_an_unknown_name_brings_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'flowers102'"):
        opened("flowers")


def test_every_name_that_fits_is_torchvisions():
    assert set(FIT) <= set(datasets.__all__)
