"""One contract over every block and shortcut."""

import pytest
import torch
from torch import nn

from skipway.errors import InputError
from skipway.nn.block import BLOCKS
from skipway.nn.shortcut import SHORTCUTS, ZeroPad, make_shortcut

KINDS = [*SHORTCUTS, "none"]
every_block = pytest.mark.parametrize("block", BLOCKS)


def everywhere(test):
    """Over every block, shortcut, stride and change of width."""
    for name, values in (("in_width", [8, 16]), ("block", BLOCKS), ("shortcut", KINDS), ("stride", [1, 2])):
        test = pytest.mark.parametrize(name, values)(test)
    return test


def make(block, in_width, stride, shortcut):
    made = BLOCKS[block](in_width, 16 // BLOCKS[block].expansion, stride, shortcut)
    for p in made.parameters():
        nn.init.normal_(p, std=0.3)
    return made


@everywhere
def test_block_keeps_its_contract(block, shortcut, stride, in_width):
    made = make(block, in_width, stride, shortcut)
    x = torch.randn(3, in_width, 8, 8, requires_grad=True)
    y = made(x)
    assert y.shape == (3, 16, 8 // stride, 8 // stride)
    assert (y >= 0).all()
    (y * torch.randn_like(y)).sum().backward()
    assert x.grad is not None
    for name, p in made.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name
    made.eval()
    with torch.no_grad():
        assert torch.equal(made(x), made(x))
        twin = BLOCKS[block](in_width, 16 // BLOCKS[block].expansion, stride, shortcut).eval()
        twin.load_state_dict(made.state_dict())
        assert torch.equal(twin(x), made(x))


@everywhere
def test_block_with_a_silent_branch_is_its_shortcut(block, shortcut, stride, in_width):
    made = make(block, in_width, stride, shortcut)
    nn.init.zeros_(made.last_norm.weight)
    nn.init.zeros_(made.last_norm.bias)
    x = torch.randn(3, in_width, 8, 8)
    y = made(x)
    if made.shortcut is None:
        assert torch.equal(y, torch.zeros_like(y))
    else:
        assert torch.equal(y, made.shortcut(x).relu())
        assert y.abs().sum() > 0


@every_block
def test_plain_twin_with_the_same_weights_is_not_the_shortcut(block):
    residual, plain = make(block, 16, 1, "zero_pad"), make(block, 16, 1, "none")
    plain.load_state_dict(residual.state_dict())
    for made in (residual, plain):
        nn.init.zeros_(made.last_norm.weight)
        nn.init.zeros_(made.last_norm.bias)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(residual(x), x.relu())
    assert not torch.equal(plain(x), x.relu())


def test_block_adds_branch_and_shortcut():
    made = make("basic", 8, 2, "projection").eval()
    x = torch.randn(2, 8, 8, 8)
    assert made.shortcut is not None
    assert torch.allclose(made(x), (made.branch(x) + made.shortcut(x)).relu())


def test_zero_pad_takes_every_second_pixel_between_zero_channels():
    x = torch.arange(2 * 4 * 4, dtype=torch.float32).view(1, 2, 4, 4)
    y = ZeroPad(2, 5, 2)(x)
    assert torch.equal(y[0, 1:3], x[0, :, ::2, ::2])
    assert y[0, [0, 3, 4]].abs().sum() == 0


def test_identity_where_the_shape_stays():
    for kind in SHORTCUTS:
        assert isinstance(make_shortcut(kind, 8, 8, 1), nn.Identity)
    with pytest.raises(InputError, match="Did you mean 'projection'"):
        make_shortcut("projektion", 8, 8, 1)
