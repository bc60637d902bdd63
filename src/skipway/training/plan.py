"""From what was asked to what will run: everything left open is settled here, once, with a sentence for each."""

import dataclasses
from dataclasses import dataclass

import torch

from skipway.data.open import open_source
from skipway.data.preprocess import check_scored_size, choose_size, scored_size
from skipway.data.source import Source, is_multilabel
from skipway.data.split import Splits, make_splits
from skipway.device import choose_device
from skipway.errors import InputError
from skipway.network_spec import STEM_DOWNSAMPLING, NetworkSpec
from skipway.nn.weights import fitting_stem
from skipway.nn.zoo import ZOO, resolve_stem
from skipway.spec import RunSpec, TrainSpec
from skipway.training.loss import settle_loss
from skipway.training.machine import computes_bf16
from skipway.training.start import Given, measured_note, open_weights

BASE_LR = {"sgd": 0.1, "adamw": 0.001, "adam": 0.001, "lamb": 0.002, "muon": 0.02}  # for batches of 128


@dataclass(frozen=True)
class Plan:
    """A run that can start.

    Args:
        spec: the resolved spec: nothing in it is open any more.
        source, splits: the data.
        device: where it will train.
        notes: what was chosen for the user, a sentence each.
        given: weights to start from.
    """

    spec: RunSpec
    source: Source
    splits: Splits
    device: torch.device
    notes: tuple[str, ...]
    given: Given | None

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the train split; what is left over waits for another epoch's order."""
        return len(self.splits.train) // self.spec.train.batch_size


def make_plan(asked: RunSpec, *, open_given: bool = True) -> Plan:
    """Open the data and settle size, stem, batch size, rate, precision and device.

    Args:
        asked: what may leave things open.
        open_given: read the weights to start from; False for a run that has begun.

    Raises:
        InputError: data, network and settings do not go together.
    """
    source = open_source(asked.data)
    several = is_multilabel(source)
    if len(source.classes) < 2 and not several:
        raise InputError(f"{asked.data.path} has one class only ('{source.classes[0]}'): nothing to tell apart")
    splits = make_splits(source, asked.data)
    size, why = choose_size(source, asked.data.image_size)
    notes = [_describe_data(asked, source, splits), f"images at {size} pixels: {why}"]
    network = dataclasses.replace(asked.network, num_classes=len(source.classes), in_channels=source.channels)
    given = open_weights(asked.train, network, size) if open_given else None
    notes += measured_note(given, asked.data, source.reading)
    if isinstance(network, NetworkSpec):
        network, note = _settle_stem(network, given, size)
        notes += [note] if note else []
        _check_network(network, size, asked.train.batch_size)
        notes += _normless_note(network)
    data = dataclasses.replace(asked.data, image_size=size)
    if isinstance(network, NetworkSpec):
        check_scored_size(data, network.check_image_size)
    if scored_size(data) != size:
        notes.append(f"trained at {size} pixels, scored and used at {data.test_size}")
    device = choose_device(asked.train.device)
    train, loss_note = settle_loss(asked.train, asked.data.path, multilabel=several, num_classes=len(source.classes))
    train, train_notes = _settle_train(train, len(splits.train), device)
    kept = asked.speed.keep_hard
    if kept < 1:
        train_notes.append(f"learns from the {kept:.0%} of each batch with the largest loss; train's figures are of it")
    spec = dataclasses.replace(asked, data=data, network=network, train=train)
    return Plan(spec, source, splits, device, (*notes, loss_note, *train_notes), given)


def _normless_note(network: NetworkSpec) -> list[str]:
    if network.norm != "none" or network.init == "fixup" or network.branch_scale != "none" or network.depth < 10:
        return []
    return [
        f"warning: {network.depth} blocks without normalisation hardly train as they are; "
        "--init fixup or --branch-scale skipinit is made for that"
    ]


def _check_network(network: NetworkSpec, size: int, batch_size: int) -> None:
    """Refuse what cannot be trained on such images."""
    network.check_image_size(size)
    if network.head != "linear":
        raise InputError(f"network.head {network.head} gives no logits to train; --head linear")
    if batch_size == 1 and network.norm == "batch" and network.last_map(size) == 1:
        least = next(n for n in range(size, 99 + 4 * size) if network.last_map(n) > 1)
        raise InputError(
            f"batches of one need more than one pixel in the last feature map, for batch norm: --image-size "
            f"{least} or more, or --batch-size 2"
        )


def _describe_data(asked: RunSpec, source: Source, splits: Splits) -> str:
    val = f"{len(splits.val):,} validation" + (" (held out of train)" if splits.held_out else "")
    test = "no test split" if splits.test is None else f"{len(splits.test):,} test"
    classes = f"{len(source.classes)} {'labels' if is_multilabel(source) else 'classes'}"
    return f"{asked.data.path}: {classes}; {len(splits.train):,} train, {val}, {test}"


def _settle_stem(network: NetworkSpec, given: Given | None, size: int) -> tuple[NetworkSpec, str]:
    """Given weights fix an open stem; else the image size does."""
    if given and network.stem == "auto":
        own = ZOO[network.name].spec.stem if network.name in ZOO else "imagenet"
        stem = fitting_stem(given.state, network, list(dict.fromkeys((own, "cifar", *STEM_DOWNSAMPLING))))
        if stem:
            settled, warning = resolve_stem(dataclasses.replace(network, stem=stem), size)  # pyrefly: ignore
            said = f"stem {stem}: that of the given weights"
            return settled, f"{said}; {warning}" if warning else said
    return resolve_stem(network, size)


def _settle_train(train: TrainSpec, num_images: int, device: torch.device) -> tuple[TrainSpec, list[str]]:
    """Batch size, rate, warm-up and precision."""
    notes = []
    if not train.batch_size:
        size = 128
        while size > 16 and num_images // size < 16:
            size //= 2
        train = dataclasses.replace(train, batch_size=min(size, num_images))
    if train.batch_size > num_images:
        raise InputError(
            f"train.batch_size {train.batch_size} is larger than the {num_images} training images; "
            f"--batch-size {num_images} or less"
        )
    left = num_images % train.batch_size
    rest = f" ({left} images, others each time, sit an epoch out)" if left else ""
    notes.append(f"batches of {train.batch_size}, {num_images // train.batch_size} steps an epoch{rest}")
    if train.warmup_epochs > train.epochs:
        raise InputError(f"train.warmup_epochs {train.warmup_epochs:g} is longer than the run of {train.epochs} epochs")
    if not train.lr:
        fixed = train.optimizer == "muon"  # its steps are as long whatever the gradient
        lr = BASE_LR[train.optimizer] * (1 if fixed else train.batch_size / 128)
        train = dataclasses.replace(train, lr=lr)
        why = "for any batch size" if fixed else "in proportion to the batch size"
        notes.append(f"learning rate {lr:g} ({train.optimizer}, {why})")
    if train.warmup_epochs < 0:
        share = 0.3 if train.schedule == "onecycle" else 0.05
        train = dataclasses.replace(train, warmup_epochs=share * train.epochs)
    if train.precision == "auto":
        bf16 = computes_bf16(device)
        train = dataclasses.replace(train, precision="bf16" if bf16 else "fp32")
        why = "the hardware computes in it" if bf16 else "the hardware has no bf16 of its own"
        notes.append(f"precision {train.precision} on {device}: {why}")
    return train, notes
