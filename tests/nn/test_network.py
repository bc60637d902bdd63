import subprocess
import sys

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import skipway
from skipway.errors import InputError
from skipway.nn.network import ResNet, skeleton
from skipway.nn.stem import resolve_stem
from skipway.nn.zoo import ZOO, find, matching
from skipway.spec import NetworkSpec, StageSpec

COUNTS = {
    "tutorial": 43_242,
    "resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018,
    "resnet110": 1_727_962, "resnet1202": 19_421_274,
    "resnet20_b": 272_474, "resnet32_b": 466_906, "resnet44_b": 661_338, "resnet56_b": 855_770,
    "resnet110_b": 1_730_714, "resnet1202_b": 19_424_026,
    "plain20": 269_722, "plain32": 464_154, "plain44": 658_586, "plain56": 853_018,
    "plain110": 1_727_962, "plain1202": 19_421_274,
    "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032,
    "resnet101": 44_549_160, "resnet152": 60_192_808,
    "plain18": 11_515_688, "plain34": 21_623_848,
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_zoo_has_the_published_parameter_counts(name):
    assert sum(p.numel() for p in skeleton(find(name)).parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", ["plain18", "plain34"])
def test_plain_imagenet_twin_lacks_only_the_projections(name):
    residual = skeleton(find(name.replace("plain", "resnet")))
    projections = sum(p.numel() for n, p in residual.named_parameters() if "shortcut" in n)
    assert COUNTS[name.replace("plain", "resnet")] - projections == COUNTS[name]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_imagenet_networks_compute_what_torchvisions_do(name):
    """An oracle: torchvision's network with our weights gives our logits, and our gradients' norm."""
    ours, theirs = skipway.build(name, seed=1), getattr(torchvision.models, name)()
    names = {"stem.conv": "conv1", "stem.norm": "bn1", "head.linear": "fc"}
    state = {}
    for key, value in ours.state_dict().items():
        for old, new in names.items():
            key = key.replace(old, new)
        if key.startswith("stages."):
            _, stage, rest = key.split(".", 2)
            key = f"layer{int(stage) + 1}.{rest}"
        for old, new in (
            ("shortcut.conv", "downsample.0"),
            ("shortcut.norm", "downsample.1"),
            ("norm", "bn"),
        ):
            key = key.replace(old, new)
        state[key] = value
    theirs.load_state_dict(state)
    x = torch.randn(2, 3, 64, 64)
    a, b = ours(x), theirs(x)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    a.square().sum().backward()
    b.square().sum().backward()
    torch.testing.assert_close(ours.stem.conv.weight.grad, theirs.conv1.weight.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "gmacs"), [("resnet18", 1.814), ("resnet50", 4.089), ("resnet152", 11.514)])
def test_describe_counts_the_published_macs(name, gmacs):
    assert round(skipway.describe(name).macs / 1e9, 3) == gmacs


@pytest.mark.parametrize("name", ["tutorial", "resnet20", "resnet20_b", "plain20", "resnet50"])
def test_describe_agrees_with_torchs_flop_counter(name):
    description = skipway.describe(name)
    with torch.device("meta"):
        network, x = skeleton(find(name)), torch.empty(1, *description.input)
    with FlopCounterMode(display=False) as counter:
        network(x)
    assert description.flops == counter.get_total_flops()
    assert description.parameters == sum(row.parameters for row in description.layers) == COUNTS[name]


def test_describe_shows_shapes_and_skips():
    description = skipway.describe("tutorial")
    assert description.flops == 36_536_960
    assert description.layers[0].output == (16, 32, 32)
    assert description.layers[-1].output == (10,)
    assert description.skips == {
        "stage1.block1": "identity",
        "stage1.block2": "identity",
        "stage2.block1": "projection",
        "stage2.block2": "identity",
    }
    assert set(skipway.describe("plain20").skips.values()) == {"none"}
    assert skipway.describe("resnet20").skips["stage2.block1"] == "zero pad"


def test_build_is_a_function_of_spec_and_seed():
    a, b, c = (skipway.build("resnet20", seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["stem.conv.weight"], c["stem.conv.weight"])


def test_build_starts_with_he_variance():
    network = skipway.build(NetworkSpec((StageSpec(1, 256),), stem="cifar", stem_width=256))
    weight = network.get_parameter("stages.0.0.conv1.weight")
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)


def test_zero_init_last_starts_every_block_as_its_shortcut():
    spec = NetworkSpec((StageSpec(2, 8), StageSpec(2, 16, 2)), stem="cifar", stem_width=8, zero_init_last=True)
    network = skipway.build(spec)
    for _, block in network.blocks():
        x = torch.randn(2, next(block.parameters()).shape[1], 8, 8)
        assert block.shortcut is not None
        assert torch.equal(block(x), block.shortcut(x).relu())


def test_features_names_every_parts_output():
    network = skipway.build("tutorial").eval()
    x = torch.randn(2, 3, 32, 32)
    features = network.features(x)
    assert [*features] == [
        "stem",
        "stage1.block1",
        "stage1.block2",
        "stage2.block1",
        "stage2.block2",
        "logits",
    ]
    assert features["stage2.block1"].shape == (2, 32, 16, 16)
    assert torch.equal(features["logits"], network(x))


def test_build_changes_channels_and_classes():
    network = skipway.build("resnet20", num_classes=7, in_channels=1)
    assert network(torch.randn(2, 1, 28, 28)).shape == (2, 7)


def test_open_stem_follows_the_image_size():
    spec = NetworkSpec((StageSpec(1, 8),))
    small, why = resolve_stem(spec, 64)
    assert small.stem == "cifar"
    assert "64-pixel" in why
    assert resolve_stem(spec, 65)[0].stem == "imagenet"
    assert resolve_stem(small, 224) == (small, "")
    assert skipway.build(spec, image_size=32).spec.stem == "cifar"
    with pytest.raises(InputError, match="give the image size"):
        skipway.build(spec)


def test_unknown_network_suggests_the_nearest():
    with pytest.raises(InputError, match="unknown network 'resnet21'. Did you mean 'resnet20'"):
        skipway.build("resnet21")


def test_matching_takes_patterns_and_parts_of_names():
    assert [*matching("*50")] == ["resnet50"]
    assert {*matching("1202")} == {"resnet1202", "resnet1202_b", "plain1202"}
    assert not matching("zzz")


stages = st.lists(
    st.builds(StageSpec, st.integers(1, 2), st.sampled_from([4, 8]), st.sampled_from([1, 2])),
    min_size=1,
    max_size=3,
)


@settings(max_examples=25, deadline=None)
@given(
    stages.map(tuple),
    st.sampled_from(["basic", "bottleneck"]),
    st.sampled_from(["projection", "zero_pad", "none"]),
    st.sampled_from(["cifar", "imagenet"]),
    st.sampled_from([1, 3]),
)
def test_every_valid_spec_builds_and_runs(stages, block, shortcut, stem, channels):
    try:
        spec = NetworkSpec(stages, block=block, shortcut=shortcut, stem=stem, stem_width=4, in_channels=channels)
    except InputError as error:
        assert "zero_pad can only add channels" in str(error)
        return
    size = spec.downsampling
    y = skipway.build(spec).eval()(torch.randn(1, channels, size, size))
    assert y.shape == (1, 10)
    assert y.isfinite().all()


def test_networks_are_built_without_torchvision_and_timm():
    code = (
        "import sys; sys.modules['torchvision'] = sys.modules['timm'] = None\n"
        "import skipway, torch\n"
        "print(skipway.build('resnet50')(torch.randn(2, 3, 64, 64)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "torch.Size([2, 1000])", done.stderr


def test_stem_and_stages_are_plain_modules():
    network = skipway.build("resnet20")
    assert isinstance(network, ResNet)
    assert isinstance(network.stages, nn.ModuleList)
    assert len(list(network.blocks())) == 9
