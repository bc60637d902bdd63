"""What a run is made from: one tree of frozen dataclasses, checked where it is made, exact in TOML.

RunSpec = data + network + augment + train. Every field name is unique over the tree, so a command-line flag is
the field's own name. There is no None: what is off is 0 or "", what is left to skipway is 0, -1 or "auto".
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal, TypeVar, cast

from skipway.data_spec import AugmentSpec, DataSpec
from skipway.errors import InputError, unknown
from skipway.fields import check, option, shown
from skipway.foreign_spec import ForeignSpec, is_foreign
from skipway.network_spec import NetworkSpec


@dataclass(frozen=True)
class TrainSpec:
    """How the weights are found."""

    epochs: int = option(30, "times through the training images", low=1)
    batch_size: int = option(
        0, "images a step; 0: 128, halved down to 16 at the least while an epoch has fewer than 16 steps", low=0
    )
    optimizer: Literal["sgd", "adamw", "adam"] = option("sgd", "update rule; sgd has momentum")
    lr: float = option(0.0, "peak learning rate; 0: sgd 0.1, adam and adamw 0.001, times batch size / 128", low=0)
    momentum: float = option(0.9, "momentum of sgd", low=0, high=0.9999)
    nesterov: bool = option(True, "Nesterov's form of the momentum")
    weight_decay: float = option(5e-4, "pull of the weights to zero", low=0)
    decay_norms: bool = option(False, "decay norms and biases too")
    schedule: Literal["cosine", "multistep", "onecycle", "constant"] = option("cosine", "the rate over the run")
    warmup_epochs: float = option(-1.0, "linear rise of the rate; -1: 5% of the run, 30% for onecycle", low=-1)
    milestones: tuple[float, ...] = option((0.5, 0.75), "multistep: shares of the run after which the rate drops")
    gamma: float = option(0.1, "multistep: factor of each drop", low=0, high=1)
    label_smoothing: float = option(0.0, "share of the target spread over all classes", low=0, high=0.999)
    loss: Literal["auto", "cross_entropy", "bce", "focal"] = option(
        "auto", "auto: cross-entropy for one label an image, binary cross-entropy for several; focal: hard ones count"
    )
    focal_gamma: float = option(2.0, "focal loss: how much easy images count less", low=0, high=10)
    class_weights: Literal["none", "balanced", "sqrt"] = option(
        "none", "weight of a class in the loss: none, inverse to its images, or the root of that"
    )
    sampler: Literal["shuffle", "balanced", "sqrt"] = option(
        "shuffle", "which images an epoch shows: each once, classes equally often, or by the root of their sizes"
    )
    grad_clip: float = option(0.0, "largest norm of the gradient; 0: off", low=0)
    ema_decay: float = option(0.0, "average of the weights that is validated and kept; 0: off", low=0, high=0.99999)
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "bf16: autocast over fp32 weights; auto: bf16 where the hardware computes in it"
    )
    channels_last: bool = option(True, "memory format of images and weights")
    seed: int = option(0, "seed of weights, order and augmentation", low=0, high=2**62)
    device: str = option("auto", "cpu, cuda, cuda:1, mps; auto: the accelerator where there is one")
    weights: str = option(
        "",
        "start from these weights: a run, a file (.safetensors, .pth, .th; torchvision's, timm's and the CIFAR "
        "repositories' names too), torchvision:IMAGENET1K_V2 or timm:resnet50.a1_in1k",
    )
    weight_channels: Literal["sum", "average"] = option(
        "sum", "filters of weights for another number of input channels: summed over theirs, or averaged"
    )
    freeze: str = option(
        "",
        "keep weights and batch statistics as they are: backbone (all but the head), or up to a part, such as stage2",
    )
    layer_decay: float = option(
        1.0, "learning rate of each block as a share of that of the next one; the head's is whole", low=0.01, high=1
    )

    def __post_init__(self) -> None:
        check(self, "train")
        if any(not 0 < m < 1 for m in self.milestones):
            raise InputError(f"train.milestones must lie between 0 and 1 (shares of the run), got {self.milestones}")


@dataclass(frozen=True)
class RunSpec:
    """Everything a run is made from.

    Example:
        >>> spec = RunSpec(network=NetworkSpec(stages=(StageSpec(3, 16),)))
        >>> from_toml(to_toml(spec)) == spec
        True
    """

    network: NetworkSpec | ForeignSpec
    recipe: str = ""
    data: DataSpec = field(default_factory=DataSpec)
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    train: TrainSpec = field(default_factory=TrainSpec)

    def __post_init__(self) -> None:
        for name, kind in SECTIONS.items():
            allowed = (NetworkSpec, ForeignSpec) if name == "network" else kind
            if not isinstance(getattr(self, name), allowed):
                raise InputError(f"{name} must be a {kind.__name__}, got {shown(getattr(self, name))}")
        if not isinstance(self.recipe, str):
            raise InputError(f"recipe must be text, got {shown(self.recipe)}")


SECTIONS: dict[str, type] = {
    "data": DataSpec,
    "network": NetworkSpec,
    "augment": AugmentSpec,
    "train": TrainSpec,
}


T = TypeVar("T")


def _make(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """An instance of a spec class from a table."""
    if not isinstance(values, Mapping):
        raise InputError(f"{where} must be a table of fields, got {shown(values)}")
    fields = {f.name: f for f in dataclasses.fields(cast(Any, cls))}
    for key in values:
        if key not in fields:
            raise unknown(f"field of {where}", str(key), fields)
    for name, f in fields.items():
        if name not in values and f.default is MISSING:
            raise InputError(f"{where}.{name} is missing")
    return cls(**values)


def to_dict(spec: RunSpec) -> dict[str, Any]:
    """The spec as plain tables: section -> field -> value."""
    return dataclasses.asdict(spec)


def from_dict(table: Mapping[str, Any]) -> RunSpec:
    """The inverse of to_dict; sections may be left out, except the network.

    Raises:
        InputError: an unknown section or field, or a value that a field refuses.
    """
    for key in table:
        if key not in SECTIONS and key != "recipe":
            raise unknown("section", str(key), [*SECTIONS, "recipe"])
    if "network" not in table:
        raise InputError("the section [network] is missing")
    kinds: dict[str, Any] = SECTIONS | ({"network": ForeignSpec} if _names_foreign(table["network"]) else {})
    sections = {k: _make(cls, table[k], k) for k, cls in kinds.items() if k in table}
    return RunSpec(recipe=table.get("recipe", ""), **sections)


def _names_foreign(network: Any) -> bool:
    return isinstance(network, Mapping) and "stages" not in network and is_foreign(network.get("name"))


def to_toml(spec: RunSpec) -> str:
    """The spec as TOML; `from_toml` gives back an equal one."""
    import tomli_w

    return tomli_w.dumps(to_dict(spec))


def from_toml(text: str) -> RunSpec:
    """A spec from TOML.

    Raises:
        InputError: not TOML, or not a spec.
    """
    try:
        return from_dict(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"not a TOML file: {error}") from error


def differences(old: RunSpec, new: RunSpec) -> list[str]:
    """The fields in which two runs differ, as `train.epochs: 5 -> 10`; recipe's name, workers, cache do not count."""
    rows = []
    for section in SECTIONS:
        a, b = getattr(old, section), getattr(new, section)
        fields = dataclasses.fields(a) if type(a) is type(b) else dataclasses.fields(ForeignSpec)
        for f in fields:
            x, y = getattr(a, f.name), getattr(b, f.name)
            if x != y and f.name not in ("workers", "cache"):
                rows.append(f"{section}.{f.name}: {x} -> {y}")
    return rows
