import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skipway.data.open import open_source
from skipway.data.sources import arrays
from skipway.data_spec import DataSpec
from skipway.errors import InputError, ReadError

rng = np.random.default_rng(0)


def opened(path: Path, **options) -> Any:
    return open_source(DataSpec(path=str(path), **options))


def saved(path: Path, **named) -> Path:
    np.savez(path, **named)
    return path


def images(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return rng.integers(0, 256, shape).astype(dtype)


def medmnist(**changes) -> dict[str, np.ndarray]:
    made = {}
    for split, count in (("train", 6), ("val", 3), ("test", 4)):
        made[f"{split}_images"] = images(count, 28, 28)
        made[f"{split}_labels"] = np.arange(count)[:, None] % 3
    return {**made, **changes}


def test_medmnist_layout(tmp_path):
    made = medmnist()
    source = opened(saved(tmp_path / "pathmnist.npz", **made))
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 6, "val": 3, "test": 4}
    assert source.classes == ("0", "1", "2")
    assert source.size == (28, 28)
    assert (source.channels, source.deep) == (1, False)
    for split in ("train", "val", "test"):
        for place, index in enumerate(source.splits[split].tolist()):
            assert source.read(index)[0].numpy().tolist() == made[f"{split}_images"][place].tolist()
            assert source.labels[index] == made[f"{split}_labels"][place, 0]
    assert source.name(3) == "pathmnist[3]"


def test_colour_with_channels_last_and_first(tmp_path):
    last = images(5, 8, 9, 3)
    source = opened(saved(tmp_path / "a.npz", images=last, labels=np.arange(5) % 2))
    assert list(source.splits) == ["all"]
    first = opened(saved(tmp_path / "b.npz", images=last.transpose(0, 3, 1, 2), labels=np.arange(5) % 2))
    assert source.images.equal(first.images)
    assert source.read(2).permute(1, 2, 0).numpy().tolist() == last[2].tolist()


def test_keras_layout_and_names_of_splits(tmp_path):
    made = {
        "x_train": images(4, 28, 28),
        "y_train": np.array([0, 1, 0, 1], np.uint8),
        "x_test": images(2, 28, 28),
        "y_test": np.array([1, 0], np.uint8),
    }
    source = opened(saved(tmp_path / "mnist.npz", **made))
    assert list(source.splits) == ["train", "test"]
    assert source.labels.tolist() == [0, 1, 0, 1, 1, 0]


def test_several_labels_and_one_hot_ones(tmp_path):
    several = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], np.uint8)
    source = opened(
        saved(tmp_path / "a.npz", images=images(3, 8, 8), labels=several, classes=np.array(["a", "b", "c"]))
    )
    assert source.labels.dtype == torch.uint8
    assert source.labels.tolist() == several.tolist()
    assert source.classes == ("a", "b", "c")
    one_hot = opened(saved(tmp_path / "b.npz", images=images(3, 8, 8), labels=np.eye(3, dtype=np.float32)[[2, 0, 1]]))
    assert one_hot.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("labels", "named", "classes", "numbers"),
    [
        (np.array(["bee", "ant", "bee"]), None, ("ant", "bee"), [1, 0, 1]),
        (np.array([b"bee", b"ant", b"bee"]), None, ("ant", "bee"), [1, 0, 1]),
        (np.array([3, 7, 3]), None, ("3", "7"), [0, 1, 0]),
        (np.array([0.0, 2.0, 0.0]), np.array(["a", "b", "c"]), ("a", "b", "c"), [0, 2, 0]),
    ],
)
def test_labels_by_name_and_number(tmp_path, labels, named, classes, numbers):
    more = {} if named is None else {"label_names": named}
    source = opened(saved(tmp_path / "a.npz", images=images(3, 8, 8), labels=labels, **more))
    assert source.classes == classes
    assert source.labels.tolist() == numbers


@pytest.mark.parametrize(("frame", "place"), [("middle", 5), ("first", 0), ("last", 9), ("7", 7)])
@pytest.mark.parametrize("tail", [(), (3,)])
def test_one_slice_of_a_volume_is_taken_and_said(tmp_path, frame, place, tail):
    volumes = images(2, 10, 12, 14, *tail)
    source = opened(saved(tmp_path / "organ.npz", images=volumes, labels=np.arange(2)), frame=frame)
    assert source.name(0) == f"organ slice {place}[0]"
    expected = volumes[:, place].transpose(0, 3, 1, 2) if tail else volumes[:, None, place]
    assert source.images.numpy().tolist() == expected.tolist()


def test_a_slice_beyond_the_volume(tmp_path):
    with pytest.raises(InputError, match=r"slices 0 ... 9; data.frame asks for 10"):
        opened(saved(tmp_path / "a.npz", images=images(2, 10, 12, 14), labels=np.arange(2)), frame="10")


def test_deep_values(tmp_path):
    sixteen = rng.integers(0, 65536, (2, 4, 4)).astype(np.uint16)
    source = opened(saved(tmp_path / "a.npz", images=sixteen, labels=np.arange(2)))
    assert source.deep
    assert np.rint(source.images.numpy() * np.float64(65535)).astype(int)[:, 0].tolist() == sixteen.tolist()
    floats = rng.normal(size=(2, 4, 4))
    source = opened(saved(tmp_path / "b.npz", images=floats, labels=np.arange(2)))
    assert source.images.dtype == torch.float32
    assert source.images[:, 0].numpy().tolist() == floats.astype(np.float32).tolist()
    wide = opened(saved(tmp_path / "c.npz", images=np.array([[[0, 255]]], np.int64), labels=np.arange(1)))
    assert wide.images.tolist() == [[[[0, 255]]]]
    mask = opened(saved(tmp_path / "d.npz", images=np.array([[[True, False]]]), labels=np.arange(1)))
    assert mask.images.tolist() == [[[[255, 0]]]]


def test_images_that_are_no_numbers_are_named(tmp_path):
    floats = np.ones((4, 4, 4), np.float32)
    floats[1, 0, 0], floats[2, 0, 0] = np.nan, np.inf
    path = saved(tmp_path / "a.npz", images=floats, labels=np.arange(4))
    source = opened(path)
    assert list(source.bad) == ["a[1]", "a[2]"]
    assert source.splits["all"].tolist() == [0, 3]
    with pytest.raises(ReadError, match=r"a\[1\]"):
        opened(path, bad_files="stop")
    with pytest.raises(InputError, match="none of the images"):
        opened(saved(tmp_path / "b.npz", images=floats[1:3], labels=np.arange(2)))


class _Runs:
    ran = False

    def __reduce__(self):
        return setattr, (_Runs, "ran", True)


@pytest.mark.parametrize("name", ["images", "labels", "classes"])
def test_objects_are_never_unpickled(tmp_path, name):
    made = {"images": images(1, 4, 4), "labels": np.arange(1), "classes": np.array(["a"])}
    with pytest.raises(InputError, match=f"{name} holds Python objects"):
        opened(saved(tmp_path / "a.npz", **{**made, name: np.array([_Runs()], dtype=object)}))
    assert not _Runs.ran


def test_a_header_that_promises_too_much_is_not_believed(tmp_path):
    path = saved(tmp_path / "a.npz", images=images(1, 4, 4), labels=np.arange(1))
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    before = members["images.npy"]
    text = before[10 : 10 + struct.unpack("<H", before[8:10])[0]]
    huge = text.replace(b"(1, 4, 4), }", b"(999999, 999, 999), }")[: len(text) - 1].rstrip() + b" "
    members["images.npy"] = before[:8] + struct.pack("<H", len(huge)) + huge + before[10 + len(text) :]
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    with pytest.raises(InputError, match="GiB of memory"):
        opened(path)


def test_the_bound_on_memory(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.npz", images=images(4, 16, 16), labels=np.arange(4))
    assert len(opened(path)) == 4
    monkeypatch.setattr(arrays, "LIMIT", 2000)
    with pytest.raises(InputError, match="class folders"):
        opened(path)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"pictures": images(2, 4, 4)}, "it has pictures"),
        ({}, "it has no arrays"),
        ({"images": images(0, 4, 4), "labels": np.arange(0)}, "must hold"),
        ({"images": images(3, 4, 4), "labels": np.arange(2)}, "3 images and 2 labels"),
        ({"images": images(2, 4), "labels": np.arange(2)}, r"must be \(N, H, W\)"),
        ({"images": images(2, 4, 4), "labels": np.array([0.5, 1])}, "whole numbers or names"),
        ({"images": images(2, 4, 4), "labels": np.array([[0, 2], [1, 1]])}, "columns of 0 and 1"),
        (
            {"images": images(2, 4, 4), "labels": np.array([[0, 0], [1, 1]]), "classes": np.array(["a"])},
            "1 classes are named",
        ),
        ({"images": images(2, 4, 4), "labels": np.array([0, 5]), "classes": np.array(["a", "b"])}, r"0 ... 5, but 2"),
        ({"images": np.array([[["a"]]]), "labels": np.arange(1)}, "must be numbers"),
        ({"images": np.array([[[300]]], np.int32), "labels": np.arange(1)}, "outside 0 ... 255"),
        (medmnist(val_images=images(3, 14, 14)), "alike in all splits"),
        (medmnist(val_images=rng.normal(size=(3, 28, 28))), "alike in all splits"),
        (medmnist(val_labels=np.zeros((3, 5), int)), "alike in all splits"),
    ],
)
def test_arrays_that_do_not_fit_cost_one_message(tmp_path, made, message):
    with pytest.raises(InputError, match=message):
        opened(saved(tmp_path / "a.npz", **made))


def test_no_npz_and_a_damaged_one(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a whole .npz"):
        opened(path)
    np.savez_compressed(path, images=images(9, 9, 9), labels=np.arange(9))
    data = bytearray(path.read_bytes())
    data[300:400] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"cannot be read|not a whole"):
        opened(path)


def test_the_fingerprint_follows_the_bytes(tmp_path):
    made = medmnist()
    first = opened(saved(tmp_path / "a.npz", **made)).fingerprint
    assert opened(saved(tmp_path / "b.npz", **made)).fingerprint == first
    made["test_images"][0, 0, 0] ^= 1
    assert opened(saved(tmp_path / "a.npz", **made)).fingerprint != first
