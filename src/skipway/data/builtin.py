"""Data sets that go by a name: a sample inside the package, the rest from local copies or torchvision's download."""

import gzip
import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from skipway.cache import cache_folder
from skipway.data.source import ArraySource, consecutive
from skipway.errors import InputError

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
T = TypeVar("T")
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


def read_idx(path: Path) -> np.ndarray:
    """A file in the idx layout of MNIST (http://yann.lecun.com/exdb/mnist), gzipped or not, uint8.

    Raises:
        InputError: not such a file, or cut short.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        dims = data[3]
        shape = np.frombuffer(data, ">u4", dims, 4).astype(int)
        return np.frombuffer(data, np.uint8, int(shape.prod()), 4 + 4 * dims).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise InputError(f"{path} is not a whole idx file: {error}") from error


def _source(
    title: str,
    classes: tuple[str, ...],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> ArraySource:
    """Two pairs of images (N, H, W[, C]) uint8 and labels -> one source."""
    images = _images(np.concatenate([train[0], test[0]]))
    labels = torch.from_numpy(np.concatenate([train[1], test[1]]).astype(np.int64))
    return ArraySource(images, labels, classes, consecutive({"train": len(train[1]), "test": len(test[1])}), title)


def _images(array: np.ndarray) -> Tensor:
    """(N, H, W) or (N, H, W, C) uint8 -> (N, C, H, W)."""
    tensor = torch.from_numpy(array)
    return tensor[:, None] if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()


def fashion_sample() -> ArraySource:
    """12,000 images of Fashion-MNIST, inside the package: 10,000 train, 2,000 test, 28x28, grey."""
    with files("skipway.data").joinpath("fashion-sample.npz").open("rb") as file, np.load(file) as arrays:
        train = arrays["train_images"], arrays["train_labels"]
        test = arrays["test_images"], arrays["test_labels"]
    return _source("fashion-sample", FASHION_CLASSES, train, test)


def fashion() -> ArraySource:
    """Fashion-MNIST: 60,000 train, 10,000 test, 28x28, grey; a local copy where there is one, else downloaded."""
    places = [DEBIAN_FASHION, cache_folder() / "FashionMNIST/raw"]
    if shared := os.environ.get("SKIPWAY_DATA"):
        places.insert(0, Path(shared) / "fashion-mnist")
    found = [p for p in places if any(p.glob("train-images-idx3-ubyte*"))]
    if not found:
        from torchvision.datasets import FashionMNIST

        _download(lambda root: FashionMNIST(root, download=True), "fashion", places)
    folder = found[0] if found else places[-1]

    def part(prefix: str) -> tuple[np.ndarray, np.ndarray]:
        names = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        images, labels = (next(iter(sorted(folder.glob(f"{name}*"))), folder / name) for name in names)
        return read_idx(images), read_idx(labels)

    return _source("fashion", FASHION_CLASSES, part("train"), part("t10k"))


def cifar10() -> ArraySource:
    """CIFAR-10 (Krizhevsky 2009): 50,000 train, 10,000 test, 32x32, colour."""
    return _cifar("CIFAR10")


def cifar100() -> ArraySource:
    """CIFAR-100 (Krizhevsky 2009): 50,000 train, 10,000 test, 32x32, colour."""
    return _cifar("CIFAR100")


def _cifar(kind: str) -> ArraySource:
    from torchvision import datasets

    make = getattr(datasets, kind)
    train, test = _download(
        lambda root: (make(root, train=True, download=True), make(root, train=False, download=True)),
        kind.lower(),
        [cache_folder()],
    )
    pairs = [(np.asarray(part.data), np.asarray(part.targets)) for part in (train, test)]
    return _source(kind.lower(), tuple(train.classes), pairs[0], pairs[1])


def digits() -> ArraySource:
    """scikit-learn's digits (Alpaydin and Kaynak 1998): 1,438 train, 359 test (every fifth), 8x8, grey."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("scikit-learn, which has the digits, is not installed: pip install 'skipway[see]'") from error
    pixels, labels = load_digits(return_X_y=True)  # (N, 64) of 0 to 16
    images = np.round(np.asarray(pixels).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = np.asarray(labels)
    test = np.arange(len(labels)) % 5 == 4
    return _source("digits", tuple("0123456789"), (images[~test], labels[~test]), (images[test], labels[test]))


def _download(fetch: Callable[[Path], T], name: str, places: list[Path]) -> T:
    """Run torchvision's download, and say how to bring the files where it fails."""
    root = cache_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        return fetch(root)
    except (OSError, RuntimeError) as error:
        looked = ", ".join(str(p) for p in places)
        raise InputError(
            f"{name} could not be downloaded ({error}). Put its files into one of these folders and try again: {looked}"
        ) from error


BUILTIN: dict[str, Callable[[], ArraySource]] = {
    "fashion-sample": fashion_sample,
    "fashion": fashion,
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
}
