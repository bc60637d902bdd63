"""Decode once, keep: in memory where a set fits, else in a file of the cache.

A cache file is raw pixels behind a name made of what they depend on (files, preprocessing, samples), so that a
changed set or size makes a new one. It is written beside its place and moved there when it is whole: a build that
was killed leaves nothing that could be taken for a cache.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from skipway.cache import cache_folder, sweep, written_beside
from skipway.data.loader import Confirm, Kept, Loader
from skipway.data.memory import memory
from skipway.errors import InputError

IN_MEMORY = 1 << 30  # bytes up to which decoded images are kept in memory unasked, if that is an eighth of it at most
Progress = Callable[[int, int], None]  # done, total
SUFFIX = ".pixels"


def keep_decoded(
    loader: Loader, wanted: Tensor, *, confirm: Confirm | None = None, progress: Progress | None = None
) -> None:
    """Decode the wanted samples and have the loader take them from there; a set that is too large goes on streaming.

    Args:
        loader: of files.
        wanted: (n,) int64 samples, each once.
        confirm: asks whether a cache file of some size is wanted; None: there is nobody to ask.
        progress: told how many are done.

    Raises:
        InputError: the cache was asked for and there is no space for it.
        ReadError: a bad file, and they are to stop.
    """
    fitted, spec = loader.preprocess, loader.spec
    shape = (len(wanted), fitted.image_size, fitted.image_size, fitted.channels)
    dtype = np.float32 if fitted.reading.deep else np.uint8
    size = math.prod(shape) * np.dtype(dtype).itemsize
    wanted = wanted.sort().values
    file = cache_file(loader, wanted)
    if file is not None and file.is_file() and spec.cache != "off":
        _take(loader, wanted, _mapped(file, shape, dtype), file)
    elif spec.cache != "on" and fits(size):
        pixels = np.empty(shape, dtype)
        bad = _fill(loader, wanted, pixels, progress)
        loader.keep(Kept(pixels, _rows(loader, wanted)), bad)
    elif file is not None and _is_wanted(loader, file, size, confirm):
        _build(loader, wanted, file, shape, progress)
        _take(loader, wanted, _mapped(file, shape, dtype), file)


def fits(size: int) -> bool:
    """Whether so many bytes of images may be kept in memory unasked."""
    return size <= min(IN_MEMORY, memory() // 8)


def cache_file(loader: Loader, wanted: Tensor) -> Path | None:
    """Where the pixels of these samples are kept; None where the source cannot tell whether it changed."""
    if not loader.source.fingerprint:
        return None
    fitted = loader.preprocess
    what = {
        "version": 1,
        "source": loader.source.fingerprint,
        "reading": asdict(fitted.reading),
        "fit": [fitted.how, fitted.image_size],
        "samples": hashlib.sha256(wanted.numpy().tobytes()).hexdigest(),
    }
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "decoded" / f"{digest[:24]}{SUFFIX}"


def _is_wanted(loader: Loader, file: Path, size: int, confirm: Confirm | None) -> bool:
    """Whether to build: as the spec says, else as the user says."""
    above = file.parent
    while not above.exists():
        above = above.parent
    free = shutil.disk_usage(above).free
    fits = free > size + (1 << 30)
    if loader.spec.cache == "on" and not fits:
        raise InputError(
            f"the decoded cache needs {size / 1e9:.1f} GB and {above} has {free / 1e9:.1f} GB free; "
            "--cache off, or another SKIPWAY_CACHE"
        )
    if loader.spec.cache == "ask":
        question = f"Decode once into {file.parent} ({size / 1e9:.1f} GB, {free / 1e9:.0f} GB free there)?"
        return fits and confirm is not None and confirm(question)
    return loader.spec.cache == "on"


def _build(loader: Loader, wanted: Tensor, file: Path, shape: tuple[int, ...], progress: Progress | None) -> None:
    """Write the pixels, and beside them which could not be read."""
    dtype = np.float32 if loader.preprocess.reading.deep else np.uint8
    try:
        sweep(file.parent)
        with written_beside(file) as beside:
            pixels = np.memmap(beside, dtype, "w+", shape=shape)
            bad = _fill(loader, wanted, pixels, progress)
            pixels.flush()
            with written_beside(_facts(file)) as facts:
                facts.write_text(json.dumps({"bad": bad}), encoding="utf-8")
    except OSError as error:
        raise InputError(f"the decoded cache cannot be written: {error}; --cache off does without") from error


def _fill(loader: Loader, wanted: Tensor, pixels: np.ndarray, progress: Progress | None) -> dict[int, str]:
    """Decode the wanted samples into (n, S, S, C), in order. -> index -> why it could not be read."""
    bad: dict[int, str] = {}
    done = 0
    for indices, images, errors in loader.fitted(wanted, 256):
        pixels[done : done + len(indices)] = images.permute(0, 2, 3, 1).numpy()
        bad |= {int(indices[place]): reason for place, reason in errors.items()}
        if bad and loader.spec.bad_files == "stop":
            break  # keep() raises
        done += len(indices)
        if progress:
            progress(done, len(wanted))
    return bad


def _mapped(file: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    if file.stat().st_size != int(np.prod(shape)) * np.dtype(dtype).itemsize:
        raise InputError(f"{file} is damaged: remove it")
    return np.memmap(file, dtype, "c", shape=shape)  # copy on write: torch wants writable memory, the file stays


def _take(loader: Loader, wanted: Tensor, pixels: np.ndarray, file: Path) -> None:
    try:
        bad = json.loads(_facts(file).read_text(encoding="utf-8"))["bad"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{_facts(file)} is missing or damaged: remove {file}") from error
    loader.keep(Kept(pixels, _rows(loader, wanted)), {int(index): reason for index, reason in bad.items()})


def _facts(file: Path) -> Path:
    return file.with_suffix(".json")


def _rows(loader: Loader, wanted: Tensor) -> Tensor:
    """(N,) int64: where each sample of the source lies among the kept ones; -1: nowhere."""
    rows = torch.full((len(loader.source),), -1)
    rows[wanted] = torch.arange(len(wanted))
    return rows
