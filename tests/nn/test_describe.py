"""What a description says is what the network does."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import skipway
from skipway.nn.network import ResNet
from skipway.nn.zoo import find


def kept_by(network: nn.Module, x: torch.Tensor) -> int:
    """Bytes that a whole training step keeps for its backward pass, besides weights and buffers."""
    weights = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.train()(x)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet50", "preact_resnet20", "seresnet18", "resnetblur18"])
def test_describe_counts_the_bytes_that_a_step_keeps(name):
    size = 32 if find(name).stem == "cifar" else 64
    description = skipway.describe(name, image_size=size, batch_size=4)
    real = kept_by(skipway.build(name), torch.randn(4, 3, size, size))
    assert description.activation_bytes == pytest.approx(real, rel=0.02)
    assert skipway.describe(name, image_size=size, batch_size=8).activation_bytes == pytest.approx(2 * real, rel=0.02)


def test_describe_counts_what_checkpointing_keeps():
    spec = find("resnet56")
    plain = skipway.describe(spec, batch_size=8)
    thrifty = skipway.describe(replace(spec, checkpoint=True), batch_size=8)
    assert thrifty.activation_bytes < plain.activation_bytes / 3


@pytest.mark.parametrize("name", ["tutorial", "resnet18", "resnet50", "resnet50_v1", "resnet20_b"])
def test_receptive_field_is_what_a_gradient_reaches(name):
    """Of one pixel of the last feature map, with ones for weights and no activation that could hide anything."""
    description = skipway.describe(name, image_size=512 if find(name).stem == "imagenet" else 128)
    network = skipway.build(name).eval()
    assert isinstance(network, ResNet)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    for parent in [*network.modules()]:
        for child, module in parent.named_children():
            if isinstance(module, nn.MaxPool2d):
                setattr(parent, child, nn.AvgPool2d(module.kernel_size, module.stride, module.padding))
    x = torch.ones(1, *description.input, requires_grad=True)
    last = [*network.features(x).values()][-2]
    last[0, :, last.shape[2] // 2, last.shape[3] // 2].sum().backward()
    assert x.grad is not None
    rows = x.grad.abs().sum((0, 1, 3)).nonzero()
    reach = int(rows.max() - rows.min()) + 1
    assert reach == description.receptive_field


def test_anothers_network_is_described_as_ours_would_be():
    theirs, ours = skipway.describe("torchvision:resnet18", batch_size=4), skipway.describe("resnet18", batch_size=4)
    assert (theirs.parameters, theirs.macs, theirs.input) == (ours.parameters, ours.macs, ours.input)
    assert theirs.activation_bytes == pytest.approx(ours.activation_bytes, rel=0.02)
    assert sum(row.macs for row in theirs.layers) == theirs.macs
    assert next(row.part for row in theirs.layers if row.part.startswith("layer")) == "layer1.0"
    assert theirs.skips == {}
    assert theirs.receptive_field == 0
    assert theirs.source.startswith("torchvision; layers in the order in which they run")


def test_attention_counts_in_the_macs_of_a_transformer():
    """ViT-Ti/16 at 224: 1.08 GMACs in its layers (timm's own table), and 12 x 2 x 197^2 x 192 in attention."""
    description = skipway.describe("timm:vit_tiny_patch16_224")
    assert description.parameters == 5_717_416
    *layers, beside = description.layers
    assert round(sum(row.macs for row in layers) / 1e9, 2) == 1.07
    assert beside.macs == 12 * 2 * 197**2 * 192
    assert beside.parameters == 192 + 197 * 192  # class token, positions
    assert description.macs == sum(row.macs for row in description.layers)
    assert description.parameters == sum(row.parameters for row in description.layers)


@pytest.mark.parametrize("size", [32, 33])
def test_one_image_with_one_last_pixel_can_be_described(size):
    assert skipway.describe("resnet18", image_size=size).layers[-1].output == (1000,)


def test_pools_say_their_stride():
    kinds = {row.layer: row.kind for row in skipway.describe("resnetblur18").layers if row.part == "stem"}
    assert "max-pool" in kinds.values()
    assert "max-pool/2" in [row.kind for row in skipway.describe("resnet18").layers]


def test_describe_takes_a_network_and_twin_a_name():
    network = skipway.build("resnet20_b")
    assert skipway.describe(network) == skipway.describe("resnet20_b")
    assert skipway.twin("resnet20_b").dropped == (
        "stage2.block1: projection 16 -> 32, 576 parameters",
        "stage3.block1: projection 32 -> 64, 2,176 parameters",
    )
