"""Whole-batch augmentation. Each sample's draws are functions of (seed, epoch, sample index), so the same sample
gets the same change in whichever batch, process or run it comes."""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skipway import randomness
from skipway.data.loader import Batch
from skipway.data.randaugment import randaugment
from skipway.spec import AugmentSpec


class Augment:
    """The changes to training images that a spec asks for.

    Args:
        spec: which, and how strong.
        num_classes: K, for soft targets.
        seed: the run's.
    """

    def __init__(self, spec: AugmentSpec, *, num_classes: int, seed: int):
        self.spec, self.num_classes, self.seed = spec, num_classes, seed

    def draw(self, indices: Tensor, epoch: int, stream: str, num: int = 1) -> Tensor:
        """(B,) sample ids -> (B, num) uniform numbers of this epoch."""
        return randomness.uniform(indices, seed=self.seed, epoch=epoch, stream=stream, num=num)

    def pixels(self, batch: Batch, epoch: int) -> Tensor:
        """Flip, pad-crop, RandAugment. -> (B, C, S, S) uint8."""
        images = self._flip_and_crop(batch.images, batch.indices, epoch)
        if self.spec.randaugment:
            draws = self.draw(batch.indices, epoch, "randaugment", 2 * self.spec.randaugment)
            images = randaugment(images, draws, self.spec.randaugment_magnitude)
        return images

    def mix(self, inputs: Tensor, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """Erase, mixup, cutmix on normalised inputs.

        Args:
            inputs: (B, C, S, S) float, mean 0.
            batch: whose labels and indices count.
            epoch: the epoch.

        Returns:
            The inputs, and targets: (B,) int64 labels, or (B, K) float shares where images were mixed.
        """
        if self.spec.erasing_rate:
            inputs = self._erase(inputs, batch.indices, epoch)
        if not (self.spec.mixup or self.spec.cutmix):
            return inputs, batch.labels
        return self._mix(inputs, batch, epoch)

    def _flip_and_crop(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Both as one gather of rows and columns out of the padded image. (B, C, S, S) -> the same shape."""
        size = images.shape[-1]
        pad = int(size * self.spec.pad_crop + 0.5)
        if not pad and not self.spec.flip:
            return images
        u = self.draw(indices, epoch, "crop", 3)  # (B, 3): top, left, flip
        start = (u[:, :2] * (2 * pad + 1)).long()  # (B, 2) in 0 .. 2 pad
        along = torch.arange(size)
        rows = start[:, :1] + along  # (B, S)
        backwards = torch.where(u[:, 2:] < 0.5, size - 1 - along, along) if self.spec.flip else along
        columns = start[:, 1:] + backwards  # (B, S)
        padded = F.pad(images, (pad, pad, pad, pad))
        sample = torch.arange(len(images))[:, None, None]
        picked = padded[sample, :, rows[:, :, None], columns[:, None, :]]  # (B, S, S, C)
        return picked.permute(0, 3, 1, 2)  # channels_last in memory, as the network wants it

    def _erase(self, inputs: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """A rectangle becomes the mean (Zhong et al. 2017, arXiv:1708.04896, alg. 1; theirs holds random values).

        It covers 2 to 33% of the area; its height is 0.3 to 3.3 times its width.
        """
        size = inputs.shape[-1]
        u = self.draw(indices, epoch, "erase", 5).to(inputs.device)  # (B, 5): whether, area, ratio, top, left
        area = (0.02 + u[:, 1] * 0.31) * size * size
        ratio = torch.exp(math.log(0.3) + u[:, 2] * math.log(3.3 / 0.3))
        height, width = (area * ratio).sqrt().clamp(1, size), (area / ratio).sqrt().clamp(1, size)
        top, left = u[:, 3] * (size - height), u[:, 4] * (size - width)
        inside = _box(top, left, top + height, left + width, size)
        inside &= (u[:, 0] < self.spec.erasing_rate)[:, None, None, None]
        return inputs.masked_fill(inside, 0.0)

    def _mix(self, inputs: Tensor, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """mixup (Zhang et al. 2017, arXiv:1710.09412) or cutmix (Yun et al. 2019, arXiv:1905.04899), by sample.

        The partner is the next sample of the batch. With both on, each sample gets one of them, half and half.
        """
        size, device = inputs.shape[-1], inputs.device
        u = self.draw(batch.indices, epoch, "mix", 4)  # (B, 4): which, lambda, box y, box x
        cut = u[:, 0] < 0.5 if self.spec.mixup and self.spec.cutmix else torch.full((len(u),), self.spec.cutmix > 0)
        keep = torch.where(cut, _beta(u[:, 1], self.spec.cutmix), _beta(u[:, 1], self.spec.mixup))
        half = size * (1 - keep).sqrt() / 2
        low_y, high_y = (u[:, 2] * size - half).clamp(min=0), (u[:, 2] * size + half).clamp(max=size)
        low_x, high_x = (u[:, 3] * size - half).clamp(min=0), (u[:, 3] * size + half).clamp(max=size)
        inside = _box(low_y, low_x, high_y, high_x, size)  # (B, 1, S, S)
        pasted = inside.double().mean((1, 2, 3))
        keep = torch.where(cut, 1 - pasted, keep).float().to(device)
        weight = torch.where(cut.to(device)[:, None, None, None], (~inside.to(device)).float(), keep.view(-1, 1, 1, 1))
        inputs = inputs * weight + inputs.roll(1, 0) * (1 - weight)
        targets = F.one_hot(batch.labels, self.num_classes).float()
        share = keep.to(targets.device)[:, None]
        return inputs, targets * share + targets.roll(1, 0) * (1 - share)


def _box(top: Tensor, left: Tensor, bottom: Tensor, right: Tensor, size: int) -> Tensor:
    """Which pixels' centres lie in each sample's rectangle; four (B,) -> (B, 1, S, S) bool."""
    centre = torch.arange(size, device=top.device) + 0.5
    rows = (centre >= top[:, None]) & (centre < bottom[:, None])  # (B, S)
    columns = (centre >= left[:, None]) & (centre < right[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _beta(u: Tensor, alpha: float) -> Tensor:
    """Uniform numbers -> numbers of the symmetric Beta(alpha, alpha), by its inverse distribution. (B,) -> (B,)."""
    if not alpha:
        return torch.ones_like(u)
    x, cumulative = _beta_table(alpha)
    lower = torch.minimum(u, 1 - u).numpy()
    value = torch.from_numpy(np.interp(lower, cumulative, x))
    return torch.where(u < 0.5, value, 1 - value)


@functools.lru_cache
def _beta_table(alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Points x in [0, 1/2] and the distribution there. Below alpha 1, v = x^alpha takes away the pole at 0."""
    if alpha < 1:
        v = np.linspace(0, 0.5**alpha, 8193)
        x = v ** (1 / alpha)
        density = (1 - x) ** (alpha - 1)
    else:
        x = np.linspace(0, 0.5, 65537)
        density = (4 * x * (1 - x)) ** (alpha - 1)
    cumulative = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return x, cumulative * (0.5 / cumulative[-1])
