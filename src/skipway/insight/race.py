"""A race: networks trained side by side, step by step, from one seed, on the same batches in the same order.

    race = race_of(RaceSettings(depth=20), *digits_images())   # "residual" and its "plain" twin
    seconds = race.estimate_s()
    while not race.done:
        step = race.step()                  # losses, rates, gradient norms by layer
    race.scores()

Each update is the one that `skipway train` makes (training/step.py). Nothing of it depends on when it is made, so the
same race has the same bits again, however often it was stopped between.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from skipway import randomness
from skipway.errors import InputError
from skipway.fields import check, option
from skipway.insight.probe import evaluating
from skipway.insight.subject import Images
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.nn import kernels
from skipway.nn.network import build
from skipway.nn.twin import twin
from skipway.spec import RunSpec, TrainSpec
from skipway.training.engine import Engine
from skipway.training.loss import make_objective, settle_loss
from skipway.training.step import Learner

RESIDUAL, PLAIN = "residual", "plain"
BATCH = 256  # images at a time where scores are made


@dataclass(frozen=True)
class RaceSettings:
    """What a race between a residual network and its plain twin is made from."""

    depth: int = option(20, "layers, 6n + 2: 8, 14, 20 ... 110", low=8, high=110)
    width: int = option(8, "channels of the first stage; the others have two and four times as many", low=4, high=32)
    norm: Literal["batch", "group", "none"] = option("batch", "normalisation")
    init: Literal["he", "fixup", "dirac"] = option("he", "initial weights; fixup wants norm none; the twin has he then")
    shortcut: Literal["zero_pad", "projection", "project_all", "avg_pool", "avg_zero_pad"] = option(
        "zero_pad", "the skips, where the shape changes"
    )
    lr: float = option(0.1, "peak learning rate", low=1e-6, high=100)
    batch_size: int = option(64, "images a step; all of them where there are fewer", low=2, high=4096)
    epochs: int = option(12, "times through the training images", low=1, high=1000)
    optimizer: Literal["sgd", "adamw", "adam", "lamb", "muon"] = option("sgd", "update rule; sgd has momentum")
    seed: int = option(0, "of weights and order", low=0, high=2**62)

    def __post_init__(self) -> None:
        check(self, "race")
        if self.depth % 6 != 2:
            raise InputError(f"race.depth must be 6n + 2 (8, 14, 20, ..., 110), got {self.depth}")


@dataclass(frozen=True)
class Lap:
    """What one network did in a step.

    Args:
        loss: mean of the batch before the update, in nats; NaN or infinite once it diverged.
        right: share of the batch whose answer was right.
        lr: the rate of the update.
        gradients: Euclidean norm of the loss's gradient by each layer's weight, in the order of `Race.layers`.
        time_s: seconds that the step took.
    """

    loss: float
    right: float
    lr: float
    gradients: tuple[float, ...]
    time_s: float


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
        networks: name -> spec. The image's channels and the classes are the images'.
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
        several = train.labels.ndim == 2
        self.spec, _ = settle_loss(spec, "these images", multilabel=several, num_classes=2)
        self.batch_size = min(spec.batch_size, len(train))
        self.steps_per_epoch = len(train) // self.batch_size
        self.total_steps = spec.epochs * self.steps_per_epoch
        own = not kernels.load()
        self.engine = Engine(torch.device("cpu"), bf16=spec.precision == "bf16", channels_last=True, kernels=own)
        self.reset()

    def reset(self) -> None:
        """Back to the start: initial weights, no steps."""
        self.learners = {name: self._learner(network) for name, network in self.networks.items()}
        shared = [_layers(learner.network) for learner in self.learners.values()]
        self.layers = tuple(name for name in shared[0] if all(name in other for other in shared))
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
        laps = {name: self._lap(learner, inputs, labels) for name, learner in self.learners.items()}
        self.taken += 1
        made = RaceStep(self.taken, epoch + 1, laps)
        self.steps.append(made)
        return made

    def _lap(self, learner: Learner, inputs: Tensor, labels: Tensor) -> Lap:
        start = time.perf_counter()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            update = learner.learn(inputs, labels, self.taken)
        gradients = [learner.network.get_parameter(f"{name}.weight").grad for name in self.layers]
        norms = torch.stack(torch._foreach_norm([g for g in gradients if g is not None])).tolist()
        took = time.perf_counter() - start
        return Lap(float(update.loss), float(update.right) / len(inputs), update.lr, tuple(norms), took)

    def scores(self) -> dict[str, Score]:
        """How good each network is now, in evaluation mode and fp32."""
        made = {name: self._score(name) for name in self.learners}
        self.told.append((self.taken, made))
        return made

    @torch.no_grad()
    def _score(self, name: str) -> Score:
        learner = self.learners[name]
        with evaluating(learner.network):
            logits = torch.cat([learner.network(x) for x in self.seen.inputs.split(BATCH)])
        labels = self.seen.labels
        right = float(learner.objective.right(logits, labels)) / len(labels)
        last = [s.networks[name].loss for s in self.steps[-self.steps_per_epoch :]]
        train_loss = sum(last) / len(last) if last else float("nan")
        return Score(right, float(learner.objective.loss(logits, labels)), train_loss)

    def estimate_s(self, *, scores: int = 0) -> float:
        """Seconds that the whole race takes here, measured on two steps of copies; this race stays as it is.

        Args:
            scores: how many times scores are to be made.
        """
        copy = Race(self.networks, self.spec, self.train, self.seen)
        copy.step()  # the first one prepares what later ones find
        start = time.perf_counter()
        copy.total_steps = max(copy.total_steps, 2)
        copy.step()
        step_s = time.perf_counter() - start
        if not scores:
            return step_s * self.total_steps
        start = time.perf_counter()
        copy.scores()
        return step_s * self.total_steps + scores * (time.perf_counter() - start)

    def state(self) -> RaceState:
        """All that was told so far."""
        return RaceState(self.taken, self.total_steps, self.layers, tuple(self.steps), tuple(self.told))


def race_of(settings: RaceSettings, train: Images, seen: Images) -> Race:
    """The race of a residual network and its plain twin, "residual" and "plain".

    Args:
        settings: of both.
        train, seen: images to learn from, and to score on.

    Raises:
        InputError: the settings do not go together, or not with the images.
    """
    classes = int(train.labels.max()) + 1 if train.labels.ndim == 1 else train.labels.shape[1]
    network = race_spec(settings, channels=train.inputs.shape[1], classes=max(classes, 2))
    return Race({RESIDUAL: network, PLAIN: twin(network).spec}, train_spec(settings), train, seen)


def race_spec(settings: RaceSettings, *, channels: int, classes: int) -> NetworkSpec:
    """The residual network of a race: three stages of n blocks (He et al. 2015, section 4.2), at any width.

    Args:
        settings: depth 6n + 2, width, norm, init and shortcut.
        channels: of an image.
        classes: number of logits.
    """
    n, width = (settings.depth - 2) // 6, settings.width
    return NetworkSpec(
        (StageSpec(n, width), StageSpec(n, 2 * width, 2), StageSpec(n, 4 * width, 2)),
        name=f"resnet{settings.depth}",
        shortcut=settings.shortcut,
        stem="cifar",
        stem_width=width,
        norm=settings.norm,
        norm_groups=next(g for g in (4, 3, 2, 1) if width % g == 0),
        init=settings.init,
        in_channels=channels,
        num_classes=classes,
    )


def train_spec(settings: RaceSettings) -> TrainSpec:
    """How the networks of a race learn: as `skipway train` does by default, in fp32."""
    return TrainSpec(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        optimizer=settings.optimizer,
        lr=settings.lr,
        warmup_epochs=0.05 * settings.epochs,
        precision="fp32",
        seed=settings.seed,
    )


def digits_images(image_size: int = 16) -> tuple[Images, Images]:
    """scikit-learn's digits for a race: 1,438 images to learn from, and 359 to score on.

    Raises:
        InputError: scikit-learn is not installed.
    """
    from skipway.data.builtin import digits
    from skipway.data.loader import make_loader
    from skipway.data.preprocess import measure, plain
    from skipway.insight.subject import _images
    from skipway.spec import DataSpec

    source, spec = digits(), DataSpec(path="digits")
    loader = make_loader(source, plain(source, spec, image_size), spec)
    preprocess = measure(loader, source.splits["train"])
    places = torch.arange(len(source.classes))
    train, seen = (_images(loader, preprocess, source.splits[part], places, len(source)) for part in ("train", "test"))
    return train, seen


def _layers(network: nn.Module) -> list[str]:
    """The convolutions and linear layers in order, without those of shortcuts."""
    kinds = (nn.Conv2d, nn.Linear)
    return [name for name, module in network.named_modules() if isinstance(module, kinds) and ".shortcut" not in name]
