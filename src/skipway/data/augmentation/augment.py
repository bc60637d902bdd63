"""Whole-batch augmentation. Each sample's draws are functions of (seed, epoch, sample index), so the same sample
gets the same change in whichever batch, process or run it comes. mixup and cutmix alone look at the batch.

The order: flip and crop, RandAugment or TrivialAugment, colour, torchvision's by name; then images are normalised;
then rectangles are erased, and last images are mixed.
"""

import torch
from torch import Tensor

from skipway import randomness
from skipway.data.augmentation.colour import jitter
from skipway.data.augmentation.crop import TRIES, boxes, flip, pad_and_crop, resized_crop
from skipway.data.augmentation.erase import cutout, erase
from skipway.data.augmentation.mixing import mix, shares
from skipway.data.augmentation.randaugment import randaugment, trivialaugment
from skipway.data.augmentation.transforms import Transforms
from skipway.data.loader import Batch
from skipway.data.preprocess import Preprocess
from skipway.data.sending import sent
from skipway.data_spec import AugmentSpec
from skipway.errors import InputError

PIECE = 32 << 20  # bytes of images that a device changes at once; random resized crops take 16 times as much


class Augment:
    """The changes to training images that a spec asks for.

    Args:
        spec: which, and how strong.
        preprocess: the size, channels and type of what the network sees.
        num_classes: K, for soft targets.
        seed: the run's.

    Raises:
        InputError: such images cannot be changed so.
    """

    def __init__(self, spec: AugmentSpec, preprocess: Preprocess, *, num_classes: int, seed: int):
        self.spec, self.num_classes, self.seed = spec, num_classes, seed
        self.image_size = preprocess.image_size
        if preprocess.reading.deep and (spec.randaugment or spec.trivialaugment):
            name = "randaugment" if spec.randaugment else "trivialaugment"
            raise InputError(
                f"augment.{name} is made for 8-bit images (it posterizes, solarizes and equalizes), and these have "
                "more bits; flips, crops, --color-jitter, --erasing-rate, --cutout and mixing work on them"
            )
        self.transforms = Transforms(spec.transforms)
        self.transforms.check((preprocess.channels, self.image_size, self.image_size), preprocess.dtype)

    def runs_on(self, device: torch.device) -> bool:
        """Whether pixels are best sent to that device first and changed there.

        What handles images one by one, or sorts them by what was drawn, would wait for it at each turn.
        """
        spec = self.spec
        return device.type == "cuda" and not (spec.randaugment or spec.trivialaugment or spec.transforms)

    def draw(self, indices: Tensor, epoch: int, stream: str, num: int = 1) -> Tensor:
        """(B,) sample ids -> (B, num) uniform numbers of this epoch."""
        return randomness.uniform(indices, seed=self.seed, epoch=epoch, stream=stream, num=num)

    def pixels(self, batch: Batch, epoch: int) -> Tensor:
        """Everything that happens before normalisation.

        Args:
            batch: its images may be larger than the network's size where random crops are on (`source_size`); they
                alone may be on an accelerator.
            epoch: the epoch.

        Returns:
            (B, C, S, S) of the batch's type.
        """
        images, indices = batch.images, batch.indices
        if images.device.type == "cpu" or images.nbytes <= PIECE:
            return self._pixels(images, indices, epoch)
        return self.in_pieces(images, indices, epoch, max(PIECE * len(images) // images.nbytes, 1))

    def in_pieces(self, images: Tensor, indices: Tensor, epoch: int, each: int) -> Tensor:
        """`pixels`, so many images at a time: the same bits, and less memory meanwhile."""
        pieces = zip(images.split(each), indices.split(each), strict=True)
        return torch.cat([self._pixels(some, own, epoch) for some, own in pieces])

    def _pixels(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """(B, C, S, S), (B,) -> (B, C, S, S)."""
        spec = self.spec
        images = self._flip_and_crop(images, indices, epoch)
        if spec.randaugment:
            draws = self.draw(indices, epoch, "randaugment", 2 * spec.randaugment)
            images = randaugment(images, draws, spec.randaugment_magnitude)
        if spec.trivialaugment:
            images = trivialaugment(images, self.draw(indices, epoch, "trivialaugment", 3))
        if spec.color_jitter:
            draws = sent(self.draw(indices, epoch, "color jitter", 3), images.device)
            images = jitter(images, 1 + spec.color_jitter * (2 * draws - 1))
        if spec.transforms:
            seeds = (self.draw(indices, epoch, "transforms")[:, 0] * 2**32).long()
            images = self.transforms(images, seeds)
        return images

    def mix(self, inputs: Tensor, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """Erase, cutout, mixup, cutmix on normalised inputs.

        Args:
            inputs: (B, C, S, S) float, mean 0.
            batch: whose labels and indices count.
            epoch: the epoch.

        Returns:
            The inputs, and targets: the labels, or (B, K) float shares where images were mixed.
        """
        spec, indices = self.spec, batch.indices
        if spec.erasing_rate:
            inputs = erase(inputs, self.draw(indices, epoch, "erase", 5), spec.erasing_rate)
        if spec.cutout:
            inputs = cutout(inputs, self.draw(indices, epoch, "cutout", 2), spec.cutout)
        if not (spec.mixup or spec.cutmix):
            return inputs, batch.labels
        targets = shares(batch.labels, self.num_classes)
        return mix(inputs, targets, self.draw(indices, epoch, "mix", 4), mixup=spec.mixup, cutmix=spec.cutmix)

    def _flip_and_crop(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """(B, C, H, W) -> (B, C, S, S)."""
        u = self.draw(indices, epoch, "crop", 3)  # (B, 3): top, left, flip
        flips = self._flips(u[:, 2], indices, epoch) if self.spec.flip else None
        pad = 0 if self.spec.random_resized_crop else int(images.shape[-1] * self.spec.pad_crop + 0.5)
        if pad:
            start = (u[:, :2] * (2 * pad + 1)).long()  # (B, 2) in 0 .. 2 pad
            return pad_and_crop(images, start, pad=pad, mode=self.spec.pad_mode, flips=flips)
        flips = None if flips is None else sent(flips, images.device)
        if self.spec.random_resized_crop:
            draws = self.draw(indices, epoch, "resized crop", 2 * TRIES + 2)
            box = boxes(draws, self.spec.random_resized_crop, images.shape[-1])
            return resized_crop(images, sent(box, images.device), self.image_size, flips)
        return images if flips is None else flip(images, flips)

    def _flips(self, u: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Which images are mirrored, (B,) bool.

        Alternating (Jordan 2024, arXiv:2404.00498): a half that is drawn once in odd epochs, the other in even ones,
        so that two epochs show every image both ways.
        """
        if self.spec.flip_mode == "random":
            return u < 0.5
        half = self.draw(indices, 0, "flip half")[:, 0] < 0.5
        return half if epoch % 2 else ~half


def unnormalised(inputs: Tensor, preprocess: Preprocess) -> Tensor:
    """The inverse of `Preprocess.normalise`, for pictures. (B, C, S, S) -> float32, 0 to 255 where not deep."""
    white = 1.0 if preprocess.reading.deep else 255.0
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (preprocess.mean, preprocess.std))
    return (inputs * std + mean) * white
