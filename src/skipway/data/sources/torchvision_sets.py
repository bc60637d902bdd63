"""torchvision's data sets by name: `torchvision:Flowers102`. They are downloaded into the cache by torchvision itself.

What a class of torchvision.datasets takes is read from its signature (`train`, `split`, `image_set`, `download`), and
what it holds from its attributes: arrays become one tensor in memory, paths a source of files, and anything else is
asked image by image.
"""

import contextlib
import inspect
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skipway.cache import cache_folder
from skipway.data.files import DiskFiles, Names, file_source
from skipway.data.images.decode import from_pil
from skipway.data.images.reading import PHOTO, Reading
from skipway.data.source import ArraySource, Source, consecutive
from skipway.data.sources.arrays import to_images
from skipway.data.sources.tar_index import digest
from skipway.data_spec import DataSpec
from skipway.errors import InputError, ReadError, unknown

PREFIX = "torchvision:"
FIT = (
    "CIFAR10", "CIFAR100", "CLEVRClassification", "Caltech101", "Caltech256", "Country211", "DTD", "EMNIST", "EuroSAT",
    "FER2013", "FGVCAircraft", "FashionMNIST", "Flowers102", "Food101", "GTSRB", "ImageNet", "Imagenette", "KMNIST",
    "LFWPeople", "MNIST", "OxfordIIITPet", "PCAM", "Places365", "QMNIST", "RenderedSST2", "SEMEION", "STL10", "SUN397",
    "SVHN", "StanfordCars", "USPS",
)  # fmt: skip
_CALLED = {"train": ("train", "trainval", "train-standard"), "val": ("val", "valid"), "test": ("test",)}
_SPECIAL = {
    "EMNIST": {name: {"split": "balanced", "train": name == "train", "download": True} for name in ("train", "test")}
}


def open_torchvision(spec: DataSpec) -> Source:
    """Open a data set of torchvision's that is images with one label each.

    Args:
        spec: its path is torchvision:NAME, in any case; how files are read.

    Raises:
        InputError: no such set, one for another task, or one that cannot be downloaded.
    """
    from torchvision import datasets

    asked = spec.path.removeprefix(PREFIX).lower()
    name = next((name for name in FIT if name.lower() == asked), "")
    if not name:
        if asked in {other.lower() for other in datasets.__all__}:
            raise InputError(f"{spec.path} is not a set of images with one label each; these are: {', '.join(FIT)}")
        raise unknown("data set of torchvision", asked, [name.lower() for name in FIT])
    parts = _parts(getattr(datasets, name), name)
    found = {split: _hold(part) for split, part in parts.items()}
    classes, labels = _by_name(list(parts.values()), [held.labels for held in found.values()])
    splits = consecutive({split: len(held.labels) for split, held in found.items()})
    title = name.lower()
    if all(held.images is not None for held in found.values()):
        images = torch.cat([to_images(held.images, spec.path) for held in found.values() if held.images is not None])
        return ArraySource(images, labels, classes, splits, title, fingerprint=digest(title, images.numpy()))
    if all(held.paths for held in found.values()):
        root = cache_folder().absolute()
        names = Names.of(os.path.relpath(path, root) for held in found.values() for path in held.paths)
        files = DiskFiles(root, names, digest(title, names.blob, names.ends))
        return file_source(files, labels, classes, splits if list(splits) != ["all"] else {}, spec)
    return AskedSource(tuple(parts.values()), labels, classes, splits, title)


def _parts(kind: Any, name: str) -> dict[str, Any]:
    """Split -> the data set object; "all" where it has no splits."""
    parameters = inspect.signature(kind).parameters
    more = {"download": True} if "download" in parameters else {}
    if name in _SPECIAL:
        ways = {split: [arguments] for split, arguments in _SPECIAL[name].items()}
    elif "train" in parameters:
        ways = {split: [{"train": split == "train", **more}] for split in ("train", "test")}
    elif key := next((key for key in ("split", "image_set") if key in parameters), ""):
        ways = {split: [{key: value, **more} for value in values] for split, values in _CALLED.items()}
    else:
        ways = {"all": [more]}
    made = {split: _first(kind, name, options) for split, options in ways.items()}
    return {split: part for split, part in made.items() if part is not None}


def _first(kind: Any, name: str, options: list[dict[str, Any]]) -> Any:
    """The data set by the first arguments that it knows; None where it knows none, or has no labels for them."""
    root = cache_folder()
    for arguments in options:
        try:
            root.mkdir(parents=True, exist_ok=True)
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for what was asked for
                made = kind(root, **arguments)
        except ImportError as error:
            raise InputError(f"{PREFIX}{name} needs {error.name}: pip install {error.name}") from error
        except ValueError as error:
            if "Unknown value" in str(error):
                continue
            raise _failed(name, root, error) from error
        except (OSError, RuntimeError, EOFError, KeyError, IndexError) as error:
            raise _failed(name, root, error) from error
        unlabelled = next((value for value in getattr(made, "_labels", [])[:1]), 0) is None
        return None if unlabelled else made
    return None


def _failed(name: str, root: Path, error: Exception) -> InputError:
    said = " ".join(str(error).split())[:200]
    return InputError(
        f"{PREFIX}{name} could not be made ready ({said}). Put its files under {root}, laid out as "
        f"torchvision.datasets.{name} expects them below its root, and try again"
    )


@dataclass(frozen=True)
class _Held:
    """What a data set object holds: labels (N,) int64, and images as an array, or paths, or neither."""

    labels: np.ndarray
    images: np.ndarray | None = None
    paths: Sequence[str] = ()


def _hold(part: Any) -> _Held:
    """Look at the attributes that torchvision's classes keep their samples in."""
    labels = next((getattr(part, key) for key in ("targets", "labels", "_labels", "y") if hasattr(part, key)), None)
    for key in ("samples", "_samples", "imgs"):
        pairs = getattr(part, key, None) or [("", 0)]
        if isinstance(pairs[0][0], str | os.PathLike) and pairs[0][0]:
            return _Held(_numbers([label for _, label in pairs]), paths=[os.fspath(path) for path, _ in pairs])
    for key in ("data", "_image_files", "_images"):
        held = getattr(part, key, None)
        if held is None or labels is None:
            continue
        if isinstance(held, np.ndarray | Tensor) and len(held) == len(labels):
            return _Held(_numbers(labels), images=np.asarray(held))
        if isinstance(held, list) and held and isinstance(held[0], str | os.PathLike):
            return _Held(_numbers(labels), paths=[os.fspath(path) for path in held])
    if labels is None:
        labels = [part[i][1] for i in range(len(part))]
    return _Held(_numbers(labels))


def _numbers(labels: Any) -> np.ndarray:
    """(N,) int64; of several columns the first, as torchvision takes it for QMNIST."""
    array = np.asarray(labels)
    array = array[:, 0] if array.ndim == 2 else array
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array) or array.min() < 0:
        raise InputError("torchvision's labels are not whole numbers from 0: the set is damaged or not fit")
    return array.astype(np.int64)


def _by_name(parts: Sequence[Any], numbers: Sequence[np.ndarray]) -> tuple[tuple[str, ...], Tensor]:
    """Class names, else their numbers, and all labels; some classes number each split by what it holds."""
    named = [_names(part) for part in parts]
    count = max(int(labels.max()) for labels in numbers) + 1
    if any(len(names) <= labels.max() for names, labels in zip(named, numbers, strict=True)):
        return tuple(str(i) for i in range(count)), torch.from_numpy(np.concatenate(numbers))
    classes = max(named, key=len)
    where = {name: i for i, name in enumerate(classes)}
    if any(name not in where for names in named for name in names):
        raise InputError("torchvision names other classes in each split: the set is damaged or not fit")
    ours = [np.array([where[name] for name in names])[labels] for names, labels in zip(named, numbers, strict=True)]
    return classes, torch.from_numpy(np.concatenate(ours))


def _names(part: Any) -> tuple[str, ...]:
    names = next((getattr(part, key) for key in ("classes", "categories") if getattr(part, key, None)), ())
    return tuple(", ".join(name) if isinstance(name, tuple | list) else str(name) for name in names)


@dataclass(frozen=True)
class AskedSource:
    """A set whose images torchvision hands out one by one; implements Source.

    Args:
        parts: the data set of each split.
        labels, classes, splits: as in Source.
        title: samples are called "title[index]".
    """

    parts: tuple[Any, ...]
    labels: Tensor
    classes: tuple[str, ...]
    splits: dict[str, Tensor]
    title: str
    bad: dict[str, str] = field(default_factory=dict)
    channels: int = 3
    deep: bool = False
    reading: Reading = PHOTO
    groups: Tensor | None = None
    images: Tensor | None = None
    size: tuple[int, int] | None = None
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """`title[index]`."""
        return f"{self.title}[{index}]"

    def read(self, index: int, at_least: int = 0) -> Tensor:
        """One image, (3, H, W) uint8. Raises ReadError."""
        place = index
        for part in self.parts:
            if place < len(part):
                break
            place -= len(part)
        try:
            return from_pil(part[place][0], self.channels)
        except Exception as error:  # torchvision's readers raise anything
            raise ReadError(self.name(index), " ".join(str(error).split())[:120] or type(error).__name__) from error
