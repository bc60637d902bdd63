"""What a run is put together from, fresh or to go on: loaders, preprocessing, augmentation, and the learner."""

from dataclasses import dataclass

import torch
from rich.console import Console

from skipway.data.augmentation.augment import Augment
from skipway.data.loader import Loader
from skipway.data.preprocess import Preprocess, plain
from skipway.errors import InputError
from skipway.nn.network import ResNet
from skipway.nn.sync_norm import synchronised
from skipway.nn.whitening import whiten
from skipway.run import Run
from skipway.training.engine import Engine, choose_engine, engine_of
from skipway.training.facts import doctor_notes
from skipway.training.feeding import open_loaders, settle_preprocess
from skipway.training.finetune import frozen_note
from skipway.training.loss import make_objective
from skipway.training.pieces import engine_to_go_on
from skipway.training.place import Before
from skipway.training.plan import Plan
from skipway.training.sharding import check_shardable
from skipway.training.start import make_network
from skipway.training.step import Learner
from skipway.training.world import ALONE, World

WHITENED_FROM = 5000  # training images, evenly over the split


@dataclass(frozen=True)
class Parts:
    """A run's parts.

    Args:
        train_loader, loader: of training images, and of all others.
        preprocess: of the run; its normalisation is settled.
        augment: of training images.
        learner: the network and everything that changes it.
        notes: what was chosen, a sentence each.
    """

    train_loader: Loader
    loader: Loader
    preprocess: Preprocess
    augment: Augment
    learner: Learner
    notes: list[str]


@dataclass(frozen=True)
class Begun:
    """What a run that goes on keeps: its engine.json, its preprocessing; and what is to be said of that."""

    engine: str
    preprocess: Preprocess
    notes: list[str]

    @staticmethod
    def of(run: Run, plan: Plan, before: Before, processes: int) -> "Begun":
        """Read it. Raises InputError."""
        engine, notes = engine_to_go_on(run, plan, before, processes)
        return Begun(engine.to_json(), run.preprocess, notes)


def assemble(plan: Plan, console: Console, *, begun: Begun | None = None, world: World = ALONE) -> Parts:
    """Put a run together.

    Args:
        plan: what to do.
        console: where to show progress, and to ask.
        begun: what is kept of the run to go on with; its state is loaded elsewhere.
        world: the processes that train together.

    Raises:
        InputError: data, weights or machine cannot be used.
    """
    spec = plan.spec
    if world.size > 1 and spec.train.batch_size < 2 * world.size:
        raise InputError(
            f"train.batch_size {spec.train.batch_size} is too small for {world.size} processes, each of which needs "
            f"two images; --batch-size {2 * world.size} or more"
        )
    if spec.speed.shard:
        check_shardable(spec)
    torch.manual_seed(spec.train.seed)
    chosen: list[str] = []
    if begun:
        engine, chosen = engine_of(begun.engine, plan), begun.notes
    else:
        engine, chosen = choose_engine(plan, world.size)
        if world.size > 1:
            engine = engine_of(world.first_does(engine.to_json), plan)
    preprocess = begun.preprocess if begun else plain(plan.source, spec.data, spec.data.image_size)
    small = preprocess.resized(spec.data.image_size)  # a run's own is of the size that it is scored at
    augment = Augment(spec.augment, small, num_classes=len(plan.source.classes), seed=spec.train.seed)
    train_loader, loader = open_loaders(plan, preprocess, console)
    said: list[str] = []
    if not begun:
        preprocess, said = settle_preprocess(plan, train_loader)
    learner, started = _make_learner(plan, engine, train_loader, preprocess, fresh=begun is None, world=world)
    notes = [*plan.notes, *chosen, *said, *doctor_notes(plan.source, spec.data), *started]
    return Parts(train_loader, loader, preprocess, augment, learner, notes)


def _make_learner(
    plan: Plan, engine: Engine, loader: Loader, preprocess: Preprocess, *, fresh: bool, world: World
) -> tuple[Learner, list[str]]:
    """The learner, and what was adapted on the way."""
    spec, labels, num_classes = plan.spec, plan.source.labels, len(plan.source.classes)
    network, notes = make_network(spec, plan.given if fresh else None, plan.source.classes)
    if fresh and plan.given is None and isinstance(network, ResNet) and network.spec.stem == "whitening":
        notes = [*notes, _whiten(network, plan, loader, preprocess)]
    if spec.train.sync_norm:
        network = synchronised(network, plan.device)
    objective = make_objective(spec.train, labels[plan.splits.train], num_classes, plan.device)
    learner = Learner(network, spec, engine, objective=objective, steps_per_epoch=plan.steps_per_epoch, world=world)
    train = spec.train
    notes += frozen_note(network, learner.frozen, fresh=not train.weights, epochs=train.freeze_epochs)
    return learner, notes


def _whiten(network: ResNet, plan: Plan, loader: Loader, preprocess: Preprocess) -> str:
    """Give the stem its filters from training images."""
    train = plan.splits.train
    some = train[torch.linspace(0, len(train) - 1, min(WHITENED_FROM, len(train))).long()]
    batches = [preprocess.normalise(batch.images) for batch in loader.batches(some, 256)]
    whiten(network, torch.cat(batches))
    return f"the stem's {network.spec.stem_out} filters whiten patches of {len(some):,} training images"
