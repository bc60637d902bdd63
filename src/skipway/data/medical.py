"""DICOM and NIfTI files at their own depth."""

from pathlib import Path

from torch import Tensor

from skipway.data.reading import Header, Reading

SUFFIXES = frozenset([".dcm", ".nii", ".nii.gz"])


def is_scan(file: Path | bytes) -> bool:
    """Whether a file is DICOM or NIfTI, by its name or its first bytes."""
    return False


def read_header(file: Path | bytes, name: str) -> Header:
    """Size and depth. Raises ReadError."""
    raise NotImplementedError


def read(file: Path | bytes, reading: Reading, name: str) -> Tensor:
    """One image -> (channels, H, W) float32, or uint8 where the reading is not deep. Raises ReadError."""
    raise NotImplementedError
