import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import skipway
from skipway.errors import InputError
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.nn import kernels
from skipway.nn.network import ResNet, skeleton
from skipway.nn.twin import twin
from skipway.nn.zoo import ZOO, find, matching, resolve_stem

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


PUBLISHED = COUNTS | {
    "resnext50_32x4d": 25_028_904, "resnext101_32x8d": 88_791_336, "resnext101_64x4d": 83_455_272,
    "wide_resnet50_2": 68_883_240, "wide_resnet101_2": 126_886_696,
    "resnet18d": 11_708_744, "resnet50d": 25_576_264, "resnetv2_50": 25_549_352, "seresnet50": 28_088_024,
    "seresnext50_32x4d": 27_559_896, "ecaresnet50d": 25_576_350, "resnetblur50": 25_557_032,
    "resnetaa50": 25_557_032, "resnetrs50": 35_691_912, "resnetrs152": 86_621_576, "resnetv2_50d_gn": 25_568_584,
    "wrn28_10": 36_479_194,
}  # fmt: skip


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_zoo_has_the_published_parameter_counts(name):
    assert count(skeleton(find(name))) == PUBLISHED[name]


def test_zoo_has_the_counts_of_torchvision_and_timm():
    known = {*torchvision.models.list_models(), *timm.list_models()} & {*ZOO}
    assert len(known) > 60
    for name in known:
        with torch.device("meta"):
            theirs = timm.create_model(name) if timm.is_model(name) else torchvision.models.get_model(name)
        assert count(skeleton(find(name))) == count(theirs), name


def test_preactivation_and_resnext_have_the_papers_sizes():
    """He et al. 2016 print 1.7M and 10.2M for depths 164 and 1001, Xie et al. 34.4M and 68.1M."""
    printed = {
        "preact_resnet164_b": 1.7,
        "preact_resnet1001_b": 10.2,
        "resnext29_8x64d": 34.4,
        "resnext29_16x64d": 68.1,
    }
    for name, millions in printed.items():
        assert count(skeleton(find(name))) / 1e6 == pytest.approx(millions, rel=0.013)


@pytest.mark.parametrize("name", [n for n in ZOO if "plain" in n])
def test_plain_twin_lacks_only_the_projections(name):
    residual = find(name.replace("plain_", "") if name.startswith("plain_") else name.replace("plain", "resnet"))
    made = skeleton(residual)
    projections = sum(p.numel() for n, p in made.named_parameters() if "shortcut" in n)
    assert count(skeleton(find(name))) == count(made) - projections
    assert projections == 0 or residual.shortcut != "zero_pad"


GMACS = {
    "resnet18": "1.814", "resnet34": "3.664", "resnet50": "4.089", "resnet101": "7.801", "resnet152": "11.514",
    "resnext50_32x4d": "4.23", "wide_resnet50_2": "11.398",
}  # fmt: skip


@pytest.mark.parametrize("name", GMACS)
def test_describe_counts_the_published_macs(name):
    digits = len(GMACS[name].split(".")[1])
    assert f"{skipway.describe(name).macs / 1e9:.{digits}f}" == GMACS[name]


def test_tutorial_has_63_entries_and_its_flops():
    network = skipway.build("tutorial")
    assert len(network.state_dict()) == 63
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(1, 3, 32, 32))
    assert counter.get_total_flops() == 36_536_960


@pytest.mark.parametrize("name", ZOO)
def test_describe_agrees_with_torchs_flop_counter(name):
    spec = find(name)
    if max(stage.depth for stage in spec.stages) > 60:  # the same blocks again and again
        stages = tuple(replace(stage, depth=min(stage.depth, 3)) for stage in spec.stages)
        spec = replace(spec, stages=stages)
    description = skipway.describe(spec)
    network = skeleton(spec)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            module.forward = lambda input: input  # counts nothing, and takes most of the time
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, *description.input, device="meta"))
    assert description.flops == 2 * description.macs == counter.get_total_flops()
    assert description.parameters == sum(row.parameters for row in description.layers) == count(network)


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


@pytest.mark.parametrize("block", ["basic", "bottleneck", "preact"])
def test_dirac_filters_hand_their_input_on(block):
    spec = NetworkSpec((StageSpec(1, 64), StageSpec(1, 128, 2)), block=block, stem="cifar", init="dirac")
    network = skipway.build(spec)
    others = skipway.build(replace(spec, init="he")).state_dict()
    branches = 0
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        first = module.weight[: module.in_channels]
        if module.kernel_size == (3, 3) and name.startswith("stages"):
            branches += 1
            x = torch.randn(2, module.in_channels, 5, 5)
            y = nn.functional.conv2d(x, first, padding=1)
            assert torch.equal(y, x[:, : len(first)])
            assert torch.equal(module.weight[len(first) :], others[f"{name}.weight"][len(first) :])
        else:
            assert torch.equal(module.weight, others[f"{name}.weight"])
    assert branches == (2 if block == "bottleneck" else 4)


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
    assert [*matching("resnet?0")] == ["resnet20", "resnet50"]
    assert {*matching("1202")} >= {"resnet1202", "resnet1202_b", "plain1202", "preact_resnet1202"}
    assert {"resnet50d", "wide_resnet50_2", "resnetrs50"} <= {*matching("*50*")}
    assert not matching("zzz")


TWINS = [
    replace(find("resnet20_b"), stages=(StageSpec(2, 4), StageSpec(2, 8, 2))),
    replace(find("resnet20"), stages=(StageSpec(2, 16), StageSpec(2, 32, 2))),
    replace(find("resnet50d"), stages=(StageSpec(1, 4), StageSpec(2, 8, 2)), stem_width=8),
    replace(find("preact_resnet20_b"), drop_path=0.1, stages=(StageSpec(1, 8), StageSpec(1, 16, 2))),
    NetworkSpec((StageSpec(2, 8), StageSpec(1, 8, 2)), stem="cifar", norm="none", init="fixup", shortcut="project_all"),
]


@pytest.mark.parametrize("spec", TWINS, ids=[f"{s.block}-{s.shortcut}" for s in TWINS])
def test_twin_of_the_same_seed_shares_every_tensor(spec):
    made = twin(spec)
    residual, plain = skipway.build(spec, seed=3).state_dict(), skipway.build(made.spec, seed=3).state_dict()
    lost = residual.keys() - plain.keys()
    assert all(".shortcut." in name or spec.init == "fixup" for name in lost)
    shared = residual.keys() & plain.keys()
    assert any("conv" in name for name in shared)
    if spec.init == "he":
        assert shared == plain.keys()
        assert all(torch.equal(residual[name], plain[name]) for name in shared)
    parameters = dict(skipway.build(spec).named_parameters())
    sizes: dict[str, int] = {}
    for name, p in parameters.items():
        if ".shortcut." in name:
            _, stage, block, *_ = name.split(".")
            part = f"stage{int(stage) + 1}.block{int(block) + 1}"
            sizes[part] = sizes.get(part, 0) + p.numel()
    listed = [words for words in made.dropped if "projection" in words]
    assert [words.split(":")[0] for words in listed] == [*sizes]
    assert [words.split(", ")[1] for words in listed] == [f"{size:,} parameters" for size in sizes.values()]
    if spec.shortcut == "zero_pad":
        assert not listed
        assert count(skeleton(spec)) == count(skeleton(made.spec))


def test_head_pools_and_scales_as_the_spec_says():
    spec = replace(find("resnet20"), stages=(StageSpec(1, 16),))
    plain, other = (skipway.build(s) for s in (spec, replace(spec, head_pool="max", head_scale=0.125)))
    x = torch.randn(2, 3, 8, 8)
    last = plain.eval().features(x)["stage1.block1"]
    linear = plain.head.linear
    assert linear is not None
    assert torch.equal(plain(x), linear(nn.functional.adaptive_avg_pool2d(last, 1).flatten(1)))
    expected = linear(nn.functional.adaptive_max_pool2d(last, 1).flatten(1)) / 8
    assert torch.equal(other.eval()(x), expected)
    assert other.state_dict().keys() == plain.state_dict().keys()


def thrifty_specs() -> list[NetworkSpec]:
    stages = (StageSpec(2, 8), StageSpec(2, 16, 2))
    options: dict[str, Any] = {"stem": "cifar", "stem_width": 8, "block_dropout": 0.3, "drop_path": 0.3}
    return [
        NetworkSpec(stages, block="basic", **options),
        NetworkSpec(stages, block="bottleneck", shortcut="avg_pool", attention="se", **options),
        NetworkSpec(stages, block="preact", shortcut="zero_pad", **options),
        NetworkSpec(stages, block="preact_bottleneck", act="silu", blur="blur", **options),
        NetworkSpec(stages, block="bottleneck_v1", norm="none", branch_scale="layer_scale", **options),
        NetworkSpec(stages, block="basic", shortcut="none", **options | {"drop_path": 0.0}),
        NetworkSpec(stages, block="preact", drop_path_by="batch", blur="max", **options),
    ]


@pytest.mark.parametrize("own", [False, True], ids=["PyTorch's", "own kernels"])
@pytest.mark.parametrize("spec", thrifty_specs(), ids=lambda spec: spec.block)
def test_checkpoint_changes_no_bit(spec, own):
    """Outputs, gradients and running statistics, over two steps, with the same draws of dropout and drop path; by own
    kernels in the forward pass too, which are put away before the backward pass, as in training."""
    if own and (why := kernels.load()):
        pytest.skip(f"no kernels: {why}")
    found: list[dict[str, Any]] = []
    for thrifty in (False, True):
        network = skipway.build(replace(spec, checkpoint=thrifty)).to(memory_format=torch.channels_last)
        torch.manual_seed(1)
        for x in torch.randn(2, 4, 3, 16, 16):
            with kernels.used(own):
                y = network(x.contiguous(memory_format=torch.channels_last))
            y.square().sum().backward()
        gradients = {f"gradient of {name}": p.grad for name, p in network.named_parameters()}
        found.append({"logits": y, **network.state_dict(), **gradients})
    kept, again = found
    assert kept.keys() == again.keys()
    for name, value in kept.items():
        assert torch.equal(value, again[name]), name


def test_checkpoint_keeps_the_blocks_ends_alone():
    """Fewer bytes wait for the backward pass; in eval mode nothing is computed twice."""
    saved, runs = [], []
    for thrifty in (False, True):
        spec = replace(find("resnet20"), checkpoint=thrifty)
        network = skipway.build(spec)
        storages: dict[int, torch.Tensor] = {}

        def keep(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(torch.randn(2, 3, 16, 16))
        saved.append(sum(t.untyped_storage().nbytes() for t in storages.values()))
        calls = []
        network.get_submodule("stages.1.0.conv1").register_forward_hook(lambda *_, calls=calls: calls.append(1))
        network(torch.randn(2, 3, 16, 16)).sum().backward()
        network.eval()(torch.randn(2, 3, 16, 16)).sum().backward()
        runs.append(len(calls))
    assert saved[1] < saved[0] / 2
    assert runs == [2, 3]


def test_networks_are_built_without_torchvision_and_timm():
    code = (
        "import sys; sys.modules['torchvision'] = sys.modules['timm'] = None\n"
        "import skipway, torch\n"
        "print(skipway.build('resnet50')(torch.randn(2, 3, 64, 64)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "torch.Size([2, 1000])", done.stderr


LEARN = """
import sys
sys.modules["torchvision"] = sys.modules["timm"] = None
import torch
import skipway
torch.manual_seed(0)
images, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 4
network = skipway.build("resnet20", num_classes=4)
sgd = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
for step in range(12):
    loss = torch.nn.functional.cross_entropy(network(images), labels)
    print(loss.item())
    sgd.zero_grad()
    loss.backward()
    sgd.step()
for room in ("torchvision", "timm"):
    assert not any(name.startswith(room + ".") for name in sys.modules)
"""


def test_networks_learn_without_torchvision_and_timm():
    done = subprocess.run([sys.executable, "-c", LEARN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    losses = [float(line) for line in done.stdout.split()]
    assert 1 < losses[0] < 3  # near log(4), where nothing is learnt
    assert losses[-1] < 0.5 * losses[0]


def test_stem_and_stages_are_plain_modules():
    network = skipway.build("resnet20")
    assert isinstance(network, ResNet)
    assert isinstance(network.stages, nn.ModuleList)
    assert len(list(network.blocks())) == 9


def test_build_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    skipway.build("resnet20")
    assert torch.equal(torch.get_rng_state(), before)
