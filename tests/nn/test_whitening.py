"""The whitening stem: the plain pixels at first, then filters under which the images' patches are white."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import skipway
from skipway.errors import InputError
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.nn.drawing import draw
from skipway.nn.stem import WhiteningStem
from skipway.nn.twin import twin
from skipway.nn.weights import load_weights, to_layout
from skipway.nn.whitening import EPSILON, patch_covariance, whiten

SPEC = NetworkSpec((StageSpec(1, 8), StageSpec(1, 8, 2)), stem="whitening")


def scenes(number: int = 20, channels: int = 3, size: int = 12) -> torch.Tensor:
    """Smooth images, whose neighbouring pixels are alike, and whose channels are too."""
    torch.manual_seed(5)
    rough = F.avg_pool2d(torch.randn(number, channels, size + 4, size + 4), 5, 1)
    return 3 * rough + 2 * rough.mean(1, keepdim=True) + 0.01 * torch.randn(number, channels, size, size) + 0.5


@pytest.mark.parametrize(("channels", "patch"), [(3, 2), (1, 2), (4, 3), (3, 1)])
def test_stem_starts_with_the_pixels_of_its_patches(channels, patch):
    network = skipway.build(replace(SPEC, stem_patch=patch, in_channels=channels))
    x = torch.randn(2, channels, 9, 9)
    y = network.stem.get_submodule("conv")(x)
    size = channels * patch**2
    assert y.shape == (2, 2 * size, 10 - patch, 10 - patch)
    assert network.spec.stem_out == 2 * size
    assert torch.equal(y[:, :size].flatten(2), F.unfold(x, patch))
    assert torch.equal(y[:, size:], -y[:, :size])
    assert torch.equal(network.stem(x), y.relu())


def test_its_filters_do_not_learn_and_its_bias_does():
    network = skipway.build(SPEC)
    before = copy.deepcopy(network.state_dict())
    sgd = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.1)
    network(torch.randn(4, 3, 8, 8)).square().sum().backward()
    sgd.step()
    after = network.state_dict()
    assert torch.equal(after["stem.conv.weight"], before["stem.conv.weight"])
    assert not torch.equal(after["stem.conv.bias"], before["stem.conv.bias"])
    assert [*network.stem.state_dict()] == ["conv.weight", "conv.bias"]


@pytest.mark.parametrize(("channels", "patch"), [(3, 2), (1, 3), (2, 1)])
def test_patches_are_white_after_it(channels, patch):
    """Their covariance is diagonal, and the variance of each v / (v + epsilon), v falling."""
    network = skipway.build(replace(SPEC, stem_patch=patch, in_channels=channels))
    images = scenes(channels=channels)
    whiten(network, images)
    conv, size = network.stem.get_submodule("conv"), channels * patch**2
    y = conv(images).double()
    assert torch.equal(y[:, size:], -y[:, :size])
    covariance = torch.cov(y[:, :size].transpose(0, 1).flatten(1))
    values = torch.linalg.eigvalsh(torch.cov(F.unfold(images.double(), patch).transpose(0, 1).flatten(1))).flip(0)
    torch.testing.assert_close(covariance, torch.diag(values / (values + EPSILON)), rtol=1e-3, atol=1e-3)
    assert values[0] > 2 * values[-1]


def test_the_largest_components_are_kept():
    whole, part = (skipway.build(replace(SPEC, stem_patch=2, stem_components=k)) for k in (0, 5))
    assert part.spec.stem_out == 10
    assert torch.equal(part.state_dict()["stem.conv.weight"][:5].flatten(1), torch.eye(12)[:5])
    for network in (whole, part):
        whiten(network, scenes())
    every, some = (n.state_dict()["stem.conv.weight"] for n in (whole, part))
    assert torch.equal(some, torch.cat([every[:5], every[12:17]]))
    assert part(torch.randn(2, 3, 8, 8)).shape == whole(torch.randn(2, 3, 8, 8)).shape


@pytest.mark.parametrize(("patch", "size"), [(2, 12), (3, 4), (12, 12), (1, 1)])
def test_covariance_is_that_of_all_patches(monkeypatch, patch, size):
    images = scenes(size=size)
    expected = torch.cov(F.unfold(images.double(), patch).transpose(0, 1).flatten(1))
    torch.testing.assert_close(patch_covariance(images, patch), expected)
    monkeypatch.setattr("skipway.nn.whitening.PATCH_VALUES", 1)  # row by row
    torch.testing.assert_close(patch_covariance(images, patch), expected)


def test_filters_depend_on_neither_the_order_of_images_nor_their_sign():
    images, found = scenes(), []
    for given in (images, images.flip(0), -images, images.contiguous(memory_format=torch.channels_last)):
        network = skipway.build(SPEC)
        whiten(network, given)
        found.append(network.state_dict()["stem.conv.weight"])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    for row in found[0].flatten(1)[:12]:
        assert next(value for value in row.tolist() if abs(value) >= row.abs().max() / 2) > 0
    again = skipway.build(SPEC)
    whiten(again, images)
    assert torch.equal(again.state_dict()["stem.conv.weight"], found[0])


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 3, 4, 4), torch.ones(3, 3, 4, 4), scenes()[:, :1].expand(-1, 3, -1, -1)]
)
def test_images_without_variance_give_finite_filters(images):
    network = skipway.build(SPEC)
    whiten(network, images)
    weight = network.state_dict()["stem.conv.weight"]
    assert weight.isfinite().all()
    assert weight.abs().max() <= EPSILON**-0.5 * 1.001


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(2, 1, 4, 4), r"\(N, 3, H, W\).*\(2, 1, 4, 4\)"),
        (torch.zeros(3, 4, 4), "got .*3, 4, 4"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "uint8"),
        (torch.zeros(2, 3, 1, 4), "two patches of 2 pixels.*2 images of 4x1"),
        (torch.zeros(1, 3, 2, 2), "two patches"),
        (torch.zeros(0, 3, 4, 4), "0 images"),
        (torch.full((2, 3, 4, 4), float("nan")), "finite numbers"),
    ],
)
def test_images_that_cannot_be_whitened_are_refused(images, said):
    network = skipway.build(SPEC)
    before = network.state_dict()["stem.conv.weight"].clone()
    with pytest.raises(InputError, match=f"(?s){said}"):
        whiten(network, images)
    assert torch.equal(network.state_dict()["stem.conv.weight"], before)
    with pytest.raises(InputError, match="network.stem must be whitening.*got cifar"):
        whiten(skipway.build(replace(SPEC, stem="cifar")), scenes())


def test_preactivation_block_follows_without_another_activation():
    stem = skipway.build(replace(SPEC, block="preact")).stem
    assert isinstance(stem, WhiteningStem)
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(stem(x), stem.conv(x))


@pytest.mark.parametrize("size", [3, 8, 31, 32])
def test_image_arithmetic_with_a_maximum_for_strides(size):
    spec = replace(SPEC, blur="max", shortcut="avg_pool")
    features = skipway.build(spec, image_size=size).features(torch.randn(2, 3, size, size))
    assert [f.shape[2] for f in features.values() if f.ndim == 4] == [size - 1, size - 1, (size - 1) // 2]
    assert spec.last_map(size) == (size - 1) // 2
    assert replace(spec, blur="avg").last_map(size) == size // 2


def test_twin_drawing_and_layouts_know_it():
    spec = replace(SPEC, shortcut="projection", blur="max")
    network, plain = skipway.build(spec), skipway.build(twin(spec).spec)
    whiten(network, scenes())
    assert network.stem.state_dict().keys() == plain.stem.state_dict().keys()
    picture = draw(skipway.describe(spec, image_size=32))
    assert "2x2" in picture
    assert "24x31x31" in picture
    other = skipway.build(spec, seed=1)
    for layout in ("skipway", "torchvision", "cifar"):
        load_weights(other, to_layout(network.state_dict(), spec, layout))
        assert torch.equal(other.eval()(scenes()), network.eval()(scenes()))
    assert [p.requires_grad for p in other.stem.parameters()] == [False, True]
