"""From an image of any size to the network's input: the part that travels with the model."""

import functools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from skipway import randomness
from skipway.data.images.reading import PHOTO, Reading
from skipway.data.sending import sent
from skipway.data.source import Source
from skipway.data_spec import DataSpec
from skipway.errors import InputError, for_example

if TYPE_CHECKING:
    from skipway.data.loader import Loader

OWN_SIZE_UP_TO = 64  # pixels: sets of images that are all alike and this small are trained as they are
PHOTO_SIZE = 224
MEASURED_ON = 1000  # images that mean and std are measured on where a set does not live in memory


@dataclass(frozen=True)
class Preprocess:
    """Read, bring to a square of `image_size`, normalise each channel.

    Args:
        image_size: pixels a side; of what travels with a model those at which it is scored (`scored_size`).
        mean, std: for each channel, on the scale of 0 to 1 (of deep readings: on that of their values).
        reading: how files become tensors.
        how: to a square by cropping the middle, padding with black (deep: the least value), or changing the shape.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reading: Reading = PHOTO
    how: str = "crop"

    @property
    def channels(self) -> int:
        """1 or 3."""
        return self.reading.channels

    @property
    def dtype(self) -> torch.dtype:
        """Of fitted images: uint8, or float32 for deep readings."""
        return torch.float32 if self.reading.deep else torch.uint8

    def resized(self, image_size: int) -> "Preprocess":
        """The same for another size."""
        return replace(self, image_size=image_size)

    def fit(self, image: Tensor) -> Tensor:
        """To a square, bilinear and antialiased. (C, H, W) -> (C, size, size) of the same type."""
        height, width = image.shape[-2:]
        size = self.image_size
        if self.how == "crop":
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            return _resize(image[:, top : top + side, left : left + side], (size, size))
        if self.how == "squash":
            return _resize(image, (size, size))
        scale = size / max(height, width)
        inner = _resize(image, (max(round(height * scale), 1), max(round(width * scale), 1)))
        top, left = (size - inner.shape[1]) // 2, (size - inner.shape[2]) // 2
        black = image.amin().item() if self.reading.deep else 0
        out = torch.full((image.shape[0], size, size), black, dtype=image.dtype)
        out[:, top : top + inner.shape[1], left : left + inner.shape[2]] = inner
        return out

    def normalise(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> float32 in the same memory format, mean 0 and deviation 1 over the train split."""
        white = 255.0 if images.dtype == torch.uint8 else 1.0
        if images.is_contiguous(memory_format=torch.channels_last):  # whole rows at once: three times as fast
            batch, channels, height, width = images.shape
            rows = images.permute(0, 2, 3, 1).reshape(batch, height, width * channels).to(torch.float32, copy=True)
            mean, scale = _constants(self.mean, self.std, white, width, images.device)
            rows.sub_(mean).mul_(scale)
            return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
        mean, scale = _constants(self.mean, self.std, white, 1, images.device)
        return (images.float() - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1)

    def to_json(self) -> str:
        """One JSON object, with the steps that are not numbers named too."""
        table = asdict(self)
        steps = {"resize": "bilinear, antialiased", "scale": "none" if self.reading.deep else "0..255 -> 0..1"}
        return json.dumps(table | steps, indent=1)

    @staticmethod
    def from_json(text: str) -> "Preprocess":
        """The inverse of to_json. Raises InputError."""
        try:
            t = json.loads(text)
            mean, std = (tuple(float(value) for value in t[name]) for name in ("mean", "std"))
            reading = Reading(**t["reading"])
            made = Preprocess(int(t["image_size"]), mean, std, reading, t["how"])
            if not len(mean) == len(std) == made.channels in (1, 3) or made.image_size < 1 or min(std) <= 0:
                raise ValueError("sizes do not fit")
            if made.how not in ("crop", "pad", "squash"):
                raise ValueError(f"it fits by {made.how}")
            return made
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"preprocessing cannot be read: {error!r}") from error


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) -> (C, *size); the channels lie side by side in memory, so that the bits never depend on the layout."""
    if image.shape[-2:] == size:
        return image
    image = image[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(image, size, mode="bilinear", antialias=True)[0]


def choose_size(source: Source, asked: int) -> tuple[int, str]:
    """The image size, and why: as asked, or the images' own where all are alike and small, or 224."""
    if asked:
        return asked, "as asked"
    if source.size and source.size[0] == source.size[1] <= OWN_SIZE_UP_TO:
        return source.size[0], "the images' own"
    return PHOTO_SIZE, "photos; --image-size sets another"


def scored_size(spec: DataSpec) -> int:
    """Pixels a side at which a network is validated, tested and used: test_size, else the image_size it trains at.

    A training image cropped at random shows things larger than the middle of a test image does; a larger test image
    makes up for it (FixRes: Touvron et al. 2019, arXiv:1906.06423).

    Args:
        spec: with its image_size chosen.
    """
    return spec.test_size or spec.image_size


def check_scored_size(spec: DataSpec, check: Callable[[int], object]) -> None:
    """Ask about a test_size of its own.

    Args:
        spec: with its image_size chosen.
        check: refuses sizes, in words of --image-size.

    Raises:
        InputError: the size is refused, in words of --test-size.
    """
    if scored_size(spec) == spec.image_size:
        return
    try:
        check(spec.test_size)
    except InputError as error:
        raise InputError(str(error).replace("--image-size", "--test-size")) from error


def plain(source: Source, spec: DataSpec, image_size: int) -> Preprocess:
    """Preprocessing before anything was measured: as the spec says, at a size, with mean 0 and deviation 1.

    Raises:
        InputError: ImageNet's normalisation is asked for, and images have more than 8 bits.
    """
    if spec.normalisation == "imagenet" and source.deep:
        raise InputError("data.normalisation imagenet is for 8-bit images, and these have more bits; leave it at auto")
    return Preprocess(image_size, (0.0,) * source.channels, (1.0,) * source.channels, source.reading, spec.fit)


@dataclass(frozen=True)
class Normalisation:
    """Mean and deviation of each channel, whose they are, and of images read how."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    whose: str
    reading: Reading = PHOTO

    def fits(self, reading: Reading) -> bool:
        """Whether they say anything of images that are read so: 8-bit ones, or deep ones on the same scale."""
        return reading == self.reading if reading.deep else not self.reading.deep

    def for_channels(self, channels: int) -> "Normalisation":
        """The same for another number of channels: the mean over theirs."""
        if len(self.mean) == channels:
            return self
        mean, std = sum(self.mean) / len(self.mean), sum(self.std) / len(self.std)
        whose = f"{self.whose}, the mean over channels"
        return replace(self, mean=(mean,) * channels, std=(std,) * channels, whose=whose)


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "ImageNet's")


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)  # kept for whoever comes next
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], white: float, pixels: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mean and 1 / deviation of so many pixels' channels, (pixels * C,) float32 each, on the device: sent once."""
    middle, scale = white * torch.tensor(mean), 1 / (white * torch.tensor(std))
    return sent(middle.repeat(pixels), device), sent(scale.repeat(pixels), device)


def normalised(
    loader: "Loader", train: Tensor, spec: DataSpec, given: Normalisation | None = None
) -> tuple[Preprocess, str]:
    """The loader's preprocessing with its normalisation settled, and a sentence about it ("" where it was measured).

    Args:
        loader, train: as in `measure`.
        spec: whether train's, ImageNet's or (auto) the given one, where it fits.
        given: that of weights to start from.

    Raises:
        InputError: no image could be read.
    """
    own = given if given is not None and given.fits(loader.preprocess.reading) else None
    chosen = {"imagenet": IMAGENET, "train": None, "auto": own}[spec.normalisation]
    if chosen is None:
        return measure(loader, train), ""
    fitting = chosen.for_channels(loader.preprocess.channels)
    numbers = " and deviation ".join(" ".join(f"{v:.3g}" for v in values) for values in (fitting.mean, fitting.std))
    made = replace(loader.preprocess, mean=fitting.mean, std=fitting.std)
    return made, f"normalised by {fitting.whose}: mean {numbers}"


def measure(loader: "Loader", train: Tensor) -> Preprocess:
    """The loader's preprocessing with mean and deviation of each channel over the train split.

    Args:
        loader: of the data; where it streams, 1,000 images are measured.
        train: (N,) int64 indices of the train split.

    Raises:
        InputError: not one image could be read.
    """
    fitted = loader.preprocess
    if not loader.in_memory:
        train = randomness.order(train, seed=0, epoch=0)[:MEASURED_ON]
    white = 255 if fitted.dtype == torch.uint8 else 1
    total = torch.zeros(fitted.channels, dtype=torch.float64)
    squares, pixels = total.clone(), 0
    for batch in loader.batches(train, 512):
        values = batch.images.double() / white
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
        pixels += values[:, 0].numel()
    if not pixels:
        raise InputError(f"none of the training images can be read{for_example(loader.bad)}")
    mean = total / pixels
    least = 1 / 255 if white == 255 else 1e-6
    std = (squares / pixels - mean.square()).clamp(min=0).sqrt().clamp(min=least)
    return replace(fitted, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
