"""From an image of any size to the network's input: the part that travels with the model."""

import json
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from skipway import randomness
from skipway.data.source import Source
from skipway.errors import InputError, ReadError

OWN_SIZE_UP_TO = 64  # pixels: sets of images that are all alike and this small are trained as they are
PHOTO_SIZE = 224
MEASURED_ON = 1000  # images that mean and std are measured on where a set does not live in memory


@dataclass(frozen=True)
class Preprocess:
    """Crop the middle square, resize it to `image_size`, normalise each channel.

    Args:
        image_size: pixels a side.
        channels: 1 or 3.
        mean, std: for each channel, on the scale of 0 to 1.
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def fit(self, image: Tensor) -> Tensor:
        """Middle square, resized (bilinear, antialiased). (C, H, W) uint8 -> (C, size, size) uint8."""
        height, width = image.shape[-2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[:, top : top + side, left : left + side]
        if side == self.image_size:
            return image
        size = (self.image_size, self.image_size)
        return F.interpolate(image[None].contiguous(), size, mode="bilinear", antialias=True)[0]

    def normalise(self, images: Tensor) -> Tensor:
        """(B, C, S, S) uint8 -> float32 in the same memory format, mean 0 and deviation 1 over the train split."""
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        scale = 1 / (255 * torch.tensor(self.std, device=images.device).view(1, -1, 1, 1))
        return (images.float() - 255 * mean) * scale

    def to_json(self) -> str:
        """One JSON object, with the steps that are not numbers named too."""
        steps = {"fit": "center_crop", "resize": "bilinear, antialiased", "scale": "0..255 -> 0..1"}
        return json.dumps(asdict(self) | steps, indent=1)

    @staticmethod
    def from_json(text: str) -> "Preprocess":
        """The inverse of to_json. Raises InputError."""
        try:
            t = json.loads(text)
            mean, std = (tuple(float(value) for value in t[name]) for name in ("mean", "std"))
            made = Preprocess(int(t["image_size"]), int(t["channels"]), mean, std)
            if not len(mean) == len(std) == made.channels in (1, 3) or made.image_size < 1 or min(std) <= 0:
                raise ValueError("sizes do not fit")
            return made
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"preprocessing cannot be read: {error!r}") from error


def choose_size(source: Source, asked: int) -> tuple[int, str]:
    """The image size, and why: as asked, or the images' own where all are alike and small, or 224."""
    if asked:
        return asked, "as asked"
    if source.size and source.size[0] == source.size[1] <= OWN_SIZE_UP_TO:
        return source.size[0], "the images' own"
    return PHOTO_SIZE, "photos; --image-size sets another"


def measure(source: Source, train: Tensor, image_size: int) -> Preprocess:
    """Preprocessing with mean and deviation of each channel over the train split (1,000 images of it if streamed).

    Args:
        source: the data.
        train: (N,) int64 indices of the train split.
        image_size: pixels a side.

    Raises:
        InputError: not one image could be read.
    """
    plain = Preprocess(image_size, source.channels, (0.0,) * source.channels, (1.0,) * source.channels)
    total = torch.zeros(source.channels, dtype=torch.float64)
    squares, pixels = total.clone(), 0
    if source.images is not None:
        chunks = (source.images[part] for part in train.split(4096))
    else:
        some = randomness.order(train, seed=0, epoch=0)[:MEASURED_ON]
        chunks = (image[None] for image in _readable(source, some, plain))
    for images in chunks:
        values = images.double() / 255
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
        pixels += values[:, 0].numel()
    if not pixels:
        raise InputError("none of the training images can be read")
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp(min=0).sqrt().clamp(min=1 / 255)
    return Preprocess(image_size, source.channels, tuple(mean.tolist()), tuple(std.tolist()))


def _readable(source: Source, indices: Tensor, preprocess: Preprocess):
    for index in indices.tolist():
        try:
            yield preprocess.fit(source.read(index))
        except ReadError:
            continue  # the loader names it when training comes to it
