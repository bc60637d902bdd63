"""What this machine reaches at most: matrix products, 3x3 convolutions, copies. Speeds are held against it.

One figure is a yardstick between machines: a convolution of 128 to 128 channels on 16x16 pixels, batches of 500,
bfloat16, channels last, forward and backward. The shapes beside it are those of a resnet18 on 32-pixel images.
"""

import statistics
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from skipway.training.machine import keep_freed_memory
from skipway.training.stopwatch import repeated


@dataclass(frozen=True)
class Sizes:
    """How large the pieces of work are.

    Args:
        matmul: rows and columns of square matrices.
        batch: images of a convolution.
        convs: (channels, pixels a side).
        yardstick: the same, of the yardstick.
        copy_bytes: of the tensor that is copied, larger than the caches.
    """

    matmul: int = 4096
    batch: int = 500
    convs: tuple[tuple[int, int], ...] = ((64, 32), (256, 16), (256, 8), (512, 4))
    yardstick: tuple[int, int] = (128, 16)
    copy_bytes: int = 256 << 20


@dataclass(frozen=True)
class Rate:
    """How fast one piece of work goes: the median of n, the slowest and the fastest.

    Args:
        work: what was done.
        precision: "fp32" or "bf16"; "" for a copy.
        unit: "TFLOP/s" (a multiply-accumulate counts as 2) or "GB/s" (read and written).
        value, low, high: in that unit.
        n: how often.
    """

    work: str
    precision: str
    unit: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Roofline:
    """The measured limits of a machine.

    Args:
        rates: all that were measured, the copy last.
        yardstick: the one to compare machines by.
        peak: the fastest arithmetic in the precision that was asked for.
    """

    rates: tuple[Rate, ...]
    yardstick: Rate
    peak: Rate = field(repr=False)


def measure_roofline(device: torch.device, *, precision: str, sizes: Sizes | None = None) -> Roofline:
    """Measure this machine, in a few seconds where it computes in bfloat16.

    glibc is told to keep freed memory, as in training; without that a third of the time goes into page faults.

    Args:
        device: where.
        precision: "fp32" or "bf16": what the convolutions compute in, and the peak is for.
        sizes: how large the pieces are; default: large enough to be limited by arithmetic.

    Example:
        >>> tiny = Sizes(matmul=64, batch=2, convs=((8, 8),), yardstick=(8, 4), copy_bytes=1 << 16)
        >>> measure_roofline(torch.device("cpu"), precision="fp32", sizes=tiny).yardstick.unit
        'TFLOP/s'
    """
    sizes = sizes or Sizes()
    if device.type == "cpu":
        keep_freed_memory()
    rates = [_matmul(device, kind, sizes.matmul) for kind in DTYPES]
    for shape in sizes.convs:
        rates += [_conv(device, precision, sizes.batch, shape, backward=backward) for backward in (False, True)]
    rates.append(_conv(device, precision, sizes.batch, sizes.yardstick, backward=False))
    common = yardstick(device, sizes)
    rates += [common, _copy(device, sizes.copy_bytes)]
    return Roofline(tuple(rates), common, max((r for r in rates if r.precision == precision), key=lambda r: r.value))


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def yardstick(device: torch.device, sizes: Sizes | None = None) -> Rate:
    """The rate to compare machines by; glibc should keep freed memory before."""
    sizes = sizes or Sizes()
    return _conv(device, "bf16", sizes.batch, sizes.yardstick, backward=True)


def conv_flops(batch: int, channels: int, pixels: int, *, backward: bool) -> int:
    """FLOPs of a 3x3 convolution that keeps channels and size, counting the zeros of its border.

    Backward has a gradient of the inputs and one of the filters, each as large as forward.
    """
    forward = 2 * batch * pixels * pixels * channels * channels * 9
    return 3 * forward if backward else forward


def _rate(work: str, precision: str, amount: float, seconds: list[float]) -> Rate:
    """`amount` is in FLOPs, or bytes for a copy."""
    unit, scale = ("TFLOP/s", 1e12) if precision else ("GB/s", 1e9)
    speeds = sorted(amount / scale / s for s in seconds)
    return Rate(work, precision, unit, statistics.median(speeds), speeds[0], speeds[-1], len(speeds))


def _matmul(device: torch.device, precision: str, side: int) -> Rate:
    a, b = (torch.randn(side, side, device=device, dtype=DTYPES[precision]) for _ in range(2))
    seconds = repeated(lambda: a @ b, device)
    return _rate(f"matmul {side}", precision, 2 * side**3, seconds)


def _conv(device: torch.device, precision: str, batch: int, shape: tuple[int, int], *, backward: bool) -> Rate:
    channels, pixels = shape
    options = {"device": device, "dtype": DTYPES[precision]}
    x = torch.randn(batch, channels, pixels, pixels, **options).contiguous(memory_format=torch.channels_last)
    w = torch.randn(channels, channels, 3, 3, **options).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(x)

    def forward() -> None:
        with torch.inference_mode():
            F.conv2d(x, w, padding=1)

    def both() -> None:
        image, filters = x.detach().requires_grad_(), w.detach().requires_grad_()
        torch.autograd.grad(F.conv2d(image, filters, padding=1), (image, filters), gradient)

    seconds = repeated(both if backward else forward, device)
    work = f"conv 3x3, {channels} channels, {pixels} px, {'forward + backward' if backward else 'forward'}"
    return _rate(work, precision, conv_flops(batch, channels, pixels, backward=backward), seconds)


def _copy(device: torch.device, size: int) -> Rate:
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    return _rate(f"copy of {size / 2**20:g} MiB", "", 2 * size, repeated(lambda: target.copy_(source), device))
