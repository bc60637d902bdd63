"""What comes before the first block: 3x3 for small images, 7x7 and max-pool for photos."""

import dataclasses

from torch import Tensor, nn

from skipway.spec import NetworkSpec

SMALL_IMAGE = 64  # pixels a side: up to here the ImageNet stem throws away more than it saves


class CifarStem(nn.Module):
    """conv 3x3, norm, relu at the image's own resolution (He et al. 2015, section 4.2)."""

    def __init__(self, in_channels: int, width: int, bias: bool):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, 1, 1, bias=bias)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, width, H, W)."""
        return self.act(self.norm(self.conv(x)))


class ImageNetStem(nn.Module):
    """conv 7x7 stride 2, norm, relu, max-pool 3x3 stride 2 (He et al. 2015, table 1)."""

    def __init__(self, in_channels: int, width: int, bias: bool):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 7, 2, 3, bias=bias)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, width, H/4, W/4)."""
        return self.pool(self.act(self.norm(self.conv(x))))


STEMS = {"cifar": CifarStem, "imagenet": ImageNetStem}


def resolve_stem(spec: NetworkSpec, image_size: int) -> tuple[NetworkSpec, str]:
    """Settle `stem="auto"` by the image size.

    Args:
        spec: the network.
        image_size: pixels a side.

    Returns:
        The spec with a stem of its own, and a sentence that says which and why ("" where nothing was open).
    """
    if spec.stem != "auto":
        return spec, ""
    if image_size <= SMALL_IMAGE:
        kind, why = "cifar", f"{image_size}-pixel images keep their resolution (3x3, no pooling)"
    else:
        kind, why = "imagenet", f"{image_size}-pixel images are reduced 4 times first (7x7, max-pool)"
    return dataclasses.replace(spec, stem=kind), f"stem {kind}: {why}"
