import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import skipway as package
from skipway.cli import main
from skipway.network_spec import NetworkSpec
from skipway.nn import kernels
from skipway.run import Run
from skipway.spec import RunSpec
from skipway.training.parts import read_parts
from skipway.training.vault import Vault

ROOT = Path(__file__).parent.parent
TINY: dict[str, dict[str, Any]] = {
    "network": {"stages": ["1x4", "1x8/2"], "stem_width": 4},
    "data": {"workers": 0},
    "train": {"epochs": 2, "batch_size": 8, "lr": 0.1},
}
TINY_FLAGS = [
    "--stages",
    "1x4",
    "1x8/2",
    "--stem-width",
    "4",
    "--workers",
    "0",
    "--epochs",
    "2",
    "--batch-size",
    "8",
    "--lr",
    "0.1",
]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def skipway(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs the command in this process: skipway("train", "photos") -> its exit code and what it printed."""

    def run(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as exit_info:
            main([str(a) for a in arguments])
        captured = capsys.readouterr()
        assert isinstance(exit_info.value.code, int)
        return Result(exit_info.value.code, captured.out, captured.err)

    return run


def save_image(path: Path, seed: int, size: tuple[int, int] = (16, 16), brightness: int = 0) -> None:
    """A random colour image of (width, height) pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 128, (size[1], size[0], 3)) + brightness
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def make_photos(
    root: Path, *, splits: Sequence[str] = ("",), classes: Sequence[str] = ("ants", "bees"), num: int = 20
) -> Path:
    """root/[split/]class/*.png: the first class dark, the others brighter, so that they can be told apart."""
    seed = 0
    for split in splits:
        for level, name in enumerate(classes):
            for i in range(num):
                seed += 1
                save_image(
                    root / split / name / f"{i:03}.png",
                    seed,
                    brightness=127 * level // max(len(classes) - 1, 1),
                )
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that learned to tell the photos apart; shared by all tests, which only read it."""
    root = tmp_path_factory.mktemp("trained")
    settings = TINY | {"train": TINY["train"] | {"epochs": 8}}
    return package.train(make_photos(root / "photos"), settings=settings, out=root / "run")


def newest(folder: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's newest checkpoint."""
    found = Vault(Path(folder)).find().folder
    assert found is not None
    return read_parts(found)


def ours(spec: RunSpec) -> NetworkSpec:
    """The network of a run that is skipway's own."""
    assert isinstance(spec.network, NetworkSpec)
    return spec.network


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in a folder and with a cache of its own."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)


@pytest.fixture
def shared_data() -> Path:
    """The folder of larger data sets; tests that need it are skipped where SKIPWAY_DATA is not set."""
    if not os.environ.get("SKIPWAY_DATA"):
        pytest.skip("SKIPWAY_DATA is not set")
    path = Path(ROOT, os.environ["SKIPWAY_DATA"])
    assert path.is_dir(), f"SKIPWAY_DATA names no folder: {path}"
    return path


@pytest.fixture
def loaded():
    """Our own kernels, in use."""
    why = kernels.load()
    if why:
        pytest.skip(f"no kernels: {why}")
    with kernels.used(True):
        yield


@pytest.fixture
def unit(loaded):
    """And the processor's matrix unit."""
    if not kernels.call("conv_ready"):
        pytest.skip("this processor has no matrix unit")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a busy machine two threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
