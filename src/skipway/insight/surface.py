"""A network's weights moved within a plane through them, in a copy: filter-normalised random planes, and the plane of
the training path.

At the origin the copy has the network's own bits.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.insight.subject import Images, Subject
from skipway.insight.watch import QUIET, Watch
from skipway.training.parts import read_parts
from skipway.training.vault import Vault

BATCH = 64
STATE_BYTES = 1 << 30  # that the states of a path may take in memory
State = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """Weights that training went through, seen in a plane.

    Args:
        name: of their checkpoint.
        x, y: where they are in the plane, the nearest point of it.
        distance: Euclidean, from the weights at the origin, in their own units.
        inside: share of its square that lies in the plane, in [0, 1].
    """

    name: str
    x: float
    y: float
    distance: float
    inside: float


@dataclass(frozen=True)
class Plane:
    """A plane through a network's weights.

    Args:
        x, y: its directions, by names of the state dict; a tensor that is not named stays as it is.
        path: states that training went through.
        length_x, length_y: Euclidean lengths of the directions, in the weights' own units.
    """

    x: State
    y: State
    path: tuple[Step, ...]
    length_x: float
    length_y: float


class Ground:
    """A copy of a network whose weights can be put anywhere in a plane.

    Args:
        network: stays as it is.
        plane: through its weights.

    Attributes:
        network: the copy, in evaluation mode.
    """

    def __init__(self, network: nn.Module, plane: Plane):
        self.network, self.plane = copy.deepcopy(network).eval(), plane
        self._moving = {k: v for k, v in self.network.state_dict().items() if k in plane.x or k in plane.y}
        self._origin = {k: v.clone() for k, v in self._moving.items()}

    @torch.no_grad()
    def go(self, x: float, y: float) -> nn.Module:
        """The copy with its weights at origin + x * plane.x + y * plane.y; no variance gets below zero."""
        for name, tensor in self._moving.items():
            tensor.copy_(self._origin[name])
            for amount, direction in ((x, self.plane.x), (y, self.plane.y)):
                if amount and name in direction:
                    tensor.add_(direction[name], alpha=amount)
            if name.endswith("running_var"):
                tensor.clamp_(min=0)
        return self.network

    def logits(self, x: float, y: float, images: Images, *, watch: Watch = QUIET) -> Tensor:
        """(N, K) at a place of the plane; the watch is asked at every batch, and told nothing new."""
        network = self.go(x, y)
        made = []
        with torch.no_grad():
            for batch in images.inputs.split(BATCH):
                made.append(network(batch))
                watch.tell(0.0)
        return torch.cat(made)


def random_plane(subject: Subject, seed: int) -> Plane:
    """Two random directions, each filter as long as the network's own.

    Li et al. 2018 (arXiv:1712.09913, section 4): d <- d / |d| * |w|, filter by filter; biases and the norms' parameters
    do not move (as in the paper's code), nor do running statistics. A row of a linear layer is a filter.
    """
    generator = torch.Generator().manual_seed(seed)
    x, y = (_random_direction(subject.network, generator) for _ in range(2))
    return _with_path(subject, x, y)


def path_plane(subject: Subject, seed: int) -> Plane:
    """The plane that keeps most of the training path: the first two principal directions of its checkpoints.

    Li et al. 2018 (section 7): principal components of the states' differences from the end. Where we differ: they are
    taken about the end itself, not about the mean, so that the plane goes through it; all parameters and running
    statistics move; both axes are as long as the path's largest coordinate, so that it lies within [-1, 1]. With one
    checkpoint the second direction is a random one of that length.

    Raises:
        InputError: no checkpoints.
    """
    origin = _floats(subject.network)
    parameters = dict(subject.network.named_parameters())
    moved = [(name, {k: state[k] - v for k, v in origin.items()}) for name, state in states_of(subject)]
    moved = [(name, delta) for name, delta in moved if _dot(delta, delta, parameters) > 0]
    if not moved:
        raise InputError(
            f"{subject.title} has no checkpoints to draw a path through; train with --keep-checkpoints 20, or choose "
            "the random plane"
        )
    gram = torch.tensor([[_dot(a, b, parameters) for _, b in moved] for _, a in moved], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(gram)  # rising
    kept = [i for i in (-1, -2)[: len(moved)] if values[i] > 1e-9 * values[-1]]
    most = max(float((vectors[:, i].abs() * values[i].sqrt()).max()) for i in kept)
    directions: list[State] = []
    for i in kept:
        weights = vectors[:, i] / values[i].sqrt() * most
        weights = weights * (1 if float(weights[0]) >= 0 else -1)  # the path comes from the right, and from above
        deltas = [delta for _, delta in moved]
        directions.append(
            {k: torch.stack([d[k] * float(w) for w, d in zip(weights, deltas, strict=True)]).sum(0) for k in origin}
        )
    if len(kept) < 2:
        directions.append(_beside(subject.network, directions[0], most, seed))
    return _with_path(subject, directions[0], directions[1])


PLANES = {"random": random_plane, "path": path_plane}


def states_of(subject: Subject) -> list[tuple[str, State]]:
    """The checkpoints of a subject's run that can be read and fit its network, the oldest first; averages, if any."""
    if subject.run is None:
        return []
    wanted = _floats(subject.network)
    size = sum(t.numel() * 4 for t in wanted.values())
    vault = Vault(subject.run.folder)
    names = vault.names()
    most = max(2, min(len(names), STATE_BYTES // max(size, 1)))
    if len(names) > most:
        names = [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]
    found = []
    for name in names:
        try:
            tensors = read_parts(vault.folder / name)
        except InputError:
            continue  # damaged
        prefix = "average." if any(key.startswith("average.") for key in tensors) else "network."
        state = {k: tensors[prefix + k].float() for k in wanted if prefix + k in tensors}
        if {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in wanted.items()}:
            found.append((name, state))
    return found


def score(subject: Subject, logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean loss in nats and accuracy; the loss NaN where it is not finite."""
    loss = float(subject.loss(logits, labels))
    return (loss if math.isfinite(loss) else math.nan), float(subject.right(logits, labels).mean())


def _random_direction(network: nn.Module, generator: torch.Generator) -> State:
    direction = {}
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            drawn = torch.randn(parameter.shape, generator=generator)
            own, length = (t.detach().flatten(1).norm(dim=1) for t in (parameter, drawn))
            direction[name] = drawn * (own / length.clamp_min(1e-12)).view(-1, *[1] * (parameter.ndim - 1))
    return direction


def _beside(network: nn.Module, first: State, length: float, seed: int) -> State:
    """A random direction at a right angle to another."""
    parameters = dict(network.named_parameters())
    drawn = _random_direction(network, torch.Generator().manual_seed(seed))
    slope = _dot(drawn, first, drawn) / _dot(first, first, parameters)
    drawn = {k: drawn.get(k, torch.zeros_like(v)) - slope * v for k, v in first.items() if k in parameters}
    factor = length / math.sqrt(_dot(drawn, drawn, drawn))
    return {k: v * factor for k, v in drawn.items()}


def _with_path(subject: Subject, x: State, y: State) -> Plane:
    """The plane, with where training went by least squares."""
    parameters = dict(subject.network.named_parameters())
    axes = [{k: v for k, v in axis.items() if k in parameters} for axis in (x, y)]
    gram = torch.tensor([[_dot(a, b, a.keys() & b.keys()) for b in axes] for a in axes], dtype=torch.float64)
    steps = []
    for name, state in states_of(subject):
        delta = {k: state[k] - p.detach() for k, p in parameters.items()}
        along = torch.tensor([_dot(delta, axis, axis) for axis in axes], dtype=torch.float64)
        place = torch.linalg.lstsq(gram, along[:, None]).solution[:, 0]
        whole = _dot(delta, delta, parameters)
        inside = float(place @ along) / whole if whole > 0 else 1.0
        steps.append(Step(name, float(place[0]), float(place[1]), math.sqrt(whole), min(max(inside, 0.0), 1.0)))
    return Plane(x, y, tuple(steps), math.sqrt(float(gram[0, 0])), math.sqrt(float(gram[1, 1])))


def _floats(network: nn.Module) -> State:
    """Parameters and buffers that can move."""
    return {k: v.detach() for k, v in network.state_dict().items() if v.is_floating_point()}


def _dot(a: State, b: State, names: Mapping[str, Tensor] | Sequence[str] | set[str]) -> float:
    return sum(float(a[k].double().flatten() @ b[k].double().flatten()) for k in names)
