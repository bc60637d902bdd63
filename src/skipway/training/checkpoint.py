"""What training needs to go on to the same bits: weights, averages, the optimizer's memory, and where the run stands.

Order, augmentation and dropout are functions of seed, epoch, step and sample, so there is no random state to keep.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from skipway.errors import InputError
from skipway.nn.weight_files import read_safetensors
from skipway.nn.weights import load_state
from skipway.run import dense_copies
from skipway.training.guard import BadNumbers, bad_weights
from skipway.training.sharding import is_sharded, like, put_whole, whole
from skipway.training.step import Learner
from skipway.training.vault import Vault, Writer

STATE, POSITION = "state.safetensors", "position.json"


@dataclass(frozen=True)
class Position:
    """Where training stands.

    Args:
        epoch: whole epochs done.
        batches: of the next one that have been used, whether or not they could be learnt from.
        steps: updates in it.
        right, seen: of its images.
        seconds: it took so far.
        best_epoch: 0 for none, by the task's main score on validation.
        best_score, best_loss: of it.
        lr_scale: of all rates, smaller than 1 once the run went back after bad numbers.
    """

    epoch: int = 0
    batches: int = 0
    steps: int = 0
    right: float = 0.0
    seen: int = 0
    seconds: float = 0.0
    best_epoch: int = 0
    best_score: float = -1.0
    best_loss: float = 0.0
    lr_scale: float = 1.0

    @property
    def name(self) -> str:
        """Of its checkpoint; later ones sort after earlier ones."""
        return f"epoch-{self.epoch:05d}-batch-{self.batches:07d}"

    def after(self, score: float, loss: float) -> "Position":
        """At the end of the epoch, with its scores on validation."""
        now = Position(
            self.epoch + 1,
            best_epoch=self.best_epoch,
            best_score=self.best_score,
            best_loss=self.best_loss,
            lr_scale=self.lr_scale,
        )
        if (score, -loss) > (self.best_score, -self.best_loss):
            return replace(now, best_epoch=now.epoch, best_score=score, best_loss=loss)
        return now

    def told(self) -> str:
        """In words."""
        epochs = f"{self.epoch} whole epoch{'' if self.epoch == 1 else 's'}"
        return f"{epochs} and {self.batches} batch{'' if self.batches == 1 else 'es'}" if self.batches else epochs


def files_of(position: Position, learner: Learner) -> dict[str, Writer]:
    """The files of a checkpoint. What is in them is copied now, so that training may go on while they are written.

    Raises:
        BadNumbers: something in it is no finite number.
    """
    tensors = dense_copies(state_of(learner))
    if bad := bad_weights({key: tensors[key] for key in tensors.keys() - _free(learner)}):
        raise BadNumbers(f"{bad[0]} ({len(bad)} tensors in all)", "it is in what a checkpoint would hold", ())
    text = json.dumps(asdict(position), indent=1).encode()
    return {STATE: lambda path: save_file(tensors, path), POSITION: lambda path: path.write_bytes(text)}


def _free(learner: Learner) -> set[str]:
    """Buffers that may hold infinity on purpose, as a mask does: all but batch statistics."""
    names = [name for name, _ in learner.network.named_buffers() if not name.endswith(("running_mean", "running_var"))]
    return {f"{whose}.{name}" for name in names for whose in ("network", "average")}


def state_of(learner: Learner) -> dict[str, Tensor]:
    """Every tensor that an update changes, by name; where they are shared out, each process has to ask."""
    tensors = {f"network.{k}": whole(v) for k, v in learner.network.state_dict().items()}
    if learner.average:
        tensors |= {f"average.{k}": v for k, v in learner.average.network.state_dict().items()}
    for index, state in learner.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": whole(v) for k, v in state.items() if isinstance(v, Tensor)}
    if learner.proxy:
        tensors |= {f"proxy.{k}": v for k, v in state_of(learner.proxy).items()}
    return tensors


def load_newest(run_folder: Path, learner: Learner) -> tuple[Position, list[str]]:
    """Put the newest whole checkpoint back into a learner; the first process reads it for all.

    Returns:
        Where the run stood, and a sentence for each damaged checkpoint that was passed over.

    Raises:
        InputError: none is whole, or it is another network's.
    """
    tensors, position, notes = learner.world.first_does(lambda: read_newest(run_folder))
    restore(learner, tensors, str(run_folder))
    learner.lr_scale = position.lr_scale
    return position, notes


def read_newest(run_folder: Path) -> tuple[dict[str, Tensor], Position, list[str]]:
    """The newest whole checkpoint: its tensors, where the run stood, what was passed over. Raises InputError."""
    vault = Vault(run_folder)
    found = vault.find()
    if found.folder is None:
        raise InputError(
            f"no checkpoint in {vault.folder} is whole: {'; '.join(found.damaged) or 'there is none'}. Nothing was "
            "changed: bring one back, or choose another --out to start afresh"
        )
    tensors = read_safetensors(found.folder / STATE)[0]
    try:
        position = Position(**json.loads((found.folder / POSITION).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{found.folder / POSITION} is damaged: {error!r}") from error
    return tensors, position, [f"warning: passed over a damaged checkpoint: {what}" for what in found.damaged]


def restore(learner: Learner, tensors: Mapping[str, Tensor], path: str) -> None:
    """Put tensors of `state_of` back. Raises InputError where they are another network's."""
    own = _part(tensors, "network.")
    put_whole(learner.network, own) if is_sharded(learner.network) else load_state(learner.network, own, path)
    if learner.average:
        load_state(learner.average.network, _part(tensors, "average."), path)
    state: dict[int, dict[str, Any]] = {}
    for key, value in _part(tensors, "optimizer.").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    learner.optimizer.load_state_dict(learner.optimizer.state_dict() | {"state": state})
    for parameter, held in learner.optimizer.state.items():  # sums over another memory layout have other bits
        held |= {k: like(parameter, v) for k, v in held.items() if v.shape == parameter.shape != ()}
    if learner.proxy:
        restore(learner.proxy, _part(tensors, "proxy."), path)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
