"""The images of peers.py: synthetic, made once, and the two ways in which its peers read them."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

MEAN, STD = 0.45, 0.25
CLASSES = 10
ENDLESS = 10_000_000  # images of an epoch, so that no peer pays for the end of one


@dataclass(frozen=True)
class Job:
    """network "resnet18" or "resnet50"; data a .npz file or a folder of JPEG files with train/; born in seconds."""

    network: str
    size: int
    batch: int
    data: Path
    seconds: float
    device: str
    born: float


def write_images(folder: Path, size: int, train: int, val: int) -> Path:
    """Smooth random images: a .npz file at 32 pixels, a folder of JPEG files (1.4 times as large) above."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", train), ("val", val)):
        coarse = [Image.fromarray(p) for p in rng.integers(0, 256, (number, 8, 8, 3), dtype=np.uint8)]
        labels = np.arange(number) % CLASSES
        if size == 32:
            arrays |= {f"x_{split}": np.stack([np.asarray(i.resize((32, 32))) for i in coarse]), f"y_{split}": labels}
            continue
        for number, (image, label) in enumerate(zip(coarse, labels, strict=True)):
            file = folder / "images" / split / f"class{label}" / f"{number:05}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.resize((size * 7 // 5, size * 6 // 5), Image.Resampling.BICUBIC).save(file)
    if size == 32:
        np.savez(folder / "images.npz", **arrays)  # pyrefly: ignore[bad-argument-type]
    return folder / ("images.npz" if size == 32 else "images")


def count(data: Path) -> int:
    """How many training images there are."""
    return len(np.load(data)["y_train"]) if data.is_file() else len(list(data.glob("train/*/*")))


class Pictures(Dataset):
    """PIL images with the transforms of a first script."""

    def __init__(self, job: Job):
        from torchvision import transforms

        arrays = np.load(job.data)
        self.images, self.labels = [Image.fromarray(i) for i in arrays["x_train"]], arrays["y_train"].tolist()
        self.transform = transforms.Compose(_changes(job))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def _changes(job: Job) -> list[Callable[[Any], Any]]:
    from torchvision import transforms

    return [
        transforms.RandomCrop(job.size, padding=job.size // 8),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((MEAN,) * 3, (STD,) * 3),
    ]


def _folder(job: Job, changes: list[Callable[[Any], Any]]) -> Dataset:
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    fit = [transforms.Resize(job.size), transforms.CenterCrop(job.size)]
    return ImageFolder(str(job.data / "train"), transforms.Compose([*fit, *changes]))


def default_loader(job: Job) -> DataLoader:
    pictures = Pictures(job) if job.data.is_file() else _folder(job, _changes(job))
    endless = RandomSampler(pictures, replacement=True, num_samples=ENDLESS)  # pyrefly: ignore[bad-argument-type]
    return DataLoader(pictures, job.batch, sampler=endless, num_workers=min(os.cpu_count() or 1, 8))


class InMemory(IterableDataset):
    """Whole batches, endlessly: shifted, mirrored, normalised where the images are."""

    def __init__(self, job: Job):
        if job.data.is_file():
            arrays = np.load(job.data)
            images, labels = torch.from_numpy(arrays["x_train"]), torch.from_numpy(arrays["y_train"])
            images = images.permute(0, 3, 1, 2)
        else:
            from torchvision.transforms import PILToTensor

            files = _folder(job, [PILToTensor()])
            images, labels = zip(*(files[i] for i in range(len(files))), strict=True)  # pyrefly: ignore
            images, labels = torch.stack(images), torch.tensor(labels)
        self.images, self.labels = images.to(job.device).contiguous(), labels.to(job.device)
        self.job, self.pad = job, job.size // 8

    def __len__(self) -> int:
        return ENDLESS // self.job.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device, size, batch = self.images.device, self.job.size, self.job.batch
        for _ in range(len(self)):
            index = torch.randint(len(self.images), (batch,), device=device)
            padded = F.pad(self.images[index], (self.pad,) * 4)
            starts = torch.randint(2 * self.pad + 1, (2, batch, 1), device=device)
            rows, columns = starts + torch.arange(size, device=device)
            columns = torch.where(torch.rand(batch, 1, device=device) < 0.5, columns.flip(1), columns)
            every = torch.arange(batch, device=device)[:, None, None]
            pixels = padded.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None]]
            inputs = pixels.permute(0, 3, 1, 2).float().sub_(255 * MEAN).div_(255 * STD)  # channels last already
            yield inputs, self.labels[index]
