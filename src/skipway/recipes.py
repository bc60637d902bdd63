"""Named, complete specs, and `compose`, which lays a config file and flags over one: recipe < config file < flags."""

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from skipway.errors import InputError, unknown
from skipway.foreign_spec import ForeignSpec, cannot_change, is_foreign
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.nn.zoo import ZOO, find
from skipway.spec import SECTIONS, AugmentSpec, DataSpec, RunSpec, TrainSpec, from_dict, to_dict

Settings = Mapping[str, Mapping[str, Any]]  # section -> field -> value


def _trainable(name: str) -> NetworkSpec:
    """A zoo network whose stem is left to the image size."""
    return dataclasses.replace(find(name), stem="auto")


def default() -> RunSpec:
    """A sound start for any images: resnet20, SGD with a cosine over 30 epochs, flips and shifted crops."""
    return RunSpec(_trainable("resnet20"), "default")


def demo() -> RunSpec:
    """The embedded sample to about 90% in a few minutes on two CPU cores; `make demo` runs it."""
    return RunSpec(
        _trainable("resnet20"),
        "demo",
        data=DataSpec(path="fashion-sample"),
        augment=AugmentSpec(pad_crop=0.07),
        train=TrainSpec(epochs=10, batch_size=64),
    )


def tutorial() -> RunSpec:
    """The from-scratch path: the smallest network, Adam at 0.001, batches of 64, no augmentation."""
    return RunSpec(
        _trainable("tutorial"),
        "tutorial",
        data=DataSpec(path="fashion-sample"),
        augment=AugmentSpec(flip=False, pad_crop=0.0),
        train=TrainSpec(
            epochs=5,
            batch_size=64,
            optimizer="adam",
            lr=0.001,
            weight_decay=0.0,
            schedule="constant",
            warmup_epochs=0.0,
        ),
    )


def he2015() -> RunSpec:
    """The CIFAR recipe of He et al. 2015, section 4.2: 64,000 steps of 128, rate 0.1, a tenth at 1/2 and 3/4.

    182 epochs of 45,000 images are 63,882 steps. Published error with resnet20 on CIFAR-10: 8.75%; not yet run
    here in full. Differs: the mean is subtracted by channel, not by pixel.
    """
    return RunSpec(
        _trainable("resnet20"),
        "he2015",
        data=DataSpec(path="cifar10"),
        train=TrainSpec(
            epochs=182,
            batch_size=128,
            lr=0.1,
            nesterov=False,
            weight_decay=1e-4,
            decay_norms=True,
            schedule="multistep",
            warmup_epochs=0.0,
        ),
    )


def cifar10_94() -> RunSpec:
    """CIFAR-10 to about 94% on two CPU cores within minutes: a residual network with every trick of the trade.

    Whitened 4x4 patches, three basic blocks at 15, 7 and 3 pixels with max-pools in place of strides, Muon over filters
    of fixed norm, alternating flips, scored with and without test-time augmentation. After Jordan 2024
    (arXiv:2404.00498, and its successor with Muon), whose network has no skips. Measured: benchmarks/results.md.
    """
    stages = (StageSpec(1, 64), StageSpec(1, 256, 2), StageSpec(1, 256, 2))
    network = NetworkSpec(
        stages,
        shortcut="avg_pool",
        stem="whitening",
        stem_patch=4,
        stem_stride=2,
        norm_momentum=0.4,
        norm_scale=False,
        blur="max",
        head_pool="max",
        head_scale=1 / 16,
    )
    return RunSpec(
        network,
        "cifar10-94",
        data=DataSpec(path="cifar10", val_fraction=0.02),
        augment=AugmentSpec(pad_crop=1 / 16, pad_mode="reflect", flip_mode="alternate"),
        train=TrainSpec(
            epochs=8,
            batch_size=1000,
            optimizer="muon",
            lr=0.24,
            bias_lr=14.0,
            head_lr=11.0,
            momentum=0.85,
            muon_momentum=0.6,
            weight_decay=8e-4,
            fixed_norm=True,
            schedule="linear",
            warmup_epochs=0.0,
            label_smoothing=0.2,
            tta="flip_shift",
        ),
    )


RECIPES: dict[str, Callable[[], RunSpec]] = {
    "default": default,
    "demo": demo,
    "tutorial": tutorial,
    "he2015": he2015,
    "cifar10-94": cifar10_94,
}


def read_config(path: Path) -> dict[str, Any]:
    """A TOML file of settings: sections data, network, augment, train, and at the top `recipe`.

    The spec.toml of a run is such a file.

    Raises:
        InputError: no such file, not TOML, or an unknown section.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config file {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"config file {path} is not TOML: {error}") from error
    for key, value in table.items():
        if key != "recipe" and key not in SECTIONS:
            raise unknown(f"section of {path}", key, [*SECTIONS, "recipe"])
        if key in SECTIONS and not isinstance(value, dict):
            raise InputError(f"{key} in {path} must be a section: [{key}]")
    return table


def apply(spec: RunSpec, settings: Settings) -> RunSpec:
    """Lay settings over a spec. `network.name` of the zoo brings the whole network, then the rest is changed.

    Raises:
        InputError: an unknown section, field or network, or a value that a field refuses.
    """
    table = to_dict(spec)
    if not isinstance(settings, Mapping):
        raise InputError(f"settings must be a table of sections, got {settings!r}")
    for section, values in settings.items():
        if section not in SECTIONS:
            raise unknown("section", section, SECTIONS)
        if not isinstance(values, Mapping):
            raise InputError(f"{section} must be a table of fields, got {values!r}")
        name = values.get("name") if section == "network" else None
        if isinstance(name, str) and name in ZOO:
            table["network"] = dataclasses.asdict(_trainable(name))
        elif is_foreign(name):
            table["network"] = {}
        elif name is not None and "stages" not in values:
            raise unknown("network", str(name), ZOO)
        table[section] = {**table[section], **values}
    _check_foreign(table["network"])
    made = from_dict(table)
    named = ZOO.get(made.network.name)
    if isinstance(made.network, ForeignSpec):
        return made
    if named and made.network.stages != named.spec.stages:  # no longer the paper's
        made = dataclasses.replace(made, network=dataclasses.replace(made.network, name="custom"))
    return made


def _check_foreign(network: Mapping[str, Any]) -> None:
    """Refuse to change what only the library that made the network can."""
    extra = {*network} - {f.name for f in dataclasses.fields(ForeignSpec)}
    if is_foreign(network.get("name")) and extra:
        raise cannot_change(network["name"], extra)


def compose(
    data: str = "", *, recipe: str = "", config: Path | None = None, settings: Settings | None = None
) -> RunSpec:
    """One complete spec: recipe < config file < settings < data.

    Args:
        data: the data; "" leaves it to the layers below.
        recipe: a name; "" takes the config file's, else "default".
        config: a TOML file.
        settings: section -> field -> value.

    Raises:
        InputError: an unknown name, or a value that a field refuses.
    """
    table = read_config(config) if config else {}
    chosen = recipe or table.pop("recipe", "") or "default"
    table.pop("recipe", None)
    if not isinstance(chosen, str) or chosen not in RECIPES:
        raise unknown("recipe", str(chosen), RECIPES)
    spec = apply(apply(RECIPES[chosen](), table), settings or {})
    return apply(spec, {"data": {"path": data}}) if data else spec
