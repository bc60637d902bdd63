"""A race: networks trained side by side, step by step, from one seed, on the same batches in the same order.

    race = race_of(RaceSettings(depth=20), *digits_images())   # "residual" and its "plain" twin
    seconds = race.estimate_s()
    while not race.done:
        step = race.step()                  # losses, rates, gradient norms by layer
    race.scores()

Each update is the one that `skipway train` makes (training/step.py). Nothing of it depends on when it is made, so the
same race has the same bits again, however often it was stopped between.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from skipway import randomness
from skipway.errors import InputError
from skipway.insight.probe import evaluating
from skipway.insight.race_settings import RaceSettings, digits_images, race_spec, train_spec
from skipway.insight.subject import Images
from skipway.network_spec import NetworkSpec
from skipway.nn.network import build
from skipway.nn.twin import twin
from skipway.spec import RunSpec, TrainSpec
from skipway.training.engine import Engine
from skipway.training.loss import make_objective, settle_loss
from skipway.training.step import Learner

__all__ = [
    "Lap",
    "Race",
    "RaceSettings",
    "RaceState",
    "RaceStep",
    "Score",
    "digits_images",
    "race_of",
    "race_spec",
    "train_spec",
]
RESIDUAL, PLAIN = "residual", "plain"
BATCH = 256  # images at a time where scores are made
_TURN = threading.RLock()  # number of threads and generator are the process's: races of several threads take turns
MEASURED, MEASURED_S = 8, 0.7  # steps, and seconds, that an estimate takes at most
ONE_THREAD = 1 << 19  # numbers in the widest activation up to which threads wait for each other longer than they help


@dataclass(frozen=True)
class Lap:
    """What one network did in a step.

    Args:
        loss: mean of the batch before the update, in nats; NaN or infinite once it diverged.
        right: share of the batch that was answered right.
        lr: the rate of the update.
        gradients: Euclidean norm of the loss's gradient by each layer's weight, in the order of `Race.layers`.
        time_s: seconds that the step took.
        cpu_s: seconds that its thread was at work: about what it takes on a free core, where `Race.threads` is 1.
    """

    loss: float
    right: float
    lr: float
    gradients: tuple[float, ...]
    time_s: float
    cpu_s: float


@dataclass(frozen=True)
class RaceStep:
    """One step of all networks.

    Args:
        step: how many were made with this one.
        epoch: that it belongs to, from 1.
        networks: name -> what it did.
    """

    step: int
    epoch: int
    networks: dict[str, Lap]


@dataclass(frozen=True)
class Score:
    """How good a network is.

    Args:
        accuracy: share of right answers on the held-out images; of decisions where there are several labels.
        loss: on them, in nats.
        train_loss: mean loss of the batches of the last epoch's length, in nats; NaN before the first step.
    """

    accuracy: float
    loss: float
    train_loss: float


@dataclass(frozen=True)
class RaceState:
    """All that was told so far, as plain data.

    Args:
        step, total_steps: where the race is.
        layers: names of the rows of gradient norms, from the image on.
        steps: every step.
        scores: (step, name -> score), as they were asked for.
    """

    step: int
    total_steps: int
    layers: tuple[str, ...]
    steps: tuple[RaceStep, ...]
    scores: tuple[tuple[int, dict[str, Score]], ...]


class Race:
    """Networks that learn side by side.

    Args:
        networks: name -> spec.
        spec: how they learn; batch_size and lr set. Batches larger than the images are all of them.
        train: images to learn from.
        seen: images to score on.

    Attributes:
        layers: names of the weight layers (convolutions, and the head) that all networks have, from the image on;
            those of shortcuts are left out.
        steps_per_epoch, total_steps: of the budget; a partial last batch waits for another epoch's order.
        taken: steps made.
        steps, told: every step and score so far.

    Raises:
        InputError: fewer than two training images, or a network that cannot take them.
    """

    def __init__(self, networks: Mapping[str, NetworkSpec], spec: TrainSpec, train: Images, seen: Images):
        if len(train) < 2 or not len(seen):
            raise InputError(
                f"a race needs two training images and one to score on at least, got {len(train)}, {len(seen)}"
            )
        self.networks, self.train, self.seen = dict(networks), train, seen
        for network in self.networks.values():
            network.check_image_size(train.inputs.shape[-1])
            if network.in_channels != train.inputs.shape[1]:
                raise InputError(f"network {network.name} takes {network.in_channels} channels, the images have others")
        several = train.labels.ndim == 2
        self.spec, _ = settle_loss(spec, "these images", multilabel=several, num_classes=2)
        self.batch_size = min(spec.batch_size, len(train))
        self.steps_per_epoch = len(train) // self.batch_size
        self.total_steps = spec.epochs * self.steps_per_epoch
        widest = self.batch_size * max(n.stem_out for n in self.networks.values()) * train.inputs[0, 0].numel()
        self.threads = 1 if widest <= ONE_THREAD else torch.get_num_threads()
        self.engine = Engine(torch.device("cpu"), bf16=spec.precision == "bf16", channels_last=True)
        self.reset()

    def reset(self) -> None:
        """Back to the start: initial weights, no steps."""
        with _TURN, torch.random.fork_rng(devices=[]):  # modules draw weights, which those of the seed replace
            self.learners = {name: self._learner(network) for name, network in self.networks.items()}
        found = [_layers(learner.network) for learner in self.learners.values()]
        self._rows = [name for name in found[0] if all(name in other for other in found)]
        self.layers = tuple(_shown(name) for name in self._rows)
        self.taken = 0
        self.steps: list[RaceStep] = []
        self.told: list[tuple[int, dict[str, Score]]] = []
        self._order: Tensor | None = None

    def _learner(self, network: NetworkSpec) -> Learner:
        labels = self.train.labels
        return Learner(
            build(network, seed=self.spec.seed),
            RunSpec(network, train=self.spec),
            self.engine,
            objective=make_objective(self.spec, labels, network.num_classes, self.engine.device),
            steps_per_epoch=self.steps_per_epoch,
        )

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.taken >= self.total_steps

    def network(self, name: str) -> nn.Module:
        """The network as it is now, in training mode."""
        return self.learners[name].network

    def step(self) -> RaceStep:
        """One step of each network on the next batch. Raises InputError once the race is over."""
        if self.done:
            raise InputError(f"the race is over after {self.total_steps} steps; reset it to run it again")
        epoch, place = divmod(self.taken, self.steps_per_epoch)
        if place == 0 or self._order is None:
            self._order = randomness.order(torch.arange(len(self.train)), seed=self.spec.seed, epoch=epoch + 1)
        chosen = self._order[place * self.batch_size :][: self.batch_size]
        inputs = self.train.inputs[chosen].contiguous(memory_format=torch.channels_last)
        labels = self.train.labels[chosen]
        with computing_with(self.threads):
            laps = {name: self._lap(learner, inputs, labels) for name, learner in self.learners.items()}
        self.taken += 1
        made = RaceStep(self.taken, epoch + 1, laps)
        self.steps.append(made)
        return made

    def _lap(self, learner: Learner, inputs: Tensor, labels: Tensor) -> Lap:
        start, at_work = time.perf_counter(), time.thread_time()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():  # the update seeds what draws in the network
            update = learner.learn(inputs, labels, self.taken)
        gradients = [learner.network.get_parameter(f"{name}.weight").grad for name in self._rows]
        norms = torch.stack(torch._foreach_norm([g for g in gradients if g is not None])).tolist()
        took, cpu_s = time.perf_counter() - start, time.thread_time() - at_work
        return Lap(float(update.loss), float(update.right) / len(inputs), update.lr, tuple(norms), took, cpu_s)

    def scores(self) -> dict[str, Score]:
        """How good each network is now, in evaluation mode and fp32."""
        made = {name: self._score(name) for name in self.learners}
        self.told.append((self.taken, made))
        return made

    @torch.no_grad()
    def _score(self, name: str) -> Score:
        learner = self.learners[name]
        with evaluating(learner.network), computing_with(self.threads):
            logits = torch.cat([learner.network(x) for x in self.seen.inputs.split(BATCH)])
        labels = self.seen.labels
        right = float(learner.objective.right(logits, labels)) / len(labels)
        last = [s.networks[name].loss for s in self.steps[-self.steps_per_epoch :]]
        train_loss = sum(last) / len(last) if last else float("nan")
        return Score(right, float(learner.objective.loss(logits, labels)), train_loss)

    def estimate_s(self, *, scores: int = 0) -> float:
        """Seconds that the whole race takes here, measured on steps of a copy; this race stays as it is.

        Args:
            scores: how many times scores are to be made.
        """
        copy = Race(self.networks, replace(self.spec, epochs=self.spec.epochs + MEASURED), self.train, self.seen)
        copy.step()  # the first one prepares what later ones find
        start = time.perf_counter()
        while copy.taken <= MEASURED and time.perf_counter() - start < MEASURED_S:
            copy.step()
        step_s = (time.perf_counter() - start) / (copy.taken - 1)
        start = time.perf_counter()
        if scores:
            copy.scores()
        return step_s * self.total_steps + scores * (time.perf_counter() - start)

    def state(self) -> RaceState:
        """All that was told so far."""
        return RaceState(self.taken, self.total_steps, self.layers, tuple(self.steps), tuple(self.told))


def race_of(settings: RaceSettings, train: Images, seen: Images, *, classes: int = 0) -> Race:
    """The race of a residual network and its plain twin, "residual" and "plain".

    Args:
        settings: of both.
        train, seen: images to learn from, and to score on.
        classes: number of logits; 0: as many as the labels show.

    Raises:
        InputError: the settings do not go together, or not with the images.
    """
    labels = torch.cat([train.labels, seen.labels])
    classes = classes or (int(labels.max()) + 1 if labels.ndim == 1 else labels.shape[1])
    network = race_spec(settings, channels=train.inputs.shape[1], classes=classes)
    return Race({RESIDUAL: network, PLAIN: twin(network).spec}, train_spec(settings), train, seen)


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """With so many threads of PyTorch's, and as many as before afterwards; who comes meanwhile waits."""
    with _TURN:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _layers(network: nn.Module) -> list[str]:
    """The convolutions and linear layers in order, without those of shortcuts."""
    kinds = (nn.Conv2d, nn.Linear)
    return [name for name, module in network.named_modules() if isinstance(module, kinds) and ".shortcut" not in name]


def _shown(layer: str) -> str:
    """'stage1.block2.conv1' for 'stages.0.1.conv1'."""
    room, *rest = layer.split(".")
    if room != "stages":
        return layer
    return ".".join((f"stage{int(rest[0]) + 1}", f"block{int(rest[1]) + 1}", *rest[2:]))
