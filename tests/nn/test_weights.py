"""The networks compute what torchvision's and timm's do, with the same weights, and give the weights back."""

from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import skipway
from skipway.errors import InputError
from skipway.nn.layouts import LAYOUTS
from skipway.nn.network import skeleton
from skipway.nn.weight_files import DTYPES, read_weights, safetensors
from skipway.nn.weights import load_weights, save_weights, to_layout
from skipway.nn.zoo import ZOO, dilated, find

TORCHVISION = [
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
]
TIMM = [
    *("resnet18d", "resnet34d", "resnet26d", "resnet50c", "resnet50d", "resnet101d", "resnet10t", "resnet26t"),
    *("resnet50t", "seresnet18", "seresnet50", "seresnext50_32x4d", "ecaresnet26t", "ecaresnet50d", "resnetrs50"),
    *("resnetblur18", "resnetblur50", "resnetblur50d", "resnetaa50", "resnetaa50d", "resnet50_gn"),
    *("resnetv2_18", "resnetv2_34d", "resnetv2_50", "resnetv2_50d", "resnetv2_50t", "resnetv2_50d_gn"),
    *("resnetv2_50x1_bit", "resnext50d_32x4d"),
]


def reference(name: str) -> nn.Module:
    return torchvision.models.get_model(name) if name in TORCHVISION else timm.create_model(name)


def close(a: Tensor, b: Tensor, bound: float) -> bool:
    return (a - b).abs().max().item() <= bound


@pytest.mark.parametrize("name", [*TORCHVISION, *TIMM])
def test_network_computes_what_the_reference_does(name):
    torch.manual_seed(3)
    theirs = reference(name)
    with torch.no_grad():
        for p in theirs.parameters():  # nothing may hide behind a zero or a one
            p += 0.1 * p.abs().mean().clamp(min=0.1) * torch.randn_like(p)
    ours = skipway.build(name)
    loaded = load_weights(ours, theirs.state_dict())
    assert loaded.layout == ("timm" if "v2" in name else "torchvision")
    assert not loaded.changed
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        a, b = ours.eval()(x), theirs.eval()(x)
        assert close(a, b, 1e-5 * b.abs().max().item())
        ours, theirs, x = ours.double(), theirs.double(), x.double()
        assert close(ours(x), theirs(x), 1e-9 * max(1.0, theirs(x).abs().max().item()))
        a, b = ours.train()(x), theirs.train()(x)
        assert close(a, b, 1e-9 * max(1.0, b.abs().max().item()))
    back = to_layout(ours.state_dict(), ours.spec, loaded.layout)
    for key, value in theirs.state_dict().items():  # with the statistics that both have moved
        assert close(back[key].double(), value.double(), 1e-9 * max(1.0, value.abs().max().item())), key
    theirs.load_state_dict(back, strict=True)


class Operators(TorchDispatchMode):
    """While open, writes down every ATen operator that is called, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_training_step_takes_the_operators_that_torchvisions_does(name):
    x, names = torch.randn(2, 3, 64, 64), []
    for network in (skipway.build(name), torchvision.models.get_model(name)):
        with Operators() as record:
            network.train()(x).square().sum().backward()
        names.append(record.names)
    assert names[0] == names[1]
    assert "aten.convolution_backward.default" in names[0]


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_network_computes_what_torchvisions_does(output_stride):
    replaced = [False, output_stride == 8, True]
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=replaced).eval()
    ours = skipway.build(dilated(find("resnet50"), output_stride)).eval()
    load_weights(ours, theirs.state_dict())
    x = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        assert close(ours(x), theirs(x), 1e-5 * theirs(x).abs().max().item())
        assert ours.features(x)["stage4.block3"].shape[-1] == -(-65 // output_stride)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_one_to_one_over_the_zoo(layout):
    for name in ZOO:
        keys = [*skeleton(find(name)).state_dict()] if "1202" not in name and "1001" not in name else []
        assert len({LAYOUTS[layout](key, find(name)) for key in keys}) == len(keys), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["resnet20_b", "wrn16_4", "preact_resnet20_b"])
def test_weights_come_back_from_a_file_in_any_layout(layout, name, tmp_path):
    network, other = skipway.build(name, seed=1), skipway.build(name, seed=2)
    save_weights(network, tmp_path / "w.safetensors", layout=layout)
    load_weights(other, tmp_path / "w.safetensors")
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    )
    with pytest.raises(InputError, match="exists; name a new file"):
        save_weights(network, tmp_path / "w.safetensors")


def test_a_cifar_repositorys_th_file_loads(tmp_path):
    """The layout of the common repository: module. prefixes under state_dict, beside facts about the run."""
    network = skipway.build("resnet20", seed=1)
    state = {f"module.{k}": v for k, v in to_layout(network.state_dict(), network.spec, "cifar").items()}
    assert "module.layer2.0.conv1.weight" in state
    assert "module.linear.weight" in state
    old = {k: v for k, v in state.items() if "num_batches" not in k}
    torch.save({"state_dict": old, "best_prec1": 91.7}, tmp_path / "resnet20.th")
    other = skipway.build("resnet20", seed=2)
    assert load_weights(other, tmp_path / "resnet20.th").layout == "cifar"
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network.eval()(x), other.eval()(x))


@pytest.mark.parametrize(("how", "scale"), [("sum", 1.0), ("average", 1 / 3)])
def test_input_channels_change_on_load(how, scale):
    colour, grey = skipway.build("resnet20", seed=1), skipway.build("resnet20", in_channels=1, seed=2)
    loaded = load_weights(grey, colour.state_dict(), channels=how)
    assert len(loaded.changed) == 1
    weight = colour.get_parameter("stem.conv.weight")
    expected = weight.sum(1, keepdim=True) * scale
    torch.testing.assert_close(grey.get_parameter("stem.conv.weight"), expected)
    if how == "sum":  # a grey image in three equal channels gives what it gave
        x = torch.randn(2, 1, 32, 32)
        torch.testing.assert_close(grey.eval()(x), colour.eval()(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)
    wide = skipway.build("resnet20", in_channels=4)
    load_weights(wide, colour.state_dict(), channels=how)
    assert wide.get_parameter("stem.conv.weight").shape == (16, 4, 3, 3)


def test_weights_of_something_else_and_files_of_other_kinds_are_named(tmp_path):
    network = skipway.build("tutorial")
    with pytest.raises(InputError, match=r"none of the network's tensors, .* it has a, b, \.\.\. \(2 in all\)"):
        load_weights(network, {"a": torch.zeros(1), "b": torch.zeros(2)})
    with pytest.raises(InputError, match="ends in .safetensors"):
        save_weights(network, tmp_path / "w.pth")
    (tmp_path / "net.py").write_text("import torch")
    with pytest.raises(InputError, match="damaged or no weights file"):
        read_weights(tmp_path / "net.py")


def test_classes_change_on_load_only_where_asked():
    old, new = skipway.build("resnet20", seed=1), skipway.build("resnet20", num_classes=3, seed=2)
    before = {k: v.clone() for k, v in new.state_dict().items()}
    with pytest.raises(InputError, match=r"head.linear.weight is \[10, 64\], the network's is \[3, 64\]"):
        load_weights(new, old.state_dict())
    assert all(torch.equal(before[k], v) for k, v in new.state_dict().items())
    loaded = load_weights(new, old.state_dict(), new_head=True)
    assert loaded.changed == ("a new head for 3 classes, in place of 10",)
    assert torch.equal(new.get_parameter("head.linear.weight"), before["head.linear.weight"])
    assert torch.equal(new.get_parameter("stem.conv.weight"), old.get_parameter("stem.conv.weight"))


def test_weights_that_do_not_fit_are_listed_under_their_own_names():
    state: dict[str, Any] = dict(torchvision.models.resnet18().state_dict())
    state["layer9.weight"] = state.pop("layer1.0.conv1.weight")
    state["fc.bias"] = torch.zeros(7)
    network = skipway.build("resnet18")
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(InputError) as error:
        load_weights(network, state)
    for part in ("fc.bias is [7]", "layer1.0.conv1.weight is missing", "layer9.weight has no place"):
        assert part in str(error.value)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


class Evil:
    def __reduce__(self):
        return (print, ("this ran",))


def test_pickles_that_need_more_than_tensors_are_refused(tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="is refused: it is a pickle that holds more than tensors"):
        read_weights(tmp_path / "evil.pth")
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be read as weights"), (b"no weights", "is refused|cannot be read as weights")],
)
def test_files_that_are_no_weights_are_refused(tmp_path, content, message):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_weights(tmp_path / "w.pth")
    with pytest.raises(InputError, match="no such weights file"):
        read_weights(tmp_path / "none.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(InputError, match="holds no weights"):
        read_weights(tmp_path / "none.pth")


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.module.", "net.", "backbone."])
@pytest.mark.parametrize("layout", ["skipway", "torchvision"])
def test_prefixes_of_wrappers_are_taken_off_where_the_network_has_none(prefix, layout):
    network, other = skipway.build("tutorial", seed=1), skipway.build("tutorial")
    state = {f"{prefix}{k}": v for k, v in to_layout(network.state_dict(), network.spec, layout).items()}
    assert load_weights(other, state | {"n_averaged": torch.tensor(3)}).layout == layout
    assert torch.equal(network.get_parameter("stem.conv.weight"), other.get_parameter("stem.conv.weight"))
    wrapped = nn.Sequential()
    wrapped.add_module("model", nn.Linear(2, 2))
    assert load_weights(wrapped, {k: v + 1 for k, v in wrapped.state_dict().items()}).layout == "own"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (torch.full((10,), torch.nan), r"holds numbers that are none \(NaN\)"),
        (torch.zeros(10, dtype=torch.complex64), "is complex"),
        (torch.zeros(10).to_sparse(), "is no plain tensor in memory"),
        (torch.zeros(10, device="meta"), "is no plain tensor in memory"),
        (torch.zeros(()), r"is \[\], the network's is \[10\]"),
    ],
)
def test_tensors_that_are_no_weights_are_refused(value, why):
    network = skipway.build("tutorial")
    state = dict(network.state_dict()) | {"head.linear.bias": value}
    with pytest.raises(InputError, match=f"head.linear.bias {why}"):
        load_weights(network, state, new_head=True)


def test_a_file_that_is_written_piece_by_piece_is_the_librarys():
    tensors = {}
    for kind, dtype in enumerate(DTYPES):
        values = (torch.arange(12).reshape(3, 4) % 2).to(dtype)
        tensors |= {f"{kind}.größe": values, f"{kind}.one": values[1, 1].clone(), f"{kind}.none": values[:0].clone()}
    content = b"".join(bytes(piece) for piece in safetensors(tensors, {"said": 'ü "x"'}))
    assert (int.from_bytes(content[:8], "little")) % 8 == 0  # so that what follows is aligned
    found = load(content)
    assert found.keys() == tensors.keys()
    for key, value in tensors.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
        assert torch.equal(found[key].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8)), key
    plain = {f"weight.{k}": torch.randn(k + 1, 3) for k in range(4)}
    assert b"".join(bytes(piece) for piece in safetensors(plain)) == save(plain)
