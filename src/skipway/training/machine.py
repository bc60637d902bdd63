"""What this machine can do: memory, bfloat16, and an allocator that keeps its memory."""

import contextlib
import ctypes
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from skipway.data.memory import memory


def computes_bf16(device: torch.device) -> bool:
    """Whether the hardware has bfloat16 arithmetic of its own (emulated, it is slower than fp32)."""
    if device.type == "cpu":
        flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else _proc_flags()
        return any(flags.get(name, False) for name in ("amx_bf16", "amx_tile", "avx512_bf16", "bf16", "arm_bf16"))
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return False


@contextlib.contextmanager
def threads_put_back() -> Iterator[None]:
    """Afterwards PyTorch has as many threads as before, whatever an engine took meanwhile."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compiles(device: torch.device) -> bool:
    """Whether torch.compile can be expected to work on an accelerator: on CUDA, by Triton, which calls a C compiler."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (7, 0):
        return False
    compilers = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return importlib.util.find_spec("triton") is not None and any(shutil.which(name) for name in compilers if name)


def memory_of(device: torch.device) -> int:
    """Bytes of memory that a device has, or that this process may take of the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory()


def device_name(device: torch.device) -> str:
    """The accelerator's, or the processor's as Linux names it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or str(device)
    return next((row.partition(":")[2].strip() for row in lines if row.startswith("model name")), str(device))


def _proc_flags() -> dict[str, bool]:
    """The processor's flags as Linux tells them; empty elsewhere."""
    try:
        with open("/proc/cpuinfo") as file:
            line = next((row for row in file if row.startswith(("flags", "Features"))), "")
    except OSError:
        return {}
    return dict.fromkeys(line.split(), True)


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed, for the rest of this process.

    A training step frees and asks for the same large blocks again and again; given back to the kernel each time,
    they come back as page faults, a quarter to a third of the step on the CPU. What it takes from now on it is asked to
    give in large pages, which are found faster; up to half of the memory, none of it taken yet. Returns whether the
    first took effect.
    """
    if sys.platform != "linux":
        return False
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False  # not glibc
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    settings = ((mmap_max, 0), (trim_threshold, -1), (top_pad, 64 << 20))  # -1: never trimmed
    kept = all(mallopt(key, value) == 1 for key, value in settings)
    if kept:
        _ask_for_large_pages(libc)
    return kept


def _ask_for_large_pages(libc: ctypes.CDLL) -> None:
    """The heap grows, untouched, and what it grew by is marked (madvise, MADV_HUGEPAGE)."""
    size, large, huge_pages = memory() // 2, 2 << 20, 14
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(size)
    if block:
        first = -(-block // large) * large
        libc.madvise(first, (block + size - first) // large * large, huge_pages)
        libc.free(block)
