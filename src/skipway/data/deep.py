"""Photo formats at more than 8 bits a channel: 16-bit PNG and TIFF, 32-bit and float TIFF."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def is_deep(image: Image.Image) -> bool:
    """Whether an opened Pillow image holds more than 8 bits a channel, though Pillow may cut them."""
    return image.mode.startswith(("I", "F")) or any(";16" in str(tile[3]) for tile in image.tile)


def to_tensor(image: Image.Image, file: Path | bytes, channels: int) -> Tensor:
    """An opened image -> (channels, H, W) float32: whole numbers on 0 to 1, 32-bit and float values as they are."""
    raise NotImplementedError
