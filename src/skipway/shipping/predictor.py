"""A trained network that takes images as they come and gives names with probabilities."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from skipway.data.images import deep
from skipway.data.images.decode import decode, from_pil
from skipway.errors import InputError, ReadError
from skipway.run import Model, load_model
from skipway.shipping.intake import read_files

ImageLike = str | Path | bytes | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first, with their probabilities in [0, 1].

    `chosen`, where an image may have several labels: those whose probability reaches their threshold, best first;
    None where it has one.
    """

    names: tuple[str, ...]
    probabilities: tuple[float, ...]
    chosen: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """The most probable class."""
        return self.names[0]

    def ranked(self) -> list[dict[str, str | float]]:
        """The same as plain data: [{"name": ..., "probability": ...}, ...], with "chosen" where `chosen` says."""
        rows: list[dict[str, str | float]] = []
        for name, probability in zip(self.names, self.probabilities, strict=True):
            said = {} if self.chosen is None else {"chosen": name in self.chosen}
            rows.append({"name": name, "probability": probability, **said})
        return rows


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
        """Name images. They are decoded in this process, without bounds; for files of strangers take `predict_files`.

        Args:
            images: one or a list of: a path, encoded bytes, a Pillow image, an array (H, W) or (H, W, C) uint8, or
                a tensor (C, H, W) uint8. A network that was trained at depth takes uint16 and float too: uint8 is
                divided by 255, uint16 by 65535, float is taken as it is, on the scale of the training data (of
                windowed scans 0 to 1).
            top: how many classes to name.

        Returns:
            One Prediction an image, with min(top, number of classes) names; more where more labels are chosen.

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
            predictions += [self._prediction(row, top) for row in probabilities]
        return predictions

    def predict_files(self, paths: Sequence[Path], *, top: int = 5) -> Iterator[tuple[Path, Prediction | ReadError]]:
        """Name image files that nobody vouches for: each is read in a process bounded in time and memory.

        Args:
            paths: image files.
            top: how many classes to name.

        Yields:
            Each path with its Prediction, or with why it cannot be read; in order.
        """
        if top < 1:
            raise InputError(f"top must be at least 1, got {top}")
        read = zip(paths, read_files(paths, self.model.preprocess), strict=True)
        for batch in iter(lambda: list(itertools.islice(read, 64)), []):
            good = [image for _, image in batch if isinstance(image, Tensor)]
            rows = iter(self._probabilities(torch.stack(good)) if good else ())
            for path, image in batch:
                yield path, self._prediction(next(rows), top) if isinstance(image, Tensor) else image

    def probabilities(self, images: Sequence[ImageLike]) -> Tensor:
        """Probabilities of every class; as in `predict`. -> (B, K) float32; rows sum to 1 for one label an image."""
        return self._probabilities(torch.stack([self.model.preprocess.fit(self._pixels(image)) for image in images]))

    @torch.inference_mode()
    def _probabilities(self, pixels: Tensor) -> Tensor:
        """(B, C, S, S) fitted images -> (B, K)."""
        return self.model.probabilities(self.model.network(self.model.preprocess.normalise(pixels)))

    def _prediction(self, probabilities: Tensor, top: int) -> Prediction:
        """One image's, (K,) -> its names."""
        thresholds = self.model.thresholds
        best = probabilities.topk(len(self.classes) if thresholds else min(top, len(self.classes)))
        ranking = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        if thresholds is None:
            return Prediction(tuple(self.classes[i] for i, _ in ranking), tuple(p for _, p in ranking))
        chosen = [i for i, p in ranking if p >= thresholds[i]]
        shown = [pair for n, pair in enumerate(ranking) if n < top or pair[0] in chosen]
        return Prediction(
            tuple(self.classes[i] for i, _ in shown),
            tuple(p for _, p in shown),
            tuple(self.classes[i] for i in chosen),
        )

    def _pixels(self, image: ImageLike) -> Tensor:
        """Any image -> (C, H, W) uint8, or float32 for deep readings, with the network's channels."""
        preprocess = self.model.preprocess
        channels = preprocess.channels
        is_deep = preprocess.reading.deep
        if isinstance(image, str):
            image = Path(image)
        if isinstance(image, (Path, bytes)):
            return decode(image, preprocess.reading, at_least=preprocess.image_size)
        if isinstance(image, Image.Image):
            return _deep(image, channels) if is_deep else from_pil(image, channels)
        if isinstance(image, Tensor):
            if image.ndim != 3 or image.shape[0] not in (1, 3):
                raise InputError(f"an image tensor must be (1 or 3, H, W), got {tuple(image.shape)}")
            image = image.detach().float() if image.is_floating_point() else image
            image = image.permute(1, 2, 0).cpu().numpy()
        kind = image.dtype.newbyteorder("=")
        if kind != np.uint8 and not (is_deep and (kind == np.uint16 or kind.kind == "f")):
            more = ", uint16 (0 to 65535) or float" if is_deep else ""
            raise InputError(f"an image must be uint8 (0 to 255){more}, got {image.dtype}")
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[:, :, 0]
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)) or not image.size:
            raise InputError(f"an image array must be (H, W) or (H, W, 1, 3 or 4), got {image.shape}")
        return _deep(image, channels) if is_deep else from_pil(Image.fromarray(image), channels)


def _deep(image: Image.Image | np.ndarray, channels: int) -> Tensor:
    """An image in memory -> (C, H, W) float32, by the rules of deep.py."""
    try:
        return deep.from_pil(image, channels) if isinstance(image, Image.Image) else deep.from_array(image, channels)
    except ValueError as error:
        raise InputError(f"an image {error}") from error


def load(run: str | Path, *, trust_code: bool = False) -> Predictor:
    """A predictor from a run folder, or from its weights.safetensors alone.

    Args:
        run: the folder or the file.
        trust_code: run the code that makes the network, where that is neither skipway's nor a library's.

    Raises:
        InputError: no such run, damaged, or code that is not trusted.
    """
    return Predictor(load_model(run, trust_code=trust_code))
