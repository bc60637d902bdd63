"""last.safetensors: what training needs to go on from the last whole epoch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from skipway.errors import InputError
from skipway.nn.weight_files import read_safetensors
from skipway.nn.weights import load_state
from skipway.run import Run, dense_copies
from skipway.training.step import Learner

NAME = "last.safetensors"


@dataclass(frozen=True)
class Position:
    """Where training stands: whole epochs done, and the best epoch so far (0: none), by its task's main score."""

    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -1.0
    best_loss: float = 0.0


def save_last(run: Run, position: Position, learner: Learner) -> None:
    """Write the state of training."""
    tensors = _state(learner)
    if learner.proxy:
        tensors |= {f"proxy.{k}": v for k, v in _state(learner.proxy).items()}
    run.write_bytes(NAME, save(dense_copies(tensors), {"position": json.dumps(asdict(position))}))


def _state(learner: Learner) -> dict[str, Tensor]:
    tensors = {f"network.{k}": v for k, v in learner.network.state_dict().items()}
    if learner.average:
        tensors |= {f"average.{k}": v for k, v in learner.average.network.state_dict().items()}
    for index, state in learner.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items() if isinstance(v, Tensor)}
    return tensors


def load_last(run: Run, learner: Learner) -> Position:
    """Put the state of training back into its parts.

    Raises:
        InputError: the file is missing, damaged, or another network's.
    """
    path = run.folder / NAME
    tensors, metadata = read_safetensors(path)

    _restore(learner, tensors, str(path))
    if learner.proxy:
        _restore(learner.proxy, _part(tensors, "proxy."), str(path))
    try:
        return Position(**json.loads(metadata["position"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error!r}") from error


def _restore(learner: Learner, tensors: Mapping[str, Tensor], path: str) -> None:
    load_state(learner.network, _part(tensors, "network."), path)
    if learner.average:
        load_state(learner.average.network, _part(tensors, "average."), path)
    state: dict[int, dict[str, Any]] = {}
    for key, value in _part(tensors, "optimizer.").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    learner.optimizer.load_state_dict(learner.optimizer.state_dict() | {"state": state})
    for parameter, held in learner.optimizer.state.items():  # sums over another memory layout have other bits
        held |= {k: torch.empty_like(parameter).copy_(v) for k, v in held.items() if v.shape == parameter.shape != ()}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
