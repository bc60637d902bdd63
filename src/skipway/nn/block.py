"""The residual block `y = relu(F(x) + S(x))` and its two branches F (He et al. 2015, arXiv:1512.03385, fig. 5)."""

from torch import Tensor, nn

from skipway.nn.shortcut import make_shortcut


class BasicBlock(nn.Module):
    """F = conv 3x3, norm, relu, conv 3x3, norm. The stride is the first convolution's."""

    expansion = 1

    def __init__(self, in_width: int, width: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = make_shortcut(shortcut, in_width, width, stride)
        self.act = nn.ReLU(inplace=True)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm that the branch ends with: at weight and bias zero the block is its shortcut."""
        return self.norm2

    def branch(self, x: Tensor) -> Tensor:
        """F(x). (B, C, H, W) -> (B, width, H/stride, W/stride)."""
        x = self.act(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(x))

    def forward(self, x: Tensor) -> Tensor:
        """relu(F(x) + S(x)), without S in the plain twin. (B, C, H, W) -> (B, width, H/stride, W/stride)."""
        return self.act(add(self.branch(x), x, self.shortcut))


class Bottleneck(nn.Module):
    """F = conv 1x1, norm, relu, conv 3x3, norm, relu, conv 1x1 to 4 x width, norm.

    The stride is the 3x3 convolution's, as in torchvision ("v1.5"); the paper has it on the first 1x1.
    """

    expansion = 4

    def __init__(self, in_width: int, width: int, stride: int, shortcut: str):
        super().__init__()
        out_width = width * self.expansion
        self.conv1 = nn.Conv2d(in_width, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_width, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_width)
        self.shortcut = make_shortcut(shortcut, in_width, out_width, stride)
        self.act = nn.ReLU(inplace=True)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm that the branch ends with: at weight and bias zero the block is its shortcut."""
        return self.norm3

    def branch(self, x: Tensor) -> Tensor:
        """F(x). (B, C, H, W) -> (B, 4 width, H/stride, W/stride)."""
        x = self.act(self.norm1(self.conv1(x)))
        x = self.act(self.norm2(self.conv2(x)))
        return self.norm3(self.conv3(x))

    def forward(self, x: Tensor) -> Tensor:
        """relu(F(x) + S(x)), without S in the plain twin. (B, C, H, W) -> (B, 4 width, H/stride, W/stride)."""
        return self.act(add(self.branch(x), x, self.shortcut))


def add(branch: Tensor, x: Tensor, shortcut: nn.Module | None) -> Tensor:
    """F(x) + S(x), or F(x) alone where there is no shortcut. `branch` is F(x), (B, C', H', W')."""
    return branch if shortcut is None else branch + shortcut(x)


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}
