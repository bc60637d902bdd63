"""Our own kernels for the CPU, compiled once for the machine: batch norm with addition and activation.

Where a training step is bound by memory, passes over it count: PyTorch's batch norm, addition and relu read or write an
activation sixteen times, forward and backward, these eleven times (benchmarks/kernels.py measures it). They are used
once `load()` found or made the library, which takes a C++ compiler and about two seconds, once; everything works
without them.
"""

import contextlib
import ctypes
import hashlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook

from skipway.cache import cache_folder, sweep, written_beside

SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernels.cpp", "convolution.cpp"))
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-std=c++17", "-Wall")
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS += ("-mprefer-vector-width=512",)  # a wish: narrower where the processor has no such vectors
KINDS: dict[type[nn.Module] | None, int] = {None: 0, nn.ReLU: 1, nn.SiLU: 2}
TYPES = (torch.bfloat16, torch.float32)

library: ctypes.CDLL | None = None
active = False


def load() -> str:
    """Find or make the library for this machine. -> "" or why there is none."""
    global library
    if library is not None:
        return ""
    if sys.platform != "linux":
        return "they are made for Linux"
    runtime = _openmp()
    if runtime is None:
        return "PyTorch's OpenMP was not found"
    text = [path.read_bytes() for path in SOURCES]
    key = hashlib.sha256(b"\0".join([*text, repr(FLAGS).encode(), _cpu().encode(), runtime.name.encode()])).hexdigest()
    path = cache_folder() / "kernels" / f"{key[:24]}.so"
    ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)  # one pool of threads with PyTorch
    try:
        made = _opened(path)
        if made is None:
            compiler = next((found for name in ("g++", "clang++", "c++") if (found := shutil.which(name))), None)
            if compiler is None:
                return "there is no C++ compiler"
            sweep(path.parent)
            with written_beside(path) as beside:
                _compile(compiler, runtime, beside)
            made = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        return f"they could not be made ({str(error).strip().splitlines()[-1][:200]})"
    for name in ("scratch_pieces", "conv_ready", "conv_fits"):
        getattr(made, name).restype = ctypes.c_int64
    made.conv_ready()  # asks the system for the matrix unit
    library = made
    return ""


def _opened(path: Path) -> ctypes.CDLL | None:
    """The library that was made before; None where there is none, or a damaged one."""
    with contextlib.suppress(OSError):
        return ctypes.CDLL(str(path))
    return None


def _compile(compiler: str, runtime: Path, target: Path) -> None:
    """Compile, then link against PyTorch's own OpenMP and no other: two pools of threads would fight for the cores."""
    units = {source: target.with_name(f"{target.name}.{source.stem}.o") for source in SOURCES}
    commands = [[compiler, *FLAGS, "-c", str(source), "-o", str(unit)] for source, unit in units.items()]
    try:
        for command in (*commands, [compiler, "-shared", *map(str, units.values()), "-o", str(target), str(runtime)]):
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode:
                raise OSError(f"{Path(compiler).name}: {done.stderr.strip() or done.returncode}")
    finally:
        for unit in units.values():
            unit.unlink(missing_ok=True)


def _openmp() -> Path | None:
    """The OpenMP library that PyTorch runs on in this process."""
    torch.zeros(1).add_(1)
    with contextlib.suppress(OSError), open("/proc/self/maps") as maps:
        found = {line.split(maxsplit=5)[5].strip() for line in maps if "gomp" in line or "iomp" in line}
        return next((Path(path) for path in sorted(found, key=lambda p: "torch" not in p)), None)
    return None


def _cpu() -> str:
    """What -march=native depends on."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        return "".join(line for line in file if line.startswith(("model name", "flags", "Features")))[:20000]
    return platform.processor()


@contextlib.contextmanager
def used(wanted: bool) -> Iterator[None]:
    """While open, networks use the kernels where they can, if they are wanted and loaded."""
    global active
    before, active = active, wanted
    try:
        yield
    finally:
        active = before


def computes_in(x: Tensor) -> torch.dtype:
    """What a convolution of a tensor of the CPU computes in: autocast's, or its own."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def suits(x: Tensor) -> bool:
    """Whether the kernels can take these images: (B, C, H, W), channels_last, on the CPU, in a plain eager step."""
    return (
        active
        and library is not None
        and x.device.type == "cpu"
        and x.dtype in TYPES
        and x.ndim == 4
        and x.numel() > x.shape[1]
        and not torch.compiler.is_compiling()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def takes(norm: nn.Module, act: nn.Module | None, added: Tensor | None, x: Tensor) -> bool:
    """Whether norm, activation and what is added are such that `norm_act` computes them; hooks want the modules."""
    return (
        suits(x)
        and type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.affine
        and norm.weight.dtype == torch.float32
        and (type(act) if act else None) in KINDS
        and (added is None or (added.dtype == x.dtype and added.shape == x.shape))
        and not hooked(norm)
        and not (act and hooked(act))
    )


def hooked(module: nn.Module) -> bool:
    """Whether something watches the module's calls, which kernels that replace it would not make."""
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(own) or bool(_has_any_global_hook())


def norm_act(x: Tensor, norm: nn.BatchNorm2d, act: nn.Module | None, added: Tensor | None = None) -> Tensor:
    """act(norm(x) + added) of a training step; the norm's running statistics move.

    Args:
        x: (B, C, H, W) that `takes` accepts.
        norm: in training mode.
        act: ReLU, SiLU or None.
        added: what the shortcut gives, of x's shape.

    Returns:
        The shape and dtype of x. Arithmetic in fp32, sums over the batch in double.
    """
    if added is not None:
        added = added.contiguous(memory_format=torch.channels_last)
    kind = KINDS[type(act) if act else None]
    y, mean, var = _NormAct.apply(x, norm.weight, norm.bias, added, norm.eps, kind)
    move_statistics(norm, mean, var, x.numel() // x.shape[1])
    return y


@torch.no_grad()
def move_statistics(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int | Tensor) -> None:
    """Move a norm's running statistics towards those of a batch: (C,) mean and biased variance over `count` pixels."""
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
        norm.num_batches_tracked += 1
        share = norm.momentum if norm.momentum is not None else 1 / norm.num_batches_tracked.item()
        norm.running_mean.lerp_(mean, share)
        norm.running_var.lerp_(var * (count / (count - 1)), share)


class _NormAct(torch.autograd.Function):
    """Batch norm over the batch (Ioffe and Szegedy 2015, arXiv:1502.03167), addition, activation."""

    @staticmethod
    def forward(ctx, x, weight, bias, added, eps, kind):
        pixels = Pixels(x)
        mean, var = pixels.reduce("norm_stats", x)
        inverse = (var + eps).rsqrt()
        scale = weight * inverse
        shift = bias - mean * scale
        y = torch.empty_like(x)
        pixels.call("norm_apply", kind, x, added, y, *pixels.shape, scale, shift)
        kept = y if kind == KINDS[nn.ReLU] else added if kind else None  # what the slope is taken from, besides x
        ctx.save_for_backward(x, mean, inverse, scale, shift, kept)
        ctx.kind, ctx.is_added = kind, added is not None
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, *_):  # pyrefly: ignore[bad-override]
        x, mean, inverse, scale, shift, kept = ctx.saved_tensors
        pixels = Pixels(x)
        dy = dy.contiguous(memory_format=torch.channels_last)
        y, added = (kept, None) if ctx.kind == KINDS[nn.ReLU] else (None, kept)
        dz = torch.empty_like(x)
        sums = pixels.reduce("norm_slopes", ctx.kind, dy, x, y, added, dz, extra=(scale, shift, mean))
        d_bias, d_weight = sums[0], sums[1] * inverse
        rows = pixels.shape[0]
        along, rest = -scale * inverse * d_weight / rows, -scale * d_bias / rows
        dx = torch.empty_like(x) if ctx.is_added else dz
        pixels.call("norm_finish", dz, x, dx, *pixels.shape, scale, along, rest, mean)
        return dx, d_weight, d_bias, dz if ctx.is_added else None, None, None


class Pixels:
    """Images as rows of channels, for calls of the kernels."""

    def __init__(self, x: Tensor):
        self.shape = (x.numel() // x.shape[1], x.shape[1])
        self.half = int(x.dtype == torch.bfloat16)

    def reduce(
        self, name: str, *arguments: Tensor | int | None, extra: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """Call a kernel that sums over rows. -> two results by channel, (C,) float32 each."""
        assert library is not None
        pieces, channels = library.scratch_pieces(), self.shape[1]
        partial = torch.empty(2 * pieces, channels, dtype=torch.float64)
        results = torch.empty(2 + 2 * pieces, channels)  # and scratch behind them
        self.call(name, *arguments, *self.shape, *extra, partial, results)
        return results[0].clone(), results[1].clone()

    def call(self, name: str, *arguments: Tensor | int | None) -> None:
        """Call a kernel with its dtype and threads."""
        call(name, self.half, *arguments, torch.get_num_threads())


def call(name: str, *arguments: Tensor | int | None) -> int:
    """Call a kernel of the library: tensors as pointers, None as null, whole numbers as 64 bits; as is what it says."""
    assert library is not None
    plain = [
        ctypes.c_int64(a) if isinstance(a, int) else ctypes.c_void_p(a.data_ptr() if a is not None else None)
        for a in arguments
    ]
    return getattr(library, name)(*plain)
