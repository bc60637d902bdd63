"""NumPy .npz files: MedMNIST's layout (train_images, train_labels, ...), Keras' (x_train, y_train, ...), or plain.

uint8 stays as it is. uint16 becomes float32 on 0 to 1 (divided by 65535), floats stay the file's own. Of volumes
(N, D, H, W) one slice is taken, as `frame` says, and samples are named by it. Objects are never unpickled, and the
shapes in the headers are checked before anything is loaded.
"""

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from skipway.data.memory import memory
from skipway.data.source import ArraySource, consecutive
from skipway.data.sources.layout import SPLIT_NAMES
from skipway.data.sources.tar_index import digest
from skipway.data_spec import DataSpec
from skipway.errors import InputError, stopped_by

LIMIT = 16 << 30  # bytes
_CLASS_NAMES = ("classes", "label_names", "class_names")
_EXPECTED = "train_images and train_labels (val_..., test_...), x_train and y_train (x_test ...), or images and labels"


def open_arrays(path: Path, spec: DataSpec) -> ArraySource:
    """Open a .npz file.

    Args:
        path: images (N, H, W), (N, H, W, C), (N, C, H, W) or volumes (N, D, H, W[, C]), C 1 or 3; labels (N,) or
            (N, 1), numbers or names, or (N, K) of 0 and 1 (multi-label; one class where each row has just one 1).
            `classes` or `label_names`, where there, names the numbers.
        spec: which slice of volumes, and whether bad images stop.

    Raises:
        InputError: not such a file, too large, or arrays that do not fit each other.
        ReadError: an image holds what is no number, and bad ones are to stop.
    """
    headers, fingerprint = _headers(path)
    pairs = _pairs(headers, path)
    wanted = [name for pair in pairs.values() for name in pair] + [name for name in _CLASS_NAMES if name in headers]
    _check_size(path, headers, wanted)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in wanted}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    named = next((arrays[name] for name in _CLASS_NAMES if name in arrays), None)
    classes, labels = to_labels([arrays[pair[1]] for pair in pairs.values()], named, path)
    images, taken = [], ""
    for images_name, labels_name in pairs.values():
        array = arrays.pop(images_name)
        if len(array) != len(arrays[labels_name]):
            raise InputError(f"{path}: {len(array):,} {images_name} and {len(arrays[labels_name]):,} {labels_name}")
        array, taken = _slice(array, spec.frame, f"{path}: {images_name}")
        images.append(to_images(array, f"{path}: {images_name}"))
    if len({(part.shape[1:], part.dtype) for part in images}) > 1:
        found = ", ".join(f"{pair[0]} {tuple(part.shape)}" for pair, part in zip(pairs.values(), images, strict=True))
        raise InputError(f"{path}: images must be alike in all splits, got {found}")
    counts = {split: len(part) for split, part in zip(pairs, images, strict=True)}
    splits = consecutive(counts)
    whole = torch.cat(images) if len(images) > 1 else images[0]
    source = ArraySource(whole, labels, classes, splits, path.stem + taken, fingerprint=fingerprint)
    return _without_bad(source, spec)


def _headers(path: Path) -> tuple[dict[str, tuple[tuple[int, ...], np.dtype]], str]:
    """Name -> (shape, dtype) of every array, and a fingerprint of the whole, from the file's directory."""
    headers, facts = {}, []
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                facts.append((info.filename, info.CRC, info.file_size))
                if not info.filename.endswith(".npy"):
                    continue
                with archive.open(info) as file:
                    version = np.lib.format.read_magic(file)
                    first = version == (1, 0)
                    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
                    shape, _, dtype = read(file)
                headers[info.filename.removesuffix(".npy")] = (shape, dtype)
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise InputError(f"{path} is not a whole .npz file: {' '.join(str(error).split())[:200]}") from error
    return headers, digest(facts)


def _pairs(headers: dict[str, Any], path: Path) -> dict[str, tuple[str, str]]:
    """Split -> the names of its images and its labels; "all" for one undivided set."""
    pairs: dict[str, tuple[str, str]] = {}
    for word, split in SPLIT_NAMES.items():
        for images, labels in ((f"{word}_images", f"{word}_labels"), (f"x_{word}", f"y_{word}")):
            if images in headers and labels in headers:
                pairs.setdefault(split, (images, labels))
    for images, labels in (("images", "labels"), ("x", "y")):
        if not pairs and images in headers and labels in headers:
            pairs["all"] = (images, labels)
    pairs = {split: pair for split, pair in pairs.items() if math.prod(headers[pair[0]][0]) > 0}
    if not pairs:
        found = ", ".join(sorted(headers)[:12]) or "no arrays"
        raise InputError(f"{path} must hold {_EXPECTED}; it has {found}")
    return {split: pairs[split] for split in ("all", "train", "val", "test") if split in pairs}


def _check_size(path: Path, headers: dict[str, tuple[tuple[int, ...], np.dtype]], wanted: list[str]) -> None:
    """Refuse objects, and what does not fit into memory, by the headers."""
    size = 0
    for name in wanted:
        shape, dtype = headers[name]
        if dtype.hasobject:
            raise InputError(f"{path}: {name} holds Python objects, which are never loaded; save it as numbers or text")
        wide = 4 if dtype.kind == "f" or dtype == np.uint16 else dtype.itemsize
        size += math.prod(shape) * max(dtype.itemsize + wide, 1)  # as loaded, and as it is kept
    limit = min(LIMIT, memory())
    if size > limit:
        raise InputError(
            f"{path} needs {size / 2**30:,.1f} GiB of memory, more than the {limit / 2**30:,.1f} GiB that an .npz may "
            "take; save its images as files in class folders, which are read one by one"
        )


def _slice(array: np.ndarray, frame: str, title: str) -> tuple[np.ndarray, str]:
    """The images as they are, or one slice of each volume and a word on which."""
    volumes = array.ndim == 5 or (array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] not in (1, 3))
    if not volumes:
        return array, ""
    depth = array.shape[1]
    place = {"first": 0, "middle": depth // 2, "last": depth - 1}.get(frame)
    place = int(frame) if place is None else place
    if place >= depth:
        raise InputError(f"{title} has slices 0 ... {depth - 1}; data.frame asks for {frame}")
    return array[:, place], f" slice {place}"


def to_images(array: np.ndarray, title: str) -> Tensor:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) of any number type -> (N, C, H, W) uint8, or float32 where it is deeper.

    Raises:
        InputError: another shape, or whole numbers that fit neither 8 nor 16 bits.
    """
    if array.ndim == 4 and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim == 3:
        array = array[:, None]
    elif array.ndim != 4 or array.shape[1] not in (1, 3):
        raise InputError(f"{title} must be (N, H, W) or (N, H, W, C) with C 1 or 3, got {array.shape}")
    kind = array.dtype.kind
    if kind == "b":
        array = array.astype(np.uint8) * 255
    elif kind in "iu" and array.dtype not in (np.uint8, np.uint16):
        if not 0 <= int(array.min()) <= int(array.max()) <= 255:
            raise InputError(f"{title} is {array.dtype} outside 0 ... 255: save it as uint8, uint16 or float32")
        array = array.astype(np.uint8)
    if array.dtype == np.uint16:
        array = array.astype(np.float32) / np.float32(65535)
    elif kind == "f":
        array = array.astype(np.float32)
    elif array.dtype != np.uint8:
        raise InputError(f"{title} must be numbers, got {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array))


def to_labels(parts: list[np.ndarray], named: np.ndarray | None, path: Path) -> tuple[tuple[str, ...], Tensor]:
    """Class names and labels, (N,) int64 or (N, K) uint8, of all splits.

    Args:
        parts: the labels of each split.
        named: names of the numbers 0 ... K-1, where the file has them.
        path: for messages.

    Raises:
        InputError: no labels, of other shapes, or numbers beyond the names.
    """
    parts = [part[:, 0] if part.ndim == 2 and part.shape[1] == 1 else part for part in parts]
    if len({part.shape[1:] for part in parts}) > 1 or parts[0].ndim not in (1, 2):
        shapes = ", ".join(str(part.shape) for part in parts)
        raise InputError(f"{path}: labels must be (N,), (N, 1) or (N, K), alike in all splits, got {shapes}")
    labels = np.concatenate(parts)
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.floor(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "biuU":
        raise InputError(f"{path}: labels must be whole numbers or names, got {labels.dtype}")
    names = None if named is None else _names(named)
    if labels.ndim == 2:
        return _several(labels, names, path)
    values, places = np.unique(labels, return_inverse=True)
    if names is None or labels.dtype.kind == "U":
        return tuple(str(value) for value in values), torch.from_numpy(places.astype(np.int64))
    if values[0] < 0 or values[-1] >= len(names):
        raise InputError(f"{path}: labels lie in {values[0]} ... {values[-1]}, but {len(names)} classes are named")
    return names, torch.from_numpy(labels.astype(np.int64))


def _several(labels: np.ndarray, names: tuple[str, ...] | None, path: Path) -> tuple[tuple[str, ...], Tensor]:
    """Columns of 0 and 1."""
    if labels.dtype.kind == "U" or not np.isin(labels, (0, 1)).all():
        raise InputError(f"{path}: labels of shape {labels.shape} must be columns of 0 and 1")
    names = names or tuple(str(column) for column in range(labels.shape[1]))
    if len(names) != labels.shape[1]:
        raise InputError(f"{path}: labels have {labels.shape[1]} columns, but {len(names)} classes are named")
    if (labels.sum(1) == 1).all():
        return names, torch.from_numpy(labels.argmax(1).astype(np.int64))
    return names, torch.from_numpy(labels.astype(np.uint8))


def _names(named: np.ndarray) -> tuple[str, ...]:
    flat = np.char.decode(named.ravel(), "utf-8", "replace") if named.dtype.kind == "S" else named.ravel()
    return tuple(str(name) for name in cast(Any, flat).tolist())


def _without_bad(source: ArraySource, spec: DataSpec) -> ArraySource:
    """The set without images that hold infinities or what is no number."""
    if not source.deep:
        return source
    good = torch.isfinite(source.images.flatten(1).sum(1, dtype=torch.float64))
    for index in (~good).nonzero()[:, 0].tolist():
        source.bad[source.name(index)] = "values that are infinite or no numbers"
    if source.bad and spec.bad_files == "stop":
        raise stopped_by(source.bad)
    if not good.any():
        raise InputError(f"none of the images in {spec.path} can be read: they are infinite or no numbers")
    for split, part in source.splits.items():
        source.splits[split] = part[good[part]]
    return source
