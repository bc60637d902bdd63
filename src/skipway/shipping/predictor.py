"""A trained network that takes images as they come and gives names with probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from skipway.data.decode import decode, from_pil
from skipway.errors import InputError
from skipway.run import Model, load_model

ImageLike = str | Path | bytes | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first, with their probabilities in [0, 1]."""

    names: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def name(self) -> str:
        """The most probable class."""
        return self.names[0]

    def ranked(self) -> list[dict[str, str | float]]:
        """The same as plain data: [{"name": ..., "probability": ...}, ...]."""
        return [{"name": n, "probability": p} for n, p in zip(self.names, self.probabilities, strict=True)]


class Predictor:
    """Images in, names out; preprocessing is the run's own.

    Example:
        >>> predictor = skipway.load("runs/photos-resnet18-1")     # doctest: +SKIP
        >>> predictor.predict(["bee.jpg"])[0].name                 # doctest: +SKIP
        'bees'
    """

    def __init__(self, model: Model):
        self.model = model

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of `probabilities`."""
        return self.model.classes

    def predict(self, images: ImageLike | Sequence[ImageLike], *, top: int = 5) -> list[Prediction]:
        """Name images.

        Args:
            images: one or a list of: a path, encoded bytes, a Pillow image, an array (H, W) or (H, W, C) uint8, or
                a tensor (C, H, W) uint8.
            top: how many classes to name.

        Returns:
            One Prediction an image, with min(top, number of classes) names.

        Raises:
            ReadError: an image that cannot be read.
            InputError: an array or tensor of another shape or type.
        """
        if top < 1:
            raise InputError(f"top must be at least 1, got {top}")
        if isinstance(images, (str, Path, bytes, Image.Image, np.ndarray, Tensor)):
            images = [images]
        predictions = []
        for start in range(0, len(images), 64):
            probabilities = self.probabilities(images[start : start + 64])
            best = probabilities.topk(min(top, len(self.classes)))
            for values, places in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                predictions.append(Prediction(tuple(self.classes[i] for i in places), tuple(values)))
        return predictions

    @torch.inference_mode()
    def probabilities(self, images: Sequence[ImageLike]) -> Tensor:
        """Probabilities of every class; as in `predict`. -> (B, K) float32, rows sum to 1."""
        preprocess = self.model.preprocess
        pixels = torch.stack([preprocess.fit(self._pixels(image)) for image in images])
        return self.model.network(preprocess.normalise(pixels)).softmax(1)

    def _pixels(self, image: ImageLike) -> Tensor:
        """Any image -> (C, H, W) uint8 with the network's channels."""
        preprocess = self.model.preprocess
        channels = preprocess.channels
        if isinstance(image, str):
            image = Path(image)
        if isinstance(image, (Path, bytes)):
            return decode(image, preprocess.reading, at_least=preprocess.image_size)
        if isinstance(image, Image.Image):
            return from_pil(image, channels)
        if isinstance(image, Tensor):
            if image.ndim != 3 or image.shape[0] not in (1, 3):
                raise InputError(f"an image tensor must be (1 or 3, H, W), got {tuple(image.shape)}")
            image = image.permute(1, 2, 0).cpu().numpy()
        if image.dtype != np.uint8:
            raise InputError(f"an image must be uint8 (0 to 255), got {image.dtype}")
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[:, :, 0]
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)) or not image.size:
            raise InputError(f"an image array must be (H, W) or (H, W, 1, 3 or 4), got {image.shape}")
        return from_pil(Image.fromarray(image), channels)


def load(run: str | Path, *, trust_code: bool = False) -> Predictor:
    """A predictor from a run folder, or from its weights.safetensors alone.

    Args:
        run: the folder or the file.
        trust_code: run the code that makes the network, where that is neither skipway's nor a library's.

    Raises:
        InputError: no such run, damaged, or code that is not trusted.
    """
    return Predictor(load_model(run, trust_code=trust_code))
