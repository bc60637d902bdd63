"""What skipway's own kernels, and its strips of small images, gain on a CPU: layer by layer and in a training step.

    python benchmarks/kernels.py [--pairs 9] [--steps 7]

Layers: norm, addition and activation of batches in bf16, channels_last, forward and backward, beside PyTorch's own
modules; 3x3 convolutions in strips and on the matrix unit beside F.conv2d. Steps: whole training steps of a network, as
`skipway.train` takes them, with all of it, with some and with nothing. Everything alternates in one process; medians,
and the extremes in brackets. glibc keeps freed memory throughout, as in training.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.nn import convolution, kernels, matrix_unit
from skipway.nn.layers import norm_act
from skipway.nn.network import build
from skipway.nn.zoo import find
from skipway.recipes import cifar10_94
from skipway.training.machine import device_name, keep_freed_memory

NORMS = ((256, 64, 32), (1000, 64, 15), (1000, 256, 7), (32, 256, 56))  # batch, channels, pixels
CONVS = ((256, 64, 32), (1000, 64, 15), (256, 128, 16), (256, 256, 8), (1000, 256, 7), (256, 512, 4), (1000, 256, 3))
CONVS += ((32, 64, 56), (32, 128, 28), (32, 256, 14), (32, 512, 7))
# what a step uses: kernels for norms and pools, strips, the matrix unit
KINDS = {
    "nothing": (False, False, False),
    "strips": (False, True, False),
    "kernels and strips": (True, True, False),
    "all": (True, True, True),
}


def images(batch: int, channels: int, pixels: int) -> Tensor:
    made = torch.randn(batch, channels, pixels, pixels).bfloat16()
    return made.contiguous(memory_format=torch.channels_last).requires_grad_()


def compared(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each way, taken in turn; a first round is not counted."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            if number:
                found[name].append(1000 * (time.perf_counter() - started))
    return found


def shown(found: dict[str, list[float]]) -> str:
    first = statistics.median(next(iter(found.values())))
    cells = []
    for name, values in found.items():
        middle = statistics.median(values)
        cells.append(f"{name} {middle:,.1f} ms ({min(values):,.1f} to {max(values):,.1f}), x{first / middle:.2f}")
    return "; ".join(cells)


def norms(rounds: int) -> None:
    for act in (nn.ReLU(inplace=True), nn.SiLU()):
        for shape in NORMS:
            ways = {name: norm_pass(shape, act, own=name == "ours") for name in ("PyTorch", "ours")}
            name = f"norm + addition + {type(act).__name__}, {shape[0]} x {shape[1]} x {shape[2]}^2"
            print(f"{name}: {shown(compared(ways, rounds))}")


def norm_pass(shape: tuple[int, int, int], act: nn.Module, *, own: bool) -> Callable[[], object]:
    """Forward and backward of act(norm(x) + added)."""
    x, added, norm = images(*shape), images(*shape), nn.BatchNorm2d(shape[1])
    dy = torch.randn_like(x)

    def run() -> None:
        with kernels.used(own):
            y = norm_act(x, norm, act, added)
        torch.autograd.grad(y, (x, added, *norm.parameters()), dy)

    return run


def convolutions(rounds: int) -> None:
    for shape in CONVS:
        batch, channels, pixels = shape
        for name in ("forward", "input gradient", "weight gradient"):
            kinds = {"PyTorch": True, "strips": pixels <= LARGEST, "matrix unit": has_unit()}
            ways = {kind: conv_pass(shape, name, kind) for kind, applies in kinds.items() if applies}
            if len(ways) == 1:
                continue
            print(f"{channels} channels at {pixels}x{pixels}, batch {batch}, {name}: {shown(compared(ways, rounds))}")


def has_unit() -> bool:
    """Whether this processor has a matrix unit."""
    return kernels.library is not None and bool(kernels.call("conv_ready"))


def conv_pass(shape: tuple[int, int, int], name: str, kind: str) -> Callable[[], object]:
    """One pass of a 3x3 convolution."""
    x, channels = images(*shape), shape[1]
    weight = torch.randn(channels, channels, 3, 3).bfloat16().contiguous(memory_format=torch.channels_last)
    wanted = x if name == "input gradient" else weight.requires_grad_()
    x.requires_grad_(wanted is x)

    def forward() -> Tensor:
        if kind == "matrix unit":
            return matrix_unit.convolve(x, weight)
        return convolution.convolve(x, weight, 1, 1) if kind == "strips" else F.conv2d(x, weight, None, 1, 1)

    if name == "forward":
        return forward
    y = forward()
    dy = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)


def steps(rounds: int) -> None:
    """Whole steps: forward, loss, backward (the optimizer's part is the same in all)."""
    networks = {"resnet18": (256, replace(find("resnet18"), stem="cifar", num_classes=10))}
    networks["cifar10-94's network"] = (1000, cifar10_94().network)
    for name, (batch, spec) in networks.items():
        network = build(spec).to(memory_format=torch.channels_last)
        kinds = {kind: which for kind, which in KINDS.items() if has_unit() or not which[2]}
        ways = {kind: training_pass(network, batch, *which) for kind, which in kinds.items()}
        print(f"a step of {name}, batches of {batch} at 32 pixels: {shown(compared(ways, rounds))}")


def training_pass(network: nn.Module, batch: int, own: bool, strips: bool, unit: bool) -> Callable[[], object]:
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch) % 10

    def run() -> None:
        convolution.LARGEST = LARGEST if strips else 0
        matrix_unit.suits = SUITS if unit else lambda *_: False
        with kernels.used(own), torch.autocast("cpu", torch.bfloat16):
            logits = network(x)
        F.cross_entropy(logits.float(), labels).backward()
        network.zero_grad(set_to_none=True)

    return run


LARGEST, SUITS = convolution.LARGEST, matrix_unit.suits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=7)
    options = parser.parse_args()
    keep_freed_memory()
    print(
        f"{device_name(torch.device('cpu'))}, {os.cpu_count()} cores, torch {torch.__version__}, Python "
        f"{platform.python_version()}; bf16, channels_last; n = {options.pairs} (layers), {options.steps} (steps); "
        f"load before {os.getloadavg()[0]:.1f}; kernels: {kernels.load() or 'loaded'}, "
        f"matrix unit: {'yes' if has_unit() else 'no'}"
    )
    norms(options.pairs)
    convolutions(options.pairs)
    steps(options.steps)


if __name__ == "__main__":
    main()
