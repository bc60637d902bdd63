"""Where training starts from: fresh weights, or those of a run, of a file, or published ones under a name."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from skipway.data.images.reading import Reading
from skipway.data.preprocess import Normalisation, check_scored_size
from skipway.data_spec import DataSpec
from skipway.errors import InputError
from skipway.foreign_spec import ForeignSpec
from skipway.network_spec import NetworkSpec
from skipway.nn.download import SOURCES, fetch, normalisation_of
from skipway.nn.foreign import build_any, check_logits, classifiers
from skipway.nn.weight_files import read_metadata, read_weights
from skipway.nn.weights import load_weights
from skipway.run import FORMAT, Saved, read_saved
from skipway.spec import RunSpec, TrainSpec


class NoWeights(InputError):
    """The weights to start from cannot be had."""


@dataclass(frozen=True)
class Given:
    """Weights to start from.

    Args:
        name: as the user named them.
        state: under whoever's names.
        run: what else is known where they are a run's.
        normalisation: of the images that they were trained on, where that is known.
    """

    name: str
    state: Mapping[str, Tensor]
    run: Saved | None = None
    normalisation: Normalisation | None = None


def open_weights(train: TrainSpec, network: NetworkSpec | ForeignSpec, image_size: int) -> Given | None:
    """What `train.weights` names, read whole; None where it names nothing.

    Args:
        train: its `weights` is a run folder, a file, torchvision:WEIGHTS or timm:NAME.
        network: what they are for.
        image_size: pixels a side.

    Raises:
        NoWeights: nothing there, damaged, or a download that failed.
    """
    if not train.weights:
        return None
    try:
        return _open(train, network, image_size)
    except InputError as error:
        raise NoWeights(str(error)) from error


def _open(train: TrainSpec, network: NetworkSpec | ForeignSpec, image_size: int) -> Given:
    name = train.weights
    if name.startswith(SOURCES):
        foreign = network if isinstance(network, ForeignSpec) else None
        state = fetch(name, network.name, foreign, image_size, train.seed)
        numbers = normalisation_of(name, network.name)
        return Given(name, state, None, Normalisation(*numbers, f"that of {name}") if numbers else None)
    path = Path(os.path.expanduser(name))
    if not path.exists():
        raise InputError(
            f"no such weights file or run folder: {name} (published ones are torchvision:IMAGENET1K_V2, "
            "timm:resnet50.a1_in1k, ...)"
        )
    if path.is_dir() or (path.suffix == ".safetensors" and read_metadata(path).get("format") == FORMAT):
        saved = read_saved(path)
        theirs = saved.preprocess
        known = Normalisation(theirs.mean, theirs.std, f"that of {name}", theirs.reading)
        return Given(name, saved.state, saved, known)
    return Given(name, read_weights(path))


def measured_note(given: Given | None, data: DataSpec, reading: Reading) -> list[str]:
    """A sentence where mean and deviation are measured though weights are given; nothing where that was asked for.

    Args:
        given: weights to start from.
        data: whose normalisation is asked for.
        reading: of the images.
    """
    known = given.normalisation if given else None
    if given is None or data.normalisation != "auto" or (known is not None and known.fits(reading)):
        return []
    said = f"mean and deviation measured on train, not those of {given.name}"
    if known is None:
        return [f"{said}, which does not say them (published ImageNet weights usually want --normalisation imagenet)"]
    return [f"{said}: those are of images of another depth or window"]


def make_network(spec: RunSpec, given: Given | None, classes: Sequence[str]) -> tuple[nn.Module, list[str]]:
    """The network at its start.

    Args:
        spec: the resolved spec.
        given: weights to start from; None: fresh ones.
        classes: names, in the order of the logits.

    Returns:
        The network, and what was adapted on the way, a sentence each.

    Raises:
        InputError: weights that do not fit, or another's network that takes no such images.
    """
    size = spec.data.image_size
    network = build_any(spec.network, image_size=size, seed=spec.train.seed)
    if isinstance(spec.network, ForeignSpec):
        check = partial(check_logits, network, spec.network, batch_size=min(spec.train.batch_size, 2))
        check(size)
        check_scored_size(spec.data, check)
    if given is None:
        return network, []
    state, notes = dict(given.state), []
    if given.run is not None:
        notes += _match_classes(state, network, given.run.classes, classes)
    loaded = load_weights(network, state, channels=spec.train.weight_channels, new_head=True, source=given.name)
    whose = "" if loaded.layout in ("skipway", "own") else f" (in the {loaded.layout} layout)"
    return network, [f"weights from {given.name}{whose}", *notes, *loaded.changed]


def _match_classes(
    state: dict[str, Tensor], network: nn.Module, theirs: Sequence[str], ours: Sequence[str]
) -> list[str]:
    """A run's head for other classes: rows of classes that both know, by name; the others stay fresh."""
    if tuple(theirs) == tuple(ours):
        return []
    heads, changed = classifiers(network), False
    shared = [name for name in ours if name in theirs]
    for key, own in network.state_dict().items():
        given = state.get(key)
        if given is None or key.rpartition(".")[0] not in heads or given.shape[1:] != own.shape[1:]:
            continue
        if given.shape[:1] != (len(theirs),) or own.shape[:1] != (len(ours),):
            continue
        rows = own.clone()
        for name in shared:
            rows[ours.index(name)] = given[theirs.index(name)]
        state[key], changed = rows, True
    if not changed:
        return ["warning: other classes than the given weights', whose head was not found and stays as it is"]
    if not shared:
        return ["a new head: the given weights know none of these classes"]
    return [f"a new head: {len(shared)} of {len(ours)} classes taken over from the given weights, by name"]
