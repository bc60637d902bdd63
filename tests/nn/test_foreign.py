"""Other people's networks train, are scored and described like ours; code is run only where it is trusted."""

import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from conftest import make_photos
from torch import nn

import skipway as package
from skipway.errors import InputError
from skipway.foreign_spec import ForeignSpec
from skipway.nn.foreign import build_any, build_foreign, check_logits, classifiers
from skipway.nn.weights import load_weights
from skipway.run import Run

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))

def make(num_classes, in_channels=3):
    return Net(num_classes, in_channels)

def pair(num_classes):
    class Pair(Net):
        def forward(self, x):
            return super().forward(x), x
    return Pair(num_classes, 3)

def upside(num_classes):
    class Upside(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, num_classes)
            self.body = nn.Conv2d(3, 4, 3)
            self.proj = nn.Linear(4, 8)
        def forward(self, x):
            return self.fc(self.proj(self.body(x).mean((2, 3))))
    return Upside()

def tied(num_classes):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, num_classes)
            self.b.weight = self.a.weight
        def forward(self, x):
            return self.fc(self.b(self.a(self.conv(x).mean((2, 3)))))
    return Tied()

def gain(num_classes):
    class Row(nn.Sequential):
        def __init__(self, *layers):
            super().__init__(*layers)
            self.gain = nn.Parameter(torch.ones(1))
        def forward(self, x):
            return super().forward(x) * self.gain
    class Gain(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = Row(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Linear(8, num_classes)
        def forward(self, x):
            return self.fc(self.body(x).mean((2, 3)))
    return Gain()

def wrapper(num_classes):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Net(num_classes, 3)
        def forward(self, x):
            return self.model(x)
    return Wrapper()

def extra(num_classes):
    class Extra(Net):
        def get_extra_state(self):
            return {"more": "than tensors"}
    return Extra(num_classes, 3)

def masked(num_classes):
    net = Net(num_classes, 3)
    net.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
    return net

def fixed():
    return Net(3, 3)

def number():
    return 7

def broken():
    raise KeyError("no such thing")
"""
FAST = ["--epochs", "1", "--batch-size", "100", "--workers", "0"]


@pytest.fixture
def nets() -> Path:
    """nets.py in the current folder, with functions that make networks."""
    path = Path("nets.py")
    path.write_text(NETS)
    return path


@pytest.fixture(autouse=True)
def forget_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(__import__("sys").modules, "nets", raising=False)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm:test_vit", 32),
        ("timm:test_resnet", 40),
        ("timm:test_efficientnet", 32),
        ("timm:test_convnext", 32),
        ("timm:swin_tiny_patch4_window7_224", 56),
        ("torchvision:resnet18", 32),
        ("torchvision:vit_b_16", 32),
        ("torchvision:mobilenet_v3_small", 32),
        ("torchvision:googlenet", 64),
    ],
)
def test_libraries_networks_take_the_datas_channels_classes_and_size(name, size):
    spec = ForeignSpec(name, in_channels=1, num_classes=4)
    network = build_foreign(spec, image_size=size, seed=3)
    check_logits(network, spec, size)
    again, other = (build_foreign(spec, image_size=size, seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(value, again[key]) for key, value in network.state_dict().items())
    assert any(not torch.equal(value, other[key]) for key, value in network.state_dict().items())
    assert network.get_submodule(classifiers(network)[-1]).weight.shape[0] == 4  # pyrefly: ignore


def test_networks_keep_their_librarys_names_and_outputs():
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    ours = build_foreign(ForeignSpec("torchvision:resnet18")).eval()
    load_weights(ours, theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(x), theirs(x))


def test_check_leaves_a_network_as_it_was():
    spec = ForeignSpec("timm:test_resnet")
    network = build_foreign(spec)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    random = torch.get_rng_state()
    check_logits(network, spec, 64)
    assert network.training
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("timm:resnet51", 32, "unknown timm network 'resnet51'. Did you mean 'resnet"),
        ("torchvision:resnet51", 32, "unknown torchvision network 'resnet51'. Did you mean 'resnet50'"),
        ("torchvision:fcn_resnet50", 32, "unknown torchvision network 'fcn_resnet50'"),
        ("torchvision:vit_b_16", 30, "torchvision:vit_b_16 cannot take 3x30x30 images: .*Another --image-size"),
        ("torchvision:alexnet", 8, "torchvision:alexnet cannot take 3x8x8 images"),
        ("python:nets:none", 32, "has no function none"),
        ("python:nets:number", 32, "must be a torch.nn.Module, got int"),
        ("python:nets:extra", 32, "keeps more than tensors in its state dict"),
        ("python:nets:broken", 32, "failed while it was made: KeyError"),
        ("python:nets:pair", 32, r"must give logits of shape \(2, 10\) for 2 images, got tuple"),
        ("python:nets:fixed", 32, r"must give logits of shape \(2, 10\) for 2 images, got \(2, 3\)"),
        ("python:nowhere:make", 32, "there is no module nowhere in this folder"),
    ],
)
def test_networks_that_cannot_be_made_say_why(nets, name, size, message):
    spec = ForeignSpec(name)
    with pytest.raises(InputError, match=message):
        check_logits(build_foreign(spec, image_size=size), spec, size)


@pytest.mark.parametrize("name", ["timm", "timm:", "hub:resnet18", "python:os", "python:a b:c", "python::f", ""])
def test_names_that_are_none_are_refused(name):
    with pytest.raises(InputError, match=r"network\.name must"):
        ForeignSpec(name)


def test_build_points_to_build_foreign():
    with pytest.raises(InputError, match="for timm:resnet18 there is build_foreign"):
        package.build("timm:resnet18")
    assert isinstance(build_any(package.NetworkSpec((package.StageSpec(1, 4),), stem="cifar")), package.ResNet)


def test_missing_library_gives_the_one_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(InputError, match=r"timm is not installed: pip install 'skipway\[timm\]'"):
        build_foreign(ForeignSpec("timm:resnet18"))


def test_weights_of_a_library_fit_other_classes_and_channels():
    theirs = timm.create_model("test_resnet")
    network = build_foreign(ForeignSpec("timm:test_resnet", in_channels=1, num_classes=3))
    with pytest.raises(InputError, match=r"fc.weight is \[1000, "):
        load_weights(network, theirs.state_dict())
    loaded = load_weights(network, theirs.state_dict(), new_head=True)
    assert loaded.changed == (
        "input channels 3 -> 1: filters summed",
        "a new head for 3 classes, in place of 1000",
    )
    assert torch.equal(network.get_parameter("layer1.0.conv1.weight"), theirs.get_parameter("layer1.0.conv1.weight"))


def test_timm_vit_trains_and_is_scored_on_the_embedded_sample(skipway):
    flags = ["--network", "timm:test_vit", "--image-size", "32", "--optimizer", "adamw", "--layer-decay", "0.9"]
    result = skipway("train", "fashion-sample", *flags, *FAST, "--out", "run")
    assert result.code == 0, result.err
    run = Run.open("run")
    assert run.summary["test_accuracy"] > 0.4  # chance is 0.1
    assert run.spec.network == ForeignSpec("timm:test_vit", in_channels=1, num_classes=10)
    assert json.loads(skipway("evaluate", "run", "--json").out)["accuracy"] == run.summary["test_accuracy"]
    assert package.load("run").classes == run.classes
    shown = skipway("describe", "run")
    assert shown.code == 0
    assert "blocks.3" in shown.out
    assert "input 1x32x32" in shown.out
    more = skipway(
        "train", "fashion-sample", *flags, *FAST, "--weights", "run", "--freeze", "backbone", "--out", "more"
    )
    assert more.code == 0, more.err
    assert "frozen up to norm" in more.out
    assert Run.open("more").summary["test_accuracy"] > run.summary["test_accuracy"] - 0.1


def test_users_module_trains_and_is_scored_on_the_embedded_sample(skipway, nets):
    result = skipway("train", "fashion-sample", "--network", "python:nets:make", *FAST, "--lr", "0.5", "--out", "run")
    assert result.code == 0, result.err
    run = Run.open("run")
    assert run.summary["test_accuracy"] > 0.2  # eight filters; chance is 0.1
    assert skipway("evaluate", "run").code == 0
    state = run.network().state_dict()
    assert {"body.0.weight", "fc.weight"} <= state.keys()


def test_code_of_a_run_from_elsewhere_wants_a_word(skipway, nets, tmp_path, monkeypatch):
    photos = make_photos(tmp_path / "photos")
    train = ["train", photos, "--epochs", "1", "--batch-size", "8", "--workers", "0"]
    assert skipway(*train, "--network", "python:nets:make", "--out", "run").code == 0
    assert skipway("predict", "run", photos / "bees" / "020.png").code == 2  # no such image: the code itself is trusted
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "another-users"))
    nets.write_text("print('this ran')\n" + NETS)
    monkeypatch.delitem(__import__("sys").modules, "nets", raising=False)
    for command in (["evaluate", "run"], ["predict", "run", photos / "bees"], ["describe", "run"]):
        result = skipway(*command)
        assert result.code == 2
        assert "add --trust-code" in result.err
        assert "nets.py" in result.err
        assert "this ran" not in result.out
    result = skipway(*train, "--config", "run/spec.toml", "--out", "again")
    assert (result.code, "this ran" in result.out) == (2, False)
    assert not Path("again").exists()
    result = skipway("evaluate", "run", "--trust-code")
    assert (result.code, "this ran" in result.out) == (0, True)
    assert skipway(*train, "--config", "run/spec.toml", "--out", "again", "--trust-code").code == 0
    assert skipway("evaluate", "again").code == 0  # said once for this place


def test_settings_of_ours_are_refused_for_anothers(skipway, photos):
    result = skipway("train", photos, "--network", "timm:test_resnet", "--stages", "1x8", "--act", "gelu")
    assert result.code == 2
    assert "network timm:test_resnet is made by its own library: act, stages cannot be changed" in result.err


def test_classifiers_are_the_layers_that_give_the_logits(nets):
    assert classifiers(package.build("resnet20")) == ("head.linear",)
    assert classifiers(timm.create_model("test_vit")) == ("head",)
    assert classifiers(timm.create_model("deit_tiny_distilled_patch16_224")) == ("head", "head_dist")
    assert classifiers(torchvision.models.vgg11()) == ("classifier.6",)
    assert classifiers(build_foreign(ForeignSpec("torchvision:squeezenet1_1", num_classes=7))) == ("classifier.1",)
    assert classifiers(build_foreign(ForeignSpec("python:nets:upside", num_classes=2))) == ("fc",)
    assert classifiers(nn.Sequential(nn.Conv2d(1, 1, 1))) == ()


def test_code_that_changed_is_asked_about_again(skipway, nets, photos, monkeypatch):
    train = ["train", photos, "--epochs", "1", "--batch-size", "8", "--workers", "0"]
    assert skipway(*train, "--network", "python:nets:make", "--out", "run").code == 0
    with pytest.raises(InputError, match="failed while it was made"):
        package.describe("python:nets:broken")
    nets.write_text(NETS + "\n")
    assert "or it changed since" in skipway("evaluate", "run").err
    with pytest.raises(InputError, match="trust_code=True"):
        package.describe(Run.open("run").spec.network)
    assert package.describe(Run.open("run").spec.network, trust_code=True).parameters > 0
    assert skipway(*train, "--network", "python:nets:make", "--out", "again").code == 0
    assert skipway("evaluate", "run").code == 0


def test_users_code_leaves_torch_as_it_was(nets):
    nets.write_text(
        NETS + "\nimport sys, torch\nsys.path.clear()\ntorch.set_default_dtype(torch.float64)\n_ = make(2)\n"
    )
    first, again = (build_foreign(ForeignSpec("python:nets:make"), seed=4).state_dict() for _ in range(2))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert torch.get_default_dtype() == torch.float32
    assert __import__("sys").path


def test_another_module_of_the_name_is_not_taken_for_it(nets, tmp_path, monkeypatch):
    build_foreign(ForeignSpec("python:nets:make"))
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="another module of that name is loaded already"):
        build_foreign(ForeignSpec("python:nets:make"))


def test_batches_of_one_are_tried_before_training(skipway, photos):
    flags = ["--network", "timm:test_resnet", "--batch-size", "1", "--image-size", "16", "--epochs", "1"]
    result = skipway("train", photos, *flags, "--out", "run")
    assert (result.code, Path("run").exists()) == (2, False), result.out
    assert "more than 1 value per channel" in result.err


@pytest.mark.parametrize("name", ["tied", "gain", "wrapper", "masked"])
def test_odd_networks_train_and_go_on_from_their_own_weights(skipway, photos, nets, name):
    flags = [
        "train",
        photos,
        "--network",
        f"python:nets:{name}",
        *["--epochs", "1", "--batch-size", "8", "--workers", "0"],
    ]
    assert skipway(*flags, "--out", "run").code == 0
    result = skipway(*flags, "--weights", "run", "--freeze", "backbone", "--out", "more")
    assert result.code == 0, result.err
    assert skipway(*flags, "--weights", "run", "--layer-decay", "0.5", "--out", "third").code == 0
