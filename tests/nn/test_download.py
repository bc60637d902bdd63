"""Published weights come through the libraries' own download code, here from a stand-in on the loopback address."""

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

import skipway as package
from skipway.errors import InputError
from skipway.foreign_spec import ForeignSpec
from skipway.nn.download import fetch
from skipway.nn.weights import load_weights
from skipway.run import Run

WEIGHTS = torchvision.models.ResNet18_Weights.IMAGENET1K_V1


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, with the headers that a model hub gives."""

    def end_headers(self) -> None:
        self.send_header("ETag", '"0123"')
        self.send_header("X-Repo-Commit", "4567")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which it is served."""
    folder = tmp_path / "hub"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    try:
        yield folder, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def published(hub: tuple[Path, str]) -> Iterator[dict[str, torch.Tensor]]:
    """resnet18's IMAGENET1K_V1, as the stand-in has it."""
    folder, address = hub
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, folder / "made.pth")
    digest = hashlib.sha256((folder / "made.pth").read_bytes()).hexdigest()[:8]
    (folder / "made.pth").rename(folder / f"resnet18-{digest}.pth")
    own = WEIGHTS.value.url
    object.__setattr__(WEIGHTS.value, "url", f"{address}/resnet18-{digest}.pth")
    yield state
    object.__setattr__(WEIGHTS.value, "url", own)


def test_torchvisions_weights_are_fetched_and_trained_on(skipway, photos, published):
    flags = ["--network", "resnet18", "--image-size", "32", "--epochs", "1", "--batch-size", "8", "--workers", "0"]
    flags += ["--freeze", "backbone", "--out", "run"]
    result = skipway("train", photos, *flags, "--weights", "torchvision:IMAGENET1K_V1")
    assert result.code == 0, result.err
    for words in (
        "weights from torchvision:IMAGENET1K_V1 (in the torchvision layout)",
        "a new head for 2 classes, in place of 1000",
        "stem imagenet: that of the given weights; warning: the imagenet stem reduces 32-pixel images",
    ):
        assert words in result.out
    trained = Run.open("run").network().state_dict()
    assert torch.equal(trained["stages.3.1.conv2.weight"], published["layer4.1.conv2.weight"])


def test_failed_download_says_how_to_bring_a_file(skipway, photos, hub, published):
    folder, _ = hub
    (file,) = folder.iterdir()
    for spoil in (lambda: file.write_bytes(b"not these"), file.unlink):
        spoil()
        result = skipway(
            "train", photos, "--network", "resnet18", "--weights", "torchvision:IMAGENET1K_V1", "--out", "r"
        )
        assert result.code == 2
        message = " ".join(result.err.split())
        assert "torchvision:IMAGENET1K_V1 could not be downloaded" in message
        assert f"Fetch {WEIGHTS.url} on a machine that can reach it" in message
        assert "name it: --weights FILE" in message
        assert not Path("r").exists()


def serve_timm(
    hub: tuple[Path, str], name: str, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> dict[str, torch.Tensor]:
    """Weights of a timm name on the stand-in; returns them."""
    from huggingface_hub import constants

    folder, address = hub
    state = timm.create_model(name.partition(".")[0]).state_dict()
    path = folder / f"timm/{name}/resolve/main/model.safetensors"
    path.parent.mkdir(parents=True)
    save_file(state, path)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return state


def test_timms_weights_are_fetched_for_ours_and_for_theirs(hub, monkeypatch, tmp_path):
    state = serve_timm(hub, "resnet10t.c3_in1k", monkeypatch, tmp_path / "cache")
    fetched = fetch("timm:resnet10t.c3_in1k", "resnet10t", None, 0)
    ours, theirs = package.build("resnet10t").eval(), timm.create_model("resnet10t").eval()
    load_weights(ours, fetched)
    theirs.load_state_dict(state)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    spec = ForeignSpec("timm:resnet10t", in_channels=1, num_classes=5)
    fitted = fetch("timm:resnet10t.c3_in1k", spec.name, spec, 0)
    assert fitted["fc.weight"].shape == (5, 512)
    torch.testing.assert_close(fitted["conv1.0.weight"], state["conv1.0.weight"].sum(1, keepdim=True))


def test_names_without_weights_are_refused():
    with pytest.raises(InputError, match="torchvision has no weights for network resnet20"):
        fetch("torchvision:IMAGENET1K_V1", "resnet20", None, 0)
    with pytest.raises(InputError, match=r"unknown weights of torchvision's resnet34: 'IMAGENET1K_V2'"):
        fetch("torchvision:IMAGENET1K_V2", "resnet34", None, 0)
    with pytest.raises(InputError, match=r"unknown timm weights 'resnet50\.a9'"):
        fetch("timm:resnet50.a9", "resnet50", None, 0)
