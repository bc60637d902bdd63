"""DICOM and NIfTI at their own depth: which file is one, and what becomes of its values.

Which values a reading gives (`Reading.window`, `--window`):

- auto: the file's own window on 0 to 1; the file's own values (Hounsfield units, say) where it has none.
- CENTER/WIDTH: that window on 0 to 1, in the file's own units.
- full: the file's own values, whole.

dicom.py and nifti.py say how each is computed. Values that are not finite become 0. As uint8 (readings that are not
deep) a window becomes 0 to 255, and values without one are stretched from their own minimum and maximum. Colour keeps
its 8 or 16 bits (0 to 1 at depth) and knows no window. Grey scans are always deep, of however few bits.
"""

import zlib
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from skipway.data.images import deep, dicom, nifti
from skipway.data.images.opened import Opened
from skipway.data.images.reading import PHOTO_SUFFIXES, SCAN_SUFFIXES, Header, Reading
from skipway.data.images.scan import Scan

_HEAD = 4096  # bytes that tell what a file is
_MAGIC_AT = (344, 4)  # of NIfTI-1, of NIfTI-2


def is_scan(file: str | bytes) -> bool:
    """Whether a file is DICOM or NIfTI: by its name, else by its first bytes; one named like a photo is not opened."""
    if isinstance(file, bytes):
        return bool(_kind(file[:_HEAD]))
    name = file.lower()
    if name.endswith(SCAN_SUFFIXES):
        return True
    if name.endswith(PHOTO_SUFFIXES):
        return False
    try:
        with open(file, "rb") as stream:
            return bool(_kind(stream.read(_HEAD)))
    except OSError:
        return False


def read_header(file: str | bytes, name: str) -> Header:
    """Size and depth; of a NIfTI volume those of an axial slice. Raises ReadError."""
    with Opened(file, name) as stream:
        return _room(file, stream).read_header(stream)


def read(file: str | bytes, reading: Reading, name: str) -> Tensor:
    """One image -> (channels, H, W) float32, or uint8 where the reading is not deep. Raises ReadError."""
    with Opened(file, name) as stream:
        scan = _room(file, stream).read(stream, reading)
        if reading.deep:
            return deep.from_array(scan.pixels, reading.channels)
        return _to_8_bits(scan, reading.channels)


def _to_8_bits(scan: Scan, channels: int) -> Tensor:
    """(channels, H, W) uint8, by the rules above."""
    pixels = scan.pixels
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.dtype != np.uint8:
        values = deep.finite(pixels.astype(np.float64))
        low, high = (0.0, 1.0) if scan.windowed else (values.min(), values.max())
        pixels = ((values - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8)
    array = np.array(Image.fromarray(pixels).convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(array).reshape(*array.shape[:2], channels).permute(2, 0, 1)


def _room(file: str | bytes, stream: BinaryIO):
    """The module that reads a file: by its first bytes, else by its name."""
    kind = _kind(stream.read(_HEAD))
    stream.seek(0)
    named_nifti = isinstance(file, str) and file.lower().endswith((".nii", ".nii.gz"))
    return nifti if kind == "nifti" or (not kind and named_nifti) else dicom


def _kind(head: bytes) -> str:
    """What the first bytes of a file say: "dicom", "nifti" or ""."""
    if head[128:132] == b"DICM":
        return "dicom"
    if head[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(31).decompress(head, 600)
        except zlib.error:
            return ""
    for place in _MAGIC_AT:
        if head[place : place + 4] in (b"n+1\0", b"ni1\0", b"n+2\0", b"ni2\0"):
            return "nifti"
    return ""
