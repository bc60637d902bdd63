"""Images that `pack` took out of memory at more than 8 bits a channel: .npy members, read as they were."""

import io
import math
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from skipway.data.files import FileSource
from skipway.data.images.opened import content
from skipway.data.images.reading import Reading
from skipway.data_spec import DataSpec
from skipway.errors import ReadError, stopped_by


def to_npy(image: Tensor) -> bytes:
    """(C, H, W) float32 -> the bytes of a .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(image.numpy()), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def from_npy(data: bytes, name: str) -> Tensor:
    """The bytes of a .npy file that `to_npy` made -> (C, H, W) float32. Raises ReadError."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:
        raise ReadError(name, f"not a .npy file: {' '.join(str(error).split())[:120]}") from error
    count = len(data) - file.tell()
    whole = math.prod(shape) * 4 == count
    if version != (1, 0) or fortran or dtype != np.float32 or len(shape) != 3 or shape[0] not in (1, 3) or not whole:
        raise ReadError(name, f"(1 or 3, H, W) float32 is wanted; it says {shape} {dtype} in {count:,} bytes")
    return torch.from_numpy(np.frombuffer(data, np.float32, offset=file.tell()).reshape(shape).copy())


@dataclass(frozen=True)
class NpySource(FileSource):
    """A FileSource whose files are arrays, not encoded images."""

    def read(self, index: int, at_least: int = 0) -> Tensor:
        """One image, (C, H, W) float32. Raises ReadError."""
        image = from_npy(content(self.files.get(index)), self.name(index))
        if image.shape[0] != self.channels:
            raise ReadError(self.name(index), f"{image.shape[0]} channels where the set has {self.channels}")
        return image


def npy_source(source: FileSource, spec: DataSpec) -> NpySource:
    """The same set read as arrays, as deep and of as many channels as its first one.

    Raises:
        ReadError: the first cannot be read, or another was left out already and bad ones are to stop.
    """
    if source.bad and spec.bad_files == "stop":
        raise stopped_by(source.bad)
    first = from_npy(content(source.files.get(0)), source.name(0))
    made = replace(source, reading=Reading.of(spec, first.shape[0], deep=True), size=None)
    return NpySource(**{field.name: getattr(made, field.name) for field in fields(made)})
