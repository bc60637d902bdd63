"""The run folder: the one thing that stages hand to each other. It holds data and knows no verb.

    spec.toml            everything the run was made from, resolved
    classes.json         class names, in the order of the logits
    preprocess.json      size and normalisation
    metrics.jsonl        one object an epoch
    steps.jsonl          one object a step: epoch, step, loss, lr
    weights.safetensors  the best on validation; classes, preprocessing, thresholds and spec in its metadata
    thresholds.json      several labels an image: the probability from which on each is given (chosen at the end)
    checkpoints/         what training needs to go on: the last ones, each whole or not there (training/vault.py)
    curves.png mistakes.png
    engine.json          how the machine computes it: compiled or not, how much at a time
    split.csv            which sample is in which split, by name
    summary.json         how it ended
    see/                 what `skipway see` found
    bad-numbers.json     where a loss or gradient was no number: step, layer, samples
    trackers.json, tensorboard/, mlruns/, wandb/   where training also reported to them

Nothing in it is a pickle. Every file is written beside its place and then moved there.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from skipway.data.preprocess import Preprocess
from skipway.durable import write_whole
from skipway.errors import InputError
from skipway.model import Model, read_thresholds
from skipway.nn.foreign import build_any
from skipway.nn.weight_files import read_safetensors, safetensors
from skipway.nn.weights import load_state
from skipway.spec import RunSpec, from_toml, to_toml
from skipway.trust import check_trust

FORMAT = "skipway-1"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"
FILES = (
    *("spec.toml", "classes.json", "preprocess.json", "metrics.jsonl", "steps.jsonl", "summary.json"),
    *("weights.safetensors", "curves.png", "mistakes.png", "split.csv", "engine.json", "thresholds.json"),
    CHECKPOINTS,
)


class Run:
    """A run folder. Open an existing one with Run.open, start one with Run.create."""

    def __init__(self, folder: Path):
        self.folder = folder

    @staticmethod
    def open(folder: str | Path) -> "Run":
        """The run in a folder. Raises InputError where there is none."""
        folder = Path(folder)
        if not folder.exists():
            raise InputError(f"no such run folder: {folder}")
        if not (folder / "spec.toml").is_file():
            raise InputError(f"{folder} is not a run folder: it has no spec.toml")
        return Run(folder)

    @staticmethod
    def create(folder: Path, spec: RunSpec, classes: tuple[str, ...], preprocess: Preprocess) -> "Run":
        """Start a run in a new folder, an empty one, or over a run that never got to its first checkpoint.

        Raises:
            InputError: the folder holds something else.
        """
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; --out names a folder")
        there = {path.name for path in folder.iterdir()} if folder.exists() else set()
        if there - {*FILES, LOCK, *(f".{name}.tmp" for name in FILES)}:
            raise InputError(f"{folder} is not empty and is not a run folder; choose another --out")
        if there & {"weights.safetensors", "metrics.jsonl"}:
            raise InputError(f"{folder} holds a run that lost its spec.toml or its checkpoints; choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        run = Run(folder)
        run.write_text("classes.json", json.dumps(list(classes), indent=1))
        run.write_text("preprocess.json", preprocess.to_json())
        run.write_text("summary.json", json.dumps({"status": "running"}))
        run.write_spec(spec)  # last: a folder with it is a whole run
        return run

    @property
    def spec(self) -> RunSpec:
        """What the run was made from."""
        return from_toml(self.read_text("spec.toml"))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        names = _from_json(self.read_text("classes.json"), self.folder / "classes.json")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{self.folder / 'classes.json'} is damaged: it must be a list of names")
        return tuple(names)

    @property
    def preprocess(self) -> Preprocess:
        """From image to input."""
        return Preprocess.from_json(self.read_text("preprocess.json"))

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """Several labels an image: the probability from which on each is given; None: one label an image."""
        path = self.folder / "thresholds.json"
        if not path.exists():
            return None
        try:
            return read_thresholds(self.read_text(path.name), self.classes)
        except ValueError as error:
            raise InputError(f"{path} is damaged: {error}") from error

    @property
    def summary(self) -> dict[str, Any]:
        """How it ended: status, best epoch, accuracies, ..."""
        summary = _from_json(self.read_text("summary.json"), self.folder / "summary.json")
        if not isinstance(summary, dict):
            raise InputError(f"{self.folder / 'summary.json'} is damaged: it must be an object")
        return summary

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return (self.folder / "summary.json").is_file() and self.summary.get("status") == "finished"

    def metrics(self) -> list[dict[str, Any]]:
        """One object an epoch; accuracies in [0, 1]."""
        return self._lines("metrics.jsonl")

    def steps(self) -> list[dict[str, Any]]:
        """One object a training step: epoch, step, loss, lr."""
        return self._lines("steps.jsonl")

    def model(self, *, trust_code: bool = False) -> Model:
        """The best network on validation, with its classes and preprocessing. As load_model."""
        return load_model(self.folder / "weights.safetensors", trust_code=trust_code)

    def network(self, *, trust_code: bool = False) -> nn.Module:
        """The best network on validation, in evaluation mode. As load_model."""
        return self.model(trust_code=trust_code).network

    def read_text(self, name: str) -> str:
        """A file of the run. Raises InputError where it is missing or no text."""
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.folder / name} cannot be read: {error}") from error

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the run whole, or not at all."""
        self.write_bytes(name, text.encode("utf-8"))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file of the run whole, or not at all."""
        write_whole(self.folder / name, content)

    def write_spec(self, spec: RunSpec) -> None:
        """Write spec.toml, of a run that begins, or goes on with settings that may change."""
        self.write_text("spec.toml", to_toml(spec))

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace a .jsonl file."""
        self.write_text(name, "".join(json.dumps(row) + "\n" for row in rows))

    def append_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add to a .jsonl file, through to the disk."""
        with (self.folder / name).open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())

    def write_thresholds(self, thresholds: Sequence[float]) -> None:
        """Write thresholds.json, and put them into the weights where there are any."""
        text = json.dumps(dict(zip(self.classes, thresholds, strict=True)), indent=1)
        self.write_text("thresholds.json", text)
        path = self.folder / "weights.safetensors"
        if path.exists():
            state, metadata = read_safetensors(path)
            write_whole(path, safetensors(state, metadata | {"thresholds": text}))

    def weights_of(
        self, state: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata of a weights.safetensors that is able to predict by itself; copied, not written yet."""
        several = {} if self.thresholds is None else {"thresholds": self.read_text("thresholds.json")}
        metadata = several | {
            "format": FORMAT,
            "spec": to_toml(self.spec),
            "classes": json.dumps(list(self.classes)),
            "preprocess": self.preprocess.to_json(),
            "facts": json.dumps(dict(facts)),
        }
        return dense_copies(state), metadata

    def write_weights(self, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """Write weights.safetensors, of what `weights_of` gave."""
        write_whole(self.folder / "weights.safetensors", safetensors(state, metadata))

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        if not path.exists():
            return []
        lines = self.read_text(name).splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()  # cut off while it was written
        rows = [_from_json(line, path) for line in lines]
        numbers = ("epoch", "step") if name == "steps.jsonl" else ("epoch",)
        if not all(isinstance(row, dict) and all(type(row.get(key)) is int for key in numbers) for row in rows):
            raise InputError(f"{path} is damaged: each line must be an object with its {' and '.join(numbers)}")
        return rows


@dataclass(frozen=True)
class Saved:
    """What a weights.safetensors of a run holds; nothing is built."""

    state: dict[str, Tensor]
    spec: RunSpec
    classes: tuple[str, ...]
    preprocess: Preprocess
    thresholds: tuple[float, ...] | None = None


def read_saved(path: str | Path) -> Saved:
    """Read a weights.safetensors, or that of a run folder.

    Raises:
        InputError: not such a file, or damaged.
    """
    path = Path(path)
    if path.is_dir():
        Run.open(path)
        path = path / "weights.safetensors"
    elif path.is_file() and path.suffix != ".safetensors":
        raise InputError(f"{path} is neither a run folder nor its weights.safetensors")
    state, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} holds weights but not the classes, preprocessing and spec of a skipway run")
    try:
        classes = json.loads(metadata["classes"])
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise InputError("its classes are no list of names")
        preprocess = Preprocess.from_json(metadata["preprocess"])
        text = metadata.get("thresholds")
        thresholds = None if text is None else read_thresholds(text, classes)
        return Saved(state, from_toml(metadata["spec"]), tuple(classes), preprocess, thresholds)
    except (KeyError, ValueError, TypeError, RecursionError) as error:  # InputError is a ValueError
        raise InputError(f"{path} is damaged: {error}") from error


def read_spec(path: str | Path) -> RunSpec:
    """What a run was made from, by its folder or its weights.safetensors. Raises InputError."""
    return Run.open(path).spec if Path(path).suffix != ".safetensors" else read_saved(path).spec


def load_model(path: str | Path, *, trust_code: bool = False) -> Model:
    """The network in a weights.safetensors, or in a run folder.

    Args:
        path: the file or the folder.
        trust_code: run the code that makes the network, where that is neither skipway's nor a library's and nobody
            named it here before.

    Raises:
        InputError: not such a file, damaged, its weights do not fit its spec, or code that is not trusted.
    """
    saved = read_saved(path)
    check_trust(saved.spec.network, trust_code=trust_code)
    network = build_any(saved.spec.network, image_size=saved.spec.data.image_size)
    load_state(network, saved.state, str(path))
    return Model(network.eval(), saved.spec, saved.classes, saved.preprocess, saved.thresholds)


def dense_copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors wants them: on the CPU, dense, none sharing memory."""
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}


def _from_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
