"""Images in and out of the lab: thumbnails as PNG, and uploads, which are read as in training: by bounded processes.

An upload is a body of bytes, in the formats below by its first bytes; it is written to a temporary file for the
process that reads it, and never by a name that the page gave. How many pixels it may have, decode.py says.
"""

import io
import secrets
import tempfile
from collections import OrderedDict
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from skipway.data.preprocess import Preprocess
from skipway.errors import InputError, ReadError
from skipway.shipping.intake import read_files

UPLOAD_BYTES = 16 << 20
KEPT = 16  # uploads, the last ones
STARTS = {
    "JPEG": b"\xff\xd8\xff",
    "PNG": b"\x89PNG\r\n\x1a\n",
    "GIF": b"GIF8",
    "WEBP": b"RIFF",
    "BMP": b"BM",
}
FORMATS = ", ".join(STARTS)


def png(pixels: Tensor) -> bytes:
    """(C, H, W) fitted pixels, uint8 or float -> a PNG, stretched to its own least and greatest value where float."""
    if pixels.dtype != torch.uint8:
        low, high = pixels.min(), pixels.max()
        pixels = ((pixels - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)
    array = pixels.permute(1, 2, 0).contiguous().numpy() if len(pixels) == 3 else pixels[0].contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


class Uploads:
    """The last images that the page sent.

    Args:
        preprocess: what fits them to the network.
    """

    def __init__(self, preprocess: Preprocess):
        self._preprocess = preprocess
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def add(self, content: bytes) -> str:
        """Read an image, and keep it.

        Returns:
            What to ask for it by.

        Raises:
            InputError: no image, of another format, too large, or broken.
        """
        pixels = read_upload(content, self._preprocess)
        name = secrets.token_hex(8)
        self._kept[name] = pixels
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return name

    def pixels(self, name: str) -> Tensor:
        """(C, S, S). Raises InputError where it is not kept (any more)."""
        if name not in self._kept:
            raise InputError("that image is not kept any more: drop it again")
        return self._kept[name]


def read_upload(content: bytes, preprocess: Preprocess) -> Tensor:
    """An upload's fitted pixels, (C, S, S). Raises InputError."""
    if not content:
        raise InputError("the image is empty")
    if not any(content.startswith(start) for start in STARTS.values()):
        raise InputError(f"that is no image of a format that is taken: {FORMATS}")
    with tempfile.TemporaryDirectory(prefix="skipway-lab-") as folder:
        path = Path(folder) / "image.png"  # of any format: its bytes say which
        path.write_bytes(content)
        made = next(read_files([path], preprocess))
    if isinstance(made, ReadError):
        raise InputError(f"the image cannot be read: {made.reason}") from made
    return made
