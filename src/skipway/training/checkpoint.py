"""What training needs to go on to the same bits: weights, averages, the optimizer's memory, and where the run stands.

Order, augmentation and dropout are functions of seed, epoch, step and sample, so there is no random state to keep.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skipway.durable import write_synced
from skipway.errors import InputError
from skipway.nn.weight_files import safetensors
from skipway.nn.weights import load_state
from skipway.run import dense_copies
from skipway.training.guard import BadNumbers, bad_weights
from skipway.training.optim import from_zero
from skipway.training.parts import Parts, file_name, opened, read_parts
from skipway.training.sharding import is_part, is_sharded, like, own_part, own_rows, put_parts
from skipway.training.step import Learner
from skipway.training.vault import Vault, Writer

POSITION = "position.json"


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

    @staticmethod
    def from_json(text: str, steps_per_epoch: int) -> "Position":
        """Where a run stood. Raises ValueError, TypeError or RecursionError where this says no such thing."""
        table = json.loads(text)
        if not isinstance(table, dict):
            raise TypeError("no object")
        position = Position(**table)
        for field in fields(Position):
            value = getattr(position, field.name)
            if type(value) not in ((int,) if field.type is int else (int, float)) or not math.isfinite(value):
                raise ValueError(f"{field.name} {value!r} is no number of its kind")
        counts = (
            position.epoch,
            position.steps,
            position.seen,
            position.best_epoch,
            steps_per_epoch - position.batches,
        )
        if min(counts) < 0 or position.steps > position.batches or (position.steps > 0) > (position.seen > 0):
            raise ValueError(f"{position.batches} batches of {steps_per_epoch}, {position.steps} steps")
        return position

    def told(self) -> str:
        """In words."""
        epochs = f"{self.epoch} whole epoch{'' if self.epoch == 1 else 's'}"
        return f"{epochs} and {self.batches} batch{'' if self.batches == 1 else 'es'}" if self.batches else epochs


def files_of(position: Position, learner: Learner) -> dict[str, Writer]:
    """The files of a checkpoint that this process writes: all of them, or its part where weights are shared out.

    What is in them is copied now, so that training may go on while they are written.

    Raises:
        BadNumbers: something in it is no finite number.
    """
    world, shared = learner.world, is_sharded(learner.network)
    state = state_of(learner)
    tensors = dense_copies({k: own_part(v) for k, v in state.items() if world.is_first or is_part(v)})
    bad = bad_weights({key: tensors[key] for key in tensors.keys() - _free(learner)})
    if world.agreed(int(bool(bad))) if shared else bad:
        what = f"{bad[0]} ({len(bad)} tensors in all)" if bad else "a tensor of another process"
        raise BadNumbers(what, "it is in what a checkpoint would hold", ())
    files: dict[str, Writer] = {}
    if world.is_first or shared:
        own = file_name(world.rank, world.size if shared else 1)
        files[own] = lambda path: write_synced(path, safetensors(tensors))
    if world.is_first:
        text = json.dumps(asdict(position), indent=1).encode()
        files[POSITION] = lambda path: path.write_bytes(text)
    return files


def _free(learner: Learner) -> set[str]:
    """Buffers that may hold infinity on purpose, as a mask does: all but batch statistics."""
    names = [name for name, _ in learner.network.named_buffers() if not name.endswith(("running_mean", "running_var"))]
    return {f"{whose}.{name}" for name in names for whose in ("network", "average")}


def state_of(learner: Learner) -> dict[str, Tensor]:
    """Every tensor that an update changes, by name."""
    tensors = {f"network.{k}": v for k, v in learner.network.state_dict().items()}
    if learner.average:
        tensors |= {f"average.{k}": v for k, v in learner.average.network.state_dict().items()}
    for index, state in learner.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items() if isinstance(v, Tensor)}
    if learner.proxy:
        tensors |= {f"proxy.{k}": v for k, v in state_of(learner.proxy).items()}
    if learner.last:
        tensors["last_losses"] = learner.last.losses
    return tensors


def load_newest(run_folder: Path, learner: Learner) -> tuple[Position, list[str]]:
    """Put the newest whole checkpoint back into a learner.

    The first process reads it for all; where weights are shared out, each process reads its own rows.

    Returns:
        Where the run stood, and a sentence for each damaged checkpoint that was passed over.

    Raises:
        InputError: none is whole, or it is another network's.
    """
    world = learner.world
    steps_per_epoch = learner.total_steps // learner.spec.train.epochs
    folder, position, notes = world.first_does(lambda: find_newest(run_folder, steps_per_epoch))
    if is_sharded(learner.network):
        with opened(folder) as parts:
            _restore_parts(learner, parts)
    else:
        restore(learner, world.first_does(lambda: read_parts(folder)), str(run_folder))
    learner.lr_scale = position.lr_scale
    return position, notes


def find_newest(run_folder: Path, steps_per_epoch: int) -> tuple[Path, Position, list[str]]:
    """The newest whole checkpoint: its folder, where the run stood, what was passed over. Raises InputError."""
    vault = Vault(run_folder)
    found = vault.find()
    if found.folder is None:
        raise InputError(
            f"no checkpoint in {vault.folder} is whole: {'; '.join(found.damaged) or 'there is none'}. Nothing was "
            "changed: bring one back, or choose another --out to start afresh"
        )
    try:
        position = Position.from_json((found.folder / POSITION).read_text(encoding="utf-8"), steps_per_epoch)
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{found.folder / POSITION} is damaged, or of other data: {error}") from error
    return found.folder, position, [f"warning: passed over a damaged checkpoint: {what}" for what in found.damaged]


def restore(learner: Learner, tensors: Mapping[str, Tensor], path: str) -> None:
    """Put tensors of `state_of` back. Raises InputError where they are another network's."""
    for key, own in learner.network.state_dict().items():
        given = tensors.get(f"network.{key}", own)
        if given.dtype != own.dtype:
            raise InputError(f"{path}: {key} holds {given.dtype} in place of {own.dtype}")
    load_state(learner.network, _part(tensors, "network."), path)
    if learner.average:
        load_state(learner.average.network, _part(tensors, "average."), path)
    _put_memory(learner, _part(tensors, "optimizer."))
    if learner.proxy:
        restore(learner.proxy, _part(tensors, "proxy."), path)
    if learner.last:
        found = tensors.get("last_losses")
        if found is None or found.ndim != 1 or found.dtype != torch.float32:
            raise InputError(f"{path}: the images' last losses are not in the checkpoint")
        learner.last.losses = found.clone()


def _restore_parts(learner: Learner, parts: Parts) -> None:
    """The same where weights are shared out, which goes with neither an average nor a proxy: each reads its own."""
    put_parts(learner.network, parts, "network.")
    parameters = [p for group in learner.optimizer.param_groups for p in group["params"]]  # as the optimizer counts
    memory = {}
    for key in (key for key in parts if key.startswith("optimizer.")):
        parameter = parameters[int(key.split(".")[1])]
        same = parts.shape(key) == tuple(parameter.shape)
        memory[key.removeprefix("optimizer.")] = own_rows(parts, key, parameter) if same else parts[key]
    _put_memory(learner, memory)


def _put_memory(learner: Learner, tensors: Mapping[str, Tensor]) -> None:
    """The optimizer's memory: `<parameter's number>.<name>` -> its tensor, or this process's rows of it."""
    shapes = [own_part(p).shape for group in learner.optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        place = int(index) if index.isdecimal() else len(shapes)
        if not name or place >= len(shapes) or value.shape not in ((), shapes[place]):
            raise InputError(f"the optimizer's {key} in the checkpoint, {list(value.shape)}, is of another network")
        state.setdefault(place, {})[name] = value
    learner.optimizer.load_state_dict(learner.optimizer.state_dict() | {"state": state})
    for parameter, held in learner.optimizer.state.items():  # sums over another memory layout have other bits
        shape = own_part(parameter).shape
        held |= {k: like(parameter, v) for k, v in held.items() if v.shape == shape != ()}
    from_zero(learner.optimizer)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
