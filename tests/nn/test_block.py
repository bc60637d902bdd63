"""One contract over every block, shortcut, norm and stem that the spec admits."""

import itertools

import pytest
import torch
from torch import nn

from skipway.errors import InputError
from skipway.network_spec import EXPANSION, NetworkSpec, StageSpec
from skipway.nn.block import CONVS
from skipway.nn.initialise import initialise
from skipway.nn.layers import FixupNorm
from skipway.nn.network import ResNet
from skipway.nn.shortcut import SHORTCUTS, ZeroPad, make_shortcut
from skipway.nn.stem import STEMS

NORMS = {
    "batch": {"norm": "batch"},
    "group": {"norm": "group", "norm_groups": 1},
    "none": {"norm": "none"},
    "fixup": {"norm": "none", "init": "fixup"},
    "skipinit": {"norm": "none", "branch_scale": "skipinit"},
}


def make_spec(block: str, shortcut: str, norm: str, stem: str, **changes) -> NetworkSpec:
    """A tiny network of that kind: a block that keeps the shape, and one that halves it."""
    stages = (StageSpec(1, 16 if stem == "whitening" else 8), StageSpec(2, 16, 2))  # as many as the stem's, at least
    options = {"in_channels": 2, "stem_width": 8, "num_classes": 3} | NORMS[norm] | changes
    return NetworkSpec(stages, block=block, shortcut=shortcut, stem=stem, **options)  # pyrefly: ignore


def admitted() -> list[tuple[str, str, str, str]]:
    """The product, less what the spec refuses (which has tests of its own)."""
    found = []
    for choice in itertools.product(CONVS, SHORTCUTS, NORMS, STEMS):
        try:
            make_spec(*choice)
        except InputError:
            assert choice[1] == "none"
            assert choice[2] in ("fixup", "skipinit")
            continue
        found.append(choice)
    return found


ADMITTED = admitted()


def make(spec: NetworkSpec) -> ResNet:
    """With every parameter somewhere at random, so that none hides behind a zero."""
    network = ResNet(spec)
    initialise(network, spec, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for p in network.parameters():
            p += 0.2 * torch.randn_like(p)
    return network


def test_the_product_is_large():
    assert len(ADMITTED) == 5 * 7 * (6 * 5 - 2)


@pytest.mark.parametrize("choice", ADMITTED, ids="-".join)
def test_network_keeps_its_contract(choice):
    spec = make_spec(*choice)
    network = make(spec)
    x = torch.randn(3, 2, 16, 16)
    y = network(x)
    assert y.shape == (3, 3)
    (y * torch.randn_like(y)).sum().backward()
    assert [n for n, p in network.named_parameters() if not p.requires_grad] == fixed_tensors(spec)
    for name, p in network.named_parameters():
        assert not p.requires_grad or p.grad is not None, name
        assert p.grad is None or p.grad.abs().sum() > 0, name
    network.eval()
    with torch.no_grad():
        assert torch.equal(network(x), network(x))
        assert network(x[:1]).isfinite().all()
        other = ResNet(spec).eval()
        other.load_state_dict(network.state_dict())
        assert torch.equal(other(x), network(x))
    check_silent_branches(network)


def fixed_tensors(spec: NetworkSpec) -> list[str]:
    """What does not learn."""
    return ["stem.conv.weight"] if spec.stem == "whitening" else []


def check_silent_branches(network: ResNet) -> None:
    """A block whose branch is zero is its shortcut; in the plain twin nothing is left."""
    x = torch.randn(2, 2, 16, 16)
    with torch.no_grad():
        x = network.stem(x)
        for name, block in network.blocks():
            for p in block.last_layer.parameters():
                p.zero_()
            for module in block.modules():
                if isinstance(module, FixupNorm):
                    module.bias.zero_()
            source = x
            if block.preact and hasattr(block.shortcut, "conv"):
                source = block.act(block.norm1(x))
            expected = torch.zeros(1) if block.shortcut is None else block.shortcut(source)
            if block.last_act:
                expected = expected.relu()
            y = block(x)
            assert torch.equal(y, expected.expand_as(y)), name
            assert block.shortcut is None or y.abs().sum() > 0, name
            x = y


@pytest.mark.parametrize("attention", ["none", "se", "eca"])
@pytest.mark.parametrize("blur", ["none", "blur", "avg", "max"])
@pytest.mark.parametrize("act", ["relu", "gelu", "silu"])
def test_network_keeps_its_contract_with_every_layer(attention, blur, act):
    changes = {"attention": attention, "blur": blur, "act": act, "last_act": act != "gelu", "block_dropout": 0.1}
    for choice in (("basic", "avg_pool", "batch", "deep"), ("preact_bottleneck", "project_all", "none", "tiered")):
        some = {"drop_path_by": "batch", "head_pool": "max", "norm_scale": False} if act == "silu" else {}
        spec = make_spec(*choice, **changes, **some, drop_path=0.2, head_dropout=0.1)
        network = make(spec)
        network(torch.randn(4, 2, 16, 16)).square().sum().backward()
        learning = [p for p in network.parameters() if p.requires_grad]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in learning)
        network.eval()
        x = torch.randn(1, 2, 16, 16)
        assert torch.equal(network(x), network(x))


def test_plain_twin_with_the_same_weights_is_not_the_residual_network():
    for block in CONVS:
        residual, plain = (make(make_spec(block, kind, "batch", "cifar")) for kind in ("zero_pad", "none"))
        plain.load_state_dict(residual.state_dict())
        x = torch.randn(2, 2, 16, 16)
        assert not torch.allclose(residual.eval()(x), plain.eval()(x))


def test_block_adds_branch_and_shortcut():
    network = make(make_spec("basic", "projection", "batch", "cifar")).eval()
    block = dict(network.blocks())["stage2.block1"]
    x = torch.randn(2, 8, 8, 8)
    assert block.shortcut is not None
    assert torch.allclose(block(x), (block.branch(x) + block.shortcut(x)).relu())


def test_zero_pad_takes_every_second_pixel_between_zero_channels():
    x = torch.arange(2 * 4 * 4, dtype=torch.float32).view(1, 2, 4, 4)
    y = ZeroPad(2, 5, 2)(x)
    assert torch.equal(y[0, 1:3], x[0, :, ::2, ::2])
    assert y[0, [0, 3, 4]].abs().sum() == 0


def test_average_and_zero_pad():
    x = torch.randn(2, 3, 4, 6)
    made = make_shortcut(make_spec("basic", "avg_zero_pad", "batch", "cifar"), 3, 8, 2)
    assert made is not None
    y = made(x)
    assert torch.allclose(y[:, 2:5], nn.functional.avg_pool2d(x, 2))
    assert y[:, [0, 1, 5, 6, 7]].abs().sum() == 0
    assert y.shape == (2, 8, 2, 3)
    assert made(torch.randn(1, 3, 5, 7)).shape == (1, 8, 3, 4)  # up, as strides
    assert not [*made.parameters()]


def test_identity_where_the_shape_stays():
    for kind in ("projection", "zero_pad", "avg_zero_pad", "avg_pool"):
        assert isinstance(make_shortcut(make_spec("basic", kind, "batch", "cifar"), 8, 8, 1), nn.Identity)
    everywhere = make_shortcut(make_spec("basic", "project_all", "batch", "cifar"), 8, 8, 1)
    assert everywhere is not None
    assert len(list(everywhere.parameters())) == 3
    with pytest.raises(InputError, match="Did you mean 'projection'"):
        make_spec("basic", "projektion", "batch", "cifar")


@pytest.mark.parametrize("kind", ["basic", "bottleneck", "bottleneck_v1", "preact", "preact_bottleneck"])
def test_stride_is_where_the_paper_has_it(kind):
    block = dict(make(make_spec(kind, "projection", "batch", "cifar")).blocks())["stage2.block1"]
    strides = [block.get_submodule(f"conv{i + 1}").stride[0] for i in range(block.num_convs)]  # pyrefly: ignore
    expected = {"basic": [2, 1], "bottleneck": [1, 2, 1], "bottleneck_v1": [2, 1, 1]}
    assert strides == expected[kind.replace("preact_", "").replace("preact", "basic")]


@pytest.mark.parametrize("block", CONVS)
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_maximum_takes_the_strides_place_before_the_norm(block, shortcut):
    """Written out for the block of stride 2, on an image whose last row and column the pool leaves out."""
    network = make(make_spec(block, shortcut, "batch", "cifar", blur="max")).eval()
    made = dict(network.blocks())["stage2.block1"]
    x = torch.randn(2, network.spec.stages[0].width * EXPANSION[block], 7, 7)
    strided = CONVS[block][1] + 1
    y = made.act(made.norm1(x)) if made.preact else x
    source = y if made.preact and shortcut not in ("zero_pad", "avg_zero_pad", "none") else x
    for i in range(1, made.num_convs + 1):
        if made.preact and i > 1:
            y = made.get_submodule(f"norm{i}")(y).relu()
        y = made.get_submodule(f"conv{i}")(y)
        assert y.shape[2] == (7 if i <= strided else 3)
        y = nn.functional.max_pool2d(y, 2) if i == strided else y
        y = y if made.preact else made.get_submodule(f"norm{i}")(y)
        y = y if made.preact or i == made.num_convs else y.relu()
    if made.shortcut is not None:
        y = y + made.shortcut(source[:, :, :6, :6])
    assert torch.equal(made(x), y if made.preact else y.relu())


def test_norm_without_scale_keeps_its_factor_at_one():
    for norm in ("batch", "group"):
        network = make_fresh(make_spec("preact", "projection", norm, "cifar", norm_scale=False, zero_init_last=True))
        factors = [m.weight for m in network.modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm))]
        assert len(factors) == 7
        assert all(not p.requires_grad and torch.equal(p, torch.ones_like(p)) for p in factors)
        assert all(p.requires_grad for n, p in network.named_parameters() if "norm" not in n or "bias" in n)
        assert (
            network.state_dict().keys()
            == make_fresh(make_spec("preact", "projection", norm, "cifar")).state_dict().keys()
        )


def make_fresh(spec: NetworkSpec) -> ResNet:
    network = ResNet(spec)
    initialise(network, spec, torch.Generator().manual_seed(1))
    return network


def test_norm_momentum_is_each_batchs_share():
    network = make_fresh(make_spec("basic", "projection", "batch", "cifar", norm_momentum=0.6))
    x = torch.randn(4, 2, 8, 8)
    seen = network.stem.get_submodule("conv")(x).mean((0, 2, 3))
    network(x)
    torch.testing.assert_close(network.stem.get_submodule("norm").running_mean, 0.6 * seen)
    momenta = {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)}
    assert momenta == {0.6}
