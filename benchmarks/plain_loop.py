"""skipway's training path against the loop everybody writes first, in one process on the same images and network.

    python benchmarks/plain_loop.py [DATA] [--network resnet20] [--rounds 5] [--images 3072] [--workers 2]

The plain loop: fp32, NCHW, a DataLoader over PIL images with torchvision's RandomCrop, RandomHorizontalFlip,
ToTensor and Normalize, batches of 128, SGD. Ours: `skipway.train` as it comes (in memory, whole-batch
augmentation, bf16 where the hardware has it, channels_last, allocator told to keep its memory). Each round is one
pass over the images; a first round of each is not counted. The plain loop runs before ours, because the
allocator's setting stays for the process; it runs once more after it, to show what of the ratio is the allocator.
"""

import argparse
import io
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import skipway
from skipway.data.open import open_source

BATCH = 128


class Pictures(Dataset):
    """PIL images with the transforms of a first CIFAR script."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor):
        self.images = [Image.fromarray(i.permute(1, 2, 0).squeeze(-1).numpy()) for i in images]
        self.labels = labels.tolist()
        size, channels = images.shape[-1], images.shape[1]
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(size, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * channels, (0.25,) * channels),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def plain_rounds(images: torch.Tensor, labels: torch.Tensor, classes: int, options: argparse.Namespace) -> list[float]:
    """Images a second, for each counted round of the plain loop."""
    network = skipway.build(options.network, num_classes=classes, in_channels=images.shape[1], image_size=32)
    loader = DataLoader(
        Pictures(images, labels),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    speeds = []
    for _ in range(options.rounds + 1):
        started = time.perf_counter()
        for inputs, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(network(inputs), targets).backward()
            optimizer.step()
        speeds.append(len(loader) * BATCH / (time.perf_counter() - started))
    return speeds[1:]


def our_rounds(num_train: int, options: argparse.Namespace) -> list[float]:
    """Images a second, for each counted epoch of skipway.train on `options.images` of the training images."""
    settings = {
        "data": {"val_fraction": 1 - options.images / num_train},
        "train": {"epochs": options.rounds + 1, "batch_size": BATCH},
    }
    with tempfile.TemporaryDirectory() as folder:
        run = skipway.train(
            options.data,
            network=options.network,
            settings=settings,
            out=Path(folder, "run"),
            console=Console(file=io.StringIO()),
        )
        print(f"ours: {run.spec.train.precision}, channels_last {run.spec.train.channels_last}")
        return [row["images_per_s"] for row in run.metrics()][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="fashion-sample")
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=3072)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    source = open_source(skipway.DataSpec(path=options.data))
    assert source.images is not None, "this benchmark wants a set that lives in memory"
    train = source.splits["train"]
    images, labels = source.images[train[: options.images]], source.labels[train[: options.images]]
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"{options.network}, {options.data} at {images.shape[-1]} pixels, batches of {BATCH}, n = {options.rounds}")
    before = plain_rounds(images, labels, len(source.classes), options)
    ours = our_rounds(len(train), options)
    after = plain_rounds(images, labels, len(source.classes), options)
    rows = {"plain loop": before, "skipway": ours, "plain loop, allocator kept": after}
    for name, speeds in rows.items():
        print(f"{name:<27} {statistics.median(speeds):>7,.0f} images/s   ({min(speeds):,.0f} to {max(speeds):,.0f})")
    ratio = statistics.median(ours) / statistics.median(before)
    print(f"skipway / plain loop: {ratio:.2f}")
    print(f"skipway / plain loop with the allocator kept: {statistics.median(ours) / statistics.median(after):.2f}")


if __name__ == "__main__":
    main()
