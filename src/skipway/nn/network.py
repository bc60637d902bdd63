"""ResNet = stem -> stages of residual blocks -> head, and `build`, which makes one from a spec or a name."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.nn.block import BLOCKS, BasicBlock, Bottleneck
from skipway.nn.stem import STEMS, resolve_stem
from skipway.nn.zoo import find
from skipway.spec import NetworkSpec


class Head(nn.Module):
    """Global average pool, then one linear layer to the logits."""

    def __init__(self, in_width: int, num_classes: int):
        super().__init__()
        self.linear = nn.Linear(in_width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C) -> (B, num_classes)."""
        return self.linear(x.mean((2, 3)))


class ResNet(nn.Module):
    """A residual network (He et al. 2015, arXiv:1512.03385) from its spec.

    Args:
        spec: the network; its stem must be settled (not "auto").

    Attributes:
        spec: as given.
        stem, stages, head: the parts; `stages[i][j]` is block j of stage i.
    """

    def __init__(self, spec: NetworkSpec):
        super().__init__()
        if spec.stem not in STEMS:
            raise InputError(f"network.stem is '{spec.stem}': name one of {', '.join(STEMS)}, or give the image size")
        self.spec = spec
        block = BLOCKS[spec.block]
        self.stem = STEMS[spec.stem](spec.in_channels, spec.stem_width, spec.stem_bias)
        self.stages = nn.ModuleList()
        width = spec.stem_width
        for stage in spec.stages:
            blocks = nn.ModuleList()
            for index in range(stage.depth):
                blocks.append(block(width, stage.width, stage.stride if index == 0 else 1, spec.shortcut))
                width = stage.width * block.expansion
            self.stages.append(blocks)
        self.head = Head(width, spec.num_classes)

    def blocks(self) -> Iterator[tuple[str, BasicBlock | Bottleneck]]:
        """Every block with its name, in order: ("stage1.block1", block), ..."""
        for i, stage in enumerate(self.stages, 1):
            assert isinstance(stage, nn.ModuleList)
            for j, block in enumerate(stage, 1):
                assert isinstance(block, (BasicBlock, Bottleneck))
                yield f"stage{i}.block{j}", block

    def forward(self, x: Tensor) -> Tensor:
        """Logits. (B, C, H, W) float -> (B, num_classes)."""
        x = self.stem(x)
        for _, block in self.blocks():
            x = block(x)
        return self.head(x)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Every part's output by name: "stem", "stage2.block1" -> (B, C', H', W'), ..., "logits" -> (B, K)."""
        x = self.stem(x)
        named = {"stem": x}
        for name, block in self.blocks():
            x = named[name] = block(x)
        named["logits"] = self.head(x)
        return named


def initialise(network: ResNet, generator: torch.Generator) -> None:
    """He initialisation (He et al. 2015, arXiv:1502.01852, eq. 10, fan-out form), on the CPU, from `generator`.

    Convolutions: normal with variance 2 / (k^2 * out channels). Norms: weight 1, bias 0. Linear: uniform within
    1 / sqrt(inputs), as torch does. With `zero_init_last` the last norm of every branch starts at weight 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    if network.spec.zero_init_last:
        for _, block in network.blocks():
            nn.init.zeros_(block.last_norm.weight)


def build(
    network: str | NetworkSpec,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> ResNet:
    """A network with fresh weights.

    Args:
        network: a zoo name such as "resnet20" (see `skipway networks`), or a spec.
        num_classes: number of logits; default: the spec's.
        in_channels: channels of an image; default: the spec's.
        image_size: pixels a side; only needed where the spec's stem is "auto".
        seed: of the initial weights; the same seed gives the same bits.

    Returns:
        A ResNet in training mode, fp32, on the CPU: (B, in_channels, H, W) float -> (B, num_classes).

    Raises:
        InputError: an unknown name, a value out of bounds, or a stem left open.

    Example:
        >>> sum(p.numel() for p in build("resnet20", num_classes=10).parameters())
        269722
    """
    spec = find(network) if isinstance(network, str) else network
    if num_classes is not None:
        spec = dataclasses.replace(spec, num_classes=num_classes)
    if in_channels is not None:
        spec = dataclasses.replace(spec, in_channels=in_channels)
    if image_size is not None:
        spec, _ = resolve_stem(spec, image_size)
    made = ResNet(spec)
    initialise(made, torch.Generator().manual_seed(seed))
    return made


def skeleton(spec: NetworkSpec) -> ResNet:
    """The network with shapes and no memory (torch's meta device), for counting and describing."""
    with torch.device("meta"):
        return ResNet(spec)
