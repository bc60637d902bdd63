"""A file as a stream from which hostile bytes escape as nothing but a ReadError."""

import contextlib
import io
import logging
import struct
import warnings
from types import TracebackType
from typing import BinaryIO

import numpy as np

from skipway.errors import ReadError

_LIBRARIES = ("pydicom", "nibabel", "tifffile")  # of the extra `medical`
_MEAN_NOTHING = (TypeError, AttributeError, LookupError, AssertionError, struct.error)  # to whoever has such a file
_LOGGERS = ("pydicom", "pydicom.pixels.utils", "nibabel.global", "tifffile")


def content(file: str | bytes) -> bytes:
    """All bytes of a file, or the bytes themselves. Raises OSError."""
    if isinstance(file, bytes):
        return file
    with open(file, "rb") as stream:
        return stream.read()


class Opened:
    """`with Opened(file, name) as stream`: warnings and log lines of libraries are not seen meanwhile.

    Args:
        file: a path, or the file's bytes.
        name: what to call it in an error.
    """

    def __init__(self, file: str | bytes, name: str):
        self._file, self._name, self._stack = file, name, contextlib.ExitStack()

    def __enter__(self) -> BinaryIO:
        try:
            stream: BinaryIO = io.BytesIO(self._file) if isinstance(self._file, bytes) else open(self._file, "rb")
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            raise ReadError(self._name, "no such file" if missing else error.strerror or "cannot be opened") from error
        self._stack.enter_context(stream)
        self._stack.enter_context(warnings.catch_warnings())
        self._stack.enter_context(np.errstate(all="ignore"))
        warnings.simplefilter("ignore")
        for logger in map(logging.getLogger, _LOGGERS):
            self._stack.callback(setattr, logger, "disabled", logger.disabled)
            logger.disabled = True
        return stream

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stack.close()
        if isinstance(error, ImportError) and error.name in _LIBRARIES:
            raise ReadError(self._name, f"needs {error.name}: pip install 'skipway[medical]'") from error
        if isinstance(error, MemoryError):
            raise ReadError(self._name, "does not fit into memory") from error
        if isinstance(error, Exception):  # a decoder may raise anything
            text = "" if isinstance(error, _MEAN_NOTHING) else " ".join(str(error).split())
            raise ReadError(self._name, text[:200] or "damaged, or not what its name says") from error
