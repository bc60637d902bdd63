"""Photo formats at more than 8 bits a channel: 16-bit PNG, PPM and TIFF, 32-bit and float TIFF.

Rules: 8-bit values are divided by 255, 16-bit ones by 65535 (12 bits in 16 too: white is not guessed), those of PPM and
PGM by the white that their header names; signed, 32-bit and float values stay as they are. Values that are not finite
become 0; an image without one finite value is refused. Orientation, transparency (over white) and colour <-> grey
(ITU-R 601) as in decode.py, in floating point. A TIFF whose white is 0 is inverted.

Pillow cuts colour of 16 bits to 8, so such files are decoded twice: the high bytes, then the low ones. (torchvision
would keep them, but a damaged PNG ends its process.) What of TIFF Pillow does not open is for tiff.py. CMYK is read at
8 bits.
"""

import io
import re
import sys
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from skipway.data.images.opened import content

WHITE = {np.dtype(np.uint8): np.float32(255), np.dtype(np.uint16): np.float32(65535)}
LUMA = (0.299, 0.587, 0.114)
_ORIENTATION, _BITS, _SAMPLE_FORMAT, _PHOTOMETRIC, _EXTRA = 0x0112, 258, 339, 262, 338  # TIFF tags
_PNM_TOKEN = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*([^\s#]+)")


def is_deep(image: Image.Image) -> bool:
    """Whether an opened Pillow image holds more than 8 bits a channel, though Pillow may cut them."""
    return image.mode.startswith(("I", "F")) or _is_cut(image)


def _is_cut(image: Image.Image) -> bool:
    """Whether Pillow would cut the values to 8 bits; only an image that is not decoded yet can tell."""
    if image.mode not in ("RGB", "RGBA", "RGBX", "LA"):
        return False
    if image.format == "TIFF":
        return max(_tag(image, _BITS, (1,))) > 8
    if image.format == "PNG":
        return any(";16" in kind for kind in _kinds(image))
    tiles = getattr(image, "tile", ())
    return image.format == "PPM" and any(isinstance(tile[3], tuple) and tile[3][1] > 255 for tile in tiles)


def to_tensor(image: Image.Image, file: str | bytes, channels: int) -> Tensor:
    """An opened image at its own depth, by the rules above.

    Args:
        image: the file's, opened, not decoded.
        file: whence it came.
        channels: 1 or 3.

    Returns:
        (channels, H, W) float32; the channels lie side by side in memory.

    Raises:
        ValueError: no finite value, or of a kind that is not read.
    """
    cut = _is_cut(image)
    if image.format == "PPM" and (cut or image.mode == "I"):
        return from_array(_read_pnm(content(file)), channels)
    if not cut:
        return from_pil(image, channels)
    if image.format == "PNG":
        pixels = _read_twice(image, file)
        return from_array(upright(pixels, image.getexif().get(_ORIENTATION, 1)), channels)
    extra = _tag(image, _EXTRA, (0,))
    return from_array(without_opacity(_read_twice(image, file), extra[0]), channels)


def from_pil(image: Image.Image, channels: int) -> Tensor:
    """A Pillow image, at the depth that Pillow holds it in -> (channels, H, W) float32, by the rules above."""
    is_tiff, key = image.format == "TIFF", image.info.get("transparency")
    inverted = is_tiff and _tag(image, _PHOTOMETRIC, 1) == 0
    unsigned = is_tiff and _tag(image, _SAMPLE_FORMAT, (1,))[0] == 1 and _tag(image, _BITS, (1,))[0] == 32
    whole_16 = image.format in ("PNG", "PPM")  # as mode I, by Pillow's older versions
    image = ImageOps.exif_transpose(image) or image
    if image.mode.startswith(("I", "F")):
        pixels = np.asarray(image)
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
        if image.mode == "I" and (whole_16 or unsigned):
            pixels = pixels.astype(np.uint16) if whole_16 else pixels.view(np.uint32)
        if isinstance(key, int):
            pixels = np.where(pixels == key, np.uint16(65535), pixels)
        return from_array(65535 - pixels if inverted and pixels.dtype == np.uint16 else pixels, channels)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return from_array(np.asarray(image.convert("RGBA")), channels)
    grey = image.mode in ("1", "L")
    return from_array(np.asarray(image.convert("L" if grey else "RGB")), channels)


def from_array(pixels: np.ndarray, channels: int) -> Tensor:
    """Pixels of any type, by the rules above.

    Args:
        pixels: (H, W) or (H, W, 1 to 4); 2 and 4: with opacity, which in floating point runs from 0 to 1.
        channels: 1 or 3.

    Returns:
        (channels, H, W) float32; the channels lie side by side in memory.

    Raises:
        ValueError: no value is finite.
    """
    with np.errstate(over="ignore"):
        values = pixels.astype(np.float32)
    values = finite(values) / WHITE.get(pixels.dtype.newbyteorder("="), np.float32(1))
    values = values[:, :, None] if values.ndim == 2 else values
    if values.shape[2] in (2, 4):
        opacity = values[:, :, -1:]
        values = values[:, :, :-1] * opacity + (1 - opacity)
    if values.shape[2] != channels:
        if channels == 1:
            values = sum((values[:, :, i : i + 1] * np.float32(LUMA[i]) for i in range(3)), np.float32(0))
        else:
            values = np.repeat(values, 3, axis=2)
    return torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1)


def finite(values: np.ndarray) -> np.ndarray:
    """The same with 0 for what is not finite. Raises ValueError where nothing is."""
    good = np.isfinite(values)
    if good.all():
        return values
    if not good.any():
        raise ValueError("holds not one finite value")
    return np.where(good, values, values.dtype.type(0))


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What EXIF orientation 1 to 8 says; anything else is upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    down = orientation in (3, 4, 7, 8)
    across = orientation in (2, 3, 6, 7)
    return pixels[:: -1 if down else 1, :: -1 if across else 1]


def _read_twice(image: Image.Image, file: str | bytes) -> np.ndarray:
    """Colour of 16 bits -> (H, W, 2 to 4) uint16, with its own orientation applied where it is a TIFF.

    Pillow keeps the high byte of each value; told that the bytes are swapped, it keeps the low one.
    """
    kind = _kinds(image)[0].replace("a;", "A;")  # opacity that is multiplied in stays so
    if kind == "LA;16B":
        pairs = _decoded(image, "RGBA")  # as many bytes a pixel
        return np.ascontiguousarray(pairs).view(">u2").astype(np.uint16)
    order = kind[-1].replace("N", "L" if sys.byteorder == "little" else "B")
    high = _decoded(image, kind[:-1] + order)
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=[str(image.format)]) as again:
        low = _decoded(again, kind[:-1] + ("B" if order == "L" else "L"))
    pixels = high.astype(np.uint16) << 8 | low
    key = image.info.get("transparency")
    if pixels.shape[2] == 3 and isinstance(key, tuple):
        pixels = np.where((pixels == np.array(key)).all(2, keepdims=True), np.uint16(65535), pixels)
    return pixels


def _decoded(image: Any, kind: str) -> np.ndarray:
    """An opened image whose decoder is told what is in the file."""
    tiles = []
    for tile in image.tile:
        told = (kind, *tile[3][1:]) if isinstance(tile[3], tuple) else kind
        tiles.append(tile._replace(args=told) if hasattr(tile, "_replace") else (*tile[:3], told))
    image.tile = tiles
    return np.asarray(image)


def _kinds(image: Image.Image) -> list[str]:
    """What is in the file, in the words of Pillow's decoders; of a decoded image: nothing."""
    kinds = [tile[3] for tile in getattr(image, "tile", ())]
    return [str(kind[0] if isinstance(kind, tuple) else kind) for kind in kinds]


def without_opacity(pixels: np.ndarray, extra: int) -> np.ndarray:
    """Colour of a TIFF by what its fourth channel is: 0 nothing, 1 opacity multiplied into the colours, 2 opacity."""
    if pixels.shape[2] < 4 or extra == 2:
        return pixels[:, :, :4]
    colours, opacity = pixels[:, :, :3], pixels[:, :, 3:4]
    white = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
    return colours + np.minimum(white - opacity, white - colours) if extra == 1 else colours


def _read_pnm(content: bytes) -> np.ndarray:
    """PGM or PPM, plain or binary, of more than 255 levels -> (H, W) or (H, W, 3) float32 on 0 to 1."""
    tokens, place = [], 0
    for _ in range(4):
        token = _PNM_TOKEN.match(content, place)
        if token is None:
            raise ValueError("its header is cut short")
        tokens.append(token[1])
        place = token.end()
    width, height, white = (int(token) for token in tokens[1:])
    colours = {b"P2": 1, b"P5": 1, b"P3": 3, b"P6": 3}[tokens[0]]
    count = width * height * colours
    if tokens[0] in (b"P5", b"P6"):
        values = np.frombuffer(content, ">u2", count, place + 1)
    else:
        plain = re.sub(rb"#[^\r\n]*", b"", content[place:]).split(None, count)[:count]
        values = np.array([int(value) for value in plain], np.int64)
    if len(values) < count or values.max() > white:
        raise ValueError("truncated" if len(values) < count else "holds values above its white")
    scaled = values.astype(np.float32) / np.float32(white)
    return scaled.reshape(height, width, colours) if colours == 3 else scaled.reshape(height, width)


def _tag(image: Image.Image, tag: int, default: Any) -> Any:
    """A tag of a TIFF."""
    return getattr(image, "tag_v2", {}).get(tag, default)
