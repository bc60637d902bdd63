"""A training step of our resnet50 against torchvision's: the same weights, images and optimizer, in one process.

    python benchmarks/against_torchvision.py [--network resnet50] [--pairs 21] [--batch-size 8] [--image-size 224]

fp32, NCHW, SGD with momentum. Steps alternate, and which of the two goes first alternates too; the first pairs are
not counted. Then the ATen operators of one step of each are written down and compared.
"""

import argparse
import os
import platform
import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import skipway

WARMUP = 3


class Operators(TorchDispatchMode):
    """While open, writes down every ATen operator that is called, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def make_step(network: nn.Module, images: Tensor, labels: Tensor) -> Any:
    """One training step as a function."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, foreach=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step


def seconds(step: Any) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    options = parser.parse_args()
    theirs = torchvision.models.get_model(options.network).train()
    ours = skipway.build(options.network).train()
    skipway.load_weights(ours, theirs.state_dict())
    images = torch.randn(options.batch_size, 3, options.image_size, options.image_size)
    labels = torch.randint(1000, (options.batch_size,))
    steps = {"skipway": make_step(ours, images, labels), "torchvision": make_step(theirs, images, labels)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for pair in range(WARMUP + options.pairs):
        for name in sorted(steps, reverse=pair % 2 == 1):
            taken = seconds(steps[name])
            if pair >= WARMUP:
                times[name].append(taken)
    operators = {}
    for name, step in steps.items():
        with Operators() as record:
            step()
        operators[name] = record.names
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, torchvision {torchvision.__version__}, "
          f"Python {platform.python_version()}")  # fmt: skip
    print(
        f"{options.network}, fp32, batches of {options.batch_size} at {options.image_size} pixels, n = {options.pairs}"
    )
    for name, taken in times.items():
        print(f"{name:<12} {statistics.median(taken):.3f} s a step, median   ({min(taken):.3f} to {max(taken):.3f})")
    ratios = sorted(a / b for a, b in zip(times["skipway"], times["torchvision"], strict=True))
    quarter = len(ratios) // 4
    print(f"skipway / torchvision, median of {len(ratios)} pairs: {statistics.median(ratios):.3f}   "
          f"(quartiles {ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f})")  # fmt: skip
    same = operators["skipway"] == operators["torchvision"]
    print(f"ATen operators of a step: {len(operators['skipway'])} and {len(operators['torchvision'])}, "
          f"{'the same, in the same order' if same else 'NOT the same'}")  # fmt: skip


if __name__ == "__main__":
    main()
