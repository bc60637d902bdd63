"""TIFF at a depth or in a layout that Pillow does not read, by tifffile (extra `medical`).

That is: float colour, float64, 32 bits in big-endian order, colours of more than 8 bits in planes of their own. The
first page counts; grey and RGB are read, opacity is laid over white. Values as in deep.py.
"""

import io
from importlib.util import find_spec
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from skipway.data.images import deep
from skipway.data.images.opened import Opened
from skipway.data.images.reading import Header, Reading
from skipway.data.images.scan import check_size

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WITHOUT_IMAGECODECS = (1, 8, 32946)  # none, deflate
_BITS, _PLANES = 258, 284  # tags
_WHITE_IS_0, _RGB = 0, 2


def is_foreign(file: str | bytes) -> bool:
    """Whether a file is a TIFF that Pillow does not read, or not as it is."""
    if isinstance(file, bytes):
        if not file.startswith(_MAGIC):
            return False
    elif not file.lower().endswith((".tif", ".tiff")):
        return False
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=["TIFF"]) as image:
            tags: Any = getattr(image, "tag_v2", {})
            return image.mode != "CMYK" and tags.get(_PLANES, 1) == 2 and max(tags.get(_BITS, (1,))) > 8
    except Exception:  # damaged, not there, or of a kind that it does not know
        return isinstance(file, bytes) or _starts_like_one(file)


def read_header(file: str | bytes, name: str) -> Header:
    """Size and depth. Raises ReadError."""
    with Opened(file, name) as stream:
        page = _page(stream)
        is_deep = page.bitspersample > 8
        return Header(page.imagewidth, page.imagelength, is_deep, page.photometric != _RGB, "TIFF")


def read(file: str | bytes, reading: Reading, name: str) -> Tensor:
    """The first page -> (channels, H, W) float32, or uint8 where the reading is not deep. Raises ReadError."""
    with Opened(file, name) as stream:
        page = _page(stream)
        pixels = page.asarray()
        if page.planarconfig == 2 and pixels.ndim == 3:
            pixels = np.moveaxis(pixels, 0, -1)
        if page.photometric == _RGB:
            pixels = deep.without_opacity(pixels, int(page.extrasamples[0]) if page.extrasamples else 0)
        elif page.photometric == _WHITE_IS_0 and pixels.dtype == np.uint16:
            pixels = 65535 - pixels
        orientation = page.tags.get(274)
        values = deep.from_array(deep.upright(pixels, orientation.value if orientation else 1), reading.channels)
        if reading.deep:
            return values
        low, high = (0.0, 1.0) if pixels.dtype.kind == "u" and pixels.itemsize < 4 else values.double().aminmax()
        return ((values.double() - low) * (255 / max(float(high - low), 1e-12))).round().to(torch.uint8)


def _page(stream: BinaryIO) -> Any:
    """The first page, with what its header claims checked before any memory is taken."""
    import tifffile

    page: Any = tifffile.TiffFile(stream).pages[0]
    check_size(page.imagewidth, page.imagelength)
    samples = page.samplesperpixel - len(page.extrasamples)
    if page.photometric not in (_WHITE_IS_0, 1, _RGB) or samples != (3 if page.photometric == _RGB else 1):
        raise ValueError("a TIFF of neither grey nor RGB is not read at its depth")
    if page.size != page.imagewidth * page.imagelength * page.samplesperpixel or page.samplesperpixel > 8:
        raise ValueError("its header contradicts itself")
    if page.dtype is None or page.dtype.kind not in "uif":
        raise ValueError("its values are of a type that is not read")
    if page.compression not in _WITHOUT_IMAGECODECS and find_spec("imagecodecs") is None:
        raise ValueError(f"compressed by {page.compression.name}, which needs: pip install imagecodecs")
    return page


def _starts_like_one(path: str) -> bool:
    try:
        with open(path, "rb") as stream:
            return stream.read(4) in _MAGIC
    except OSError:
        return False
