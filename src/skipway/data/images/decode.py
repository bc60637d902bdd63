"""One image file or byte string -> a tensor, by stated rules, or a ReadError that says why not.

Rules: the formats below and no others; EXIF orientation is applied; animated images give their first frame;
transparency is laid over white; palettes, CMYK and other colour spaces become RGB; grey becomes three equal channels
where three are asked for, colour becomes luma (ITU-R 601) where one is. As uint8, 16-bit grey is divided by 257, and
32-bit and float grey is stretched from its own minimum and maximum; deep readings keep what the file holds (deep.py).
"""

import contextlib
import importlib
import io
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL import TiffImagePlugin as _tiff  # noqa: F401  (Pillow knows these two formats
from PIL import WebPImagePlugin as _webp  # noqa: F401   once their plugins are imported)
from torch import Tensor

from skipway.data.images import deep, medical, tiff
from skipway.data.images.opened import content
from skipway.data.images.reading import MAX_PIXELS, SUFFIXES, SUFFIXES_OF, Header, Reading
from skipway.errors import ReadError

try:  # here, not at the first JPEG: that would count as its time
    from torchvision import io as jpeg
except ImportError:
    jpeg = None


FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
_ORIENTATION = 0x0112


def is_image_name(name: str) -> bool:
    """Whether a file's name ends like an image's or a scan's."""
    return name.lower().endswith(SUFFIXES)


def warm_up(name: str) -> None:
    """Import what reads files named so: worker processes inherit it, and no file's time is spent on it."""
    for kind, module in {"DICOM": "pydicom.pixels", "NIFTI": "nibabel", "TIFF": "tifffile"}.items():
        if name.lower().endswith(SUFFIXES_OF[kind]):
            with contextlib.suppress(ImportError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module)


def read_header(file: Path | str | bytes, name: str = "") -> Header:
    """Size and depth from the header alone.

    Raises:
        ReadError: not an image of the allowed formats, or too large.
    """
    name = name or str(file)
    file = _plain(file)
    if medical.is_scan(file):
        return medical.read_header(file, name)
    if tiff.is_foreign(file):
        return tiff.read_header(file, name)
    with _opened(file, name) as image:
        is_deep = deep.is_deep(image)
        unsaid = image.format == "PNG" and "exif" not in image.info  # to look further would decode the image
        try:
            orientation = 1 if unsaid else image.getexif().get(_ORIENTATION, 1)
            frames = getattr(image, "n_frames", 1) if image.format in ("TIFF", "GIF", "WEBP") else 1
        except Exception:  # broken metadata is no reason to refuse the pixels
            orientation, frames = 1, 1
        grey = image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16")
        orientation = orientation if orientation in range(1, 9) else 1
        return Header(*image.size, is_deep, grey, image.format or "", image.mode, orientation, frames)


def decode(file: Path | str | bytes, reading: Reading, name: str = "", *, at_least: int = 0) -> Tensor:
    """Decode one image.

    Args:
        file: a path, or the file's bytes.
        reading: channels and depth.
        name: what to call it in an error.
        at_least: a JPEG may come smaller, by 2, 4 or 8, as long as its shorter side keeps so many pixels; 0: as it is.

    Returns:
        (channels, H, W) uint8, or float32 for a deep reading.

    Raises:
        ReadError: it cannot be read, for whatever reason.
    """
    name = name or ("image bytes" if isinstance(file, bytes) else str(file))
    file = _plain(file)
    try:
        if medical.is_scan(file):
            return medical.read(file, reading, name)
        if tiff.is_foreign(file):
            return tiff.read(file, reading, name)
        with _opened(file, name) as image, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; what matters comes as an exception
            size = image.size
            if at_least:
                side = min(image.size) / at_least
                image.draft(None, (int(image.width / side), int(image.height / side)))
            if reading.deep:
                return deep.to_tensor(image, file, reading.channels)
            if jpeg is not None and reading.channels == 3 and _is_plain_jpeg(image, size):
                with contextlib.suppress(RuntimeError):  # Pillow reads some that are damaged, or says why not
                    return _decode_jpeg(file)
            return from_pil(image, reading.channels)
    except ReadError:
        raise
    except MemoryError as error:
        raise ReadError(name, "does not fit into memory") from error
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise ReadError(name, _reason(error)) from error


def _is_plain_jpeg(image: Image.Image, size: tuple[int, int]) -> bool:
    """Whether torchvision's decoder gives the same bits as Pillow's: an upright colour JPEG, at its whole size."""
    return (
        image.format == "JPEG" and image.mode == "RGB" and image.size == size
        and image.getexif().get(_ORIENTATION, 1) == 1
    )  # fmt: skip


def _plain(file: Path | str | bytes) -> str | bytes:
    """A path as text: pathlib interns every name, and the table of those would be built anew again and again."""
    return file if isinstance(file, bytes) else os.fspath(file)


def _decode_jpeg(file: str | bytes) -> Tensor:
    """A plain JPEG -> (3, H, W) uint8, in three quarters of the time that Pillow takes."""
    assert jpeg is not None
    decoded = jpeg.decode_jpeg(
        torch.frombuffer(bytearray(content(file)), dtype=torch.uint8), mode=jpeg.ImageReadMode.RGB
    )
    assert isinstance(decoded, Tensor)
    return decoded


def from_pil(image: Image.Image, channels: int) -> Tensor:
    """A Pillow image -> (channels, H, W) uint8, by the rules above; the channels lie side by side in memory."""
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        above = image.convert("RGBA")
        white = Image.new("RGBA", above.size, "white")
        image = Image.alpha_composite(white, above)
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    array = np.array(image)  # (H, W) or (H, W, 3)
    return torch.from_numpy(array).reshape(image.height, image.width, channels).permute(2, 0, 1)


def _to_8_bits(grey: np.ndarray) -> np.ndarray:
    """Deeper grey -> uint8: whole numbers that fit 16 bits by 257, everything else from its own range."""
    if np.issubdtype(grey.dtype, np.integer) and grey.min() >= 0 and grey.max() <= 65535:
        return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
    grey = np.nan_to_num(grey.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = grey.min(), grey.max()
    return ((grey - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8)


def _opened(file: str | bytes, name: str) -> Image.Image:
    """The image with its header read and its size checked."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)
    except Exception as error:
        raise ReadError(name, _reason(error)) from error
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width}x{image.height}"
        image.close()
        raise ReadError(name, f"{size} pixels are more than the {MAX_PIXELS:,} that are read")
    return image


def _reason(error: Exception) -> str:
    """An exception of Pillow's in a few words."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or of a format that is not read"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than the {MAX_PIXELS:,} pixels that are read"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    text = " ".join(str(error).split())
    return text[:120] or type(error).__name__
