"""Source: what every data set looks like to the rest of skipway."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from skipway.data.images.reading import Reading


class Source(Protocol):
    """Images with labels, and what the data itself knows about its splits.

    Attributes:
        classes: class names; a label is a position in them.
        labels: (N,) int64, or (N, K) uint8 of 0 and 1 where an image may have several labels.
        splits: "train", "val", "test" -> (n,) int64 sample indices, those that the data itself has; "all" where it
            is one undivided set. Samples that cannot be read are in none of them.
        groups: (N,) int64, the same number for samples that must stay on one side of a split; None: not known.
        channels: 1 or 3.
        deep: images are float32, not uint8.
        reading: how the files became tensors.
        images: (N, C, H, W) where the whole set lives in memory, else None.
        size: (height, width) where all images are alike, else None.
        bad: files left out when the source was opened: name -> reason.
        fingerprint: changes when the images may have changed; "" where nothing is known.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def labels(self) -> Tensor: ...  # noqa: D102
    @property
    def splits(self) -> dict[str, Tensor]: ...  # noqa: D102
    @property
    def groups(self) -> Tensor | None: ...  # noqa: D102
    @property
    def channels(self) -> int: ...  # noqa: D102
    @property
    def deep(self) -> bool: ...  # noqa: D102
    @property
    def reading(self) -> Reading: ...  # noqa: D102
    @property
    def images(self) -> Tensor | None: ...  # noqa: D102
    @property
    def size(self) -> tuple[int, int] | None: ...  # noqa: D102
    @property
    def bad(self) -> dict[str, str]: ...  # noqa: D102
    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a person calls the sample: its path, or its place in the file."""
        ...

    def read(self, index: int, at_least: int = 0) -> Tensor:
        """One image, (C, H, W) uint8 or float32; `at_least` as in decode. Raises ReadError."""
        ...


@dataclass(frozen=True)
class ArraySource:
    """A data set that lives in memory as one tensor.

    Args:
        images: (N, C, H, W) uint8 or float32.
        labels, classes, splits, bad, groups: as in Source.
        title: how samples are named: "title[index]".
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    splits: dict[str, Tensor]
    title: str
    bad: dict[str, str] = field(default_factory=dict)
    groups: Tensor | None = None
    fingerprint: str = ""

    @property
    def channels(self) -> int:
        """1 or 3."""
        return self.images.shape[1]

    @property
    def deep(self) -> bool:
        """Whether images are float32."""
        return self.images.dtype != torch.uint8

    @property
    def reading(self) -> Reading:
        """Channels and depth."""
        return Reading(self.channels, self.deep)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every image."""
        return self.images.shape[2], self.images.shape[3]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """`title[index]`."""
        return f"{self.title}[{index}]"

    def read(self, index: int, at_least: int = 0) -> Tensor:
        """One image, (C, H, W)."""
        return self.images[index]


def is_multilabel(source: Source) -> bool:
    """Whether an image may have several labels."""
    return source.labels.ndim == 2


def usable(source: Source) -> Tensor:
    """The samples of all splits, (n,) int64 in order."""
    return torch.cat(list(source.splits.values())).sort().values if source.splits else torch.arange(len(source))


def only(splits: dict[str, Tensor], good: Tensor) -> dict[str, Tensor]:
    """The splits without the samples that are not good, (N,) bool, and without splits that are left empty."""
    kept = {name: part[good[part]] for name, part in splits.items()}
    return {name: part for name, part in kept.items() if len(part)}


def consecutive(counts: dict[str, int]) -> dict[str, Tensor]:
    """Splits that lie one behind the other: {"train": 3, "test": 2} -> indices 0..2 and 3..4."""
    splits, start = {}, 0
    for name, count in counts.items():
        splits[name] = torch.arange(start, start + count)
        start += count
    return splits
