"""What a run is made from: one tree of frozen dataclasses, checked where it is made, exact in TOML.

RunSpec = data + network + augment + train. Every field name is unique over the tree, so a command-line flag is
the field's own name. There is no None: what is off is 0 or "", what is left to skipway is 0, -1 or "auto".
"""

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal, TypeVar, cast

from skipway.errors import InputError, unknown
from skipway.fields import check, option, sequence


@dataclass(frozen=True)
class StageSpec:
    """A row of blocks at one resolution; written `depth x width / stride`, as in `3x16` or `3x32/2`."""

    depth: int = option(MISSING, "number of blocks", low=1, high=4096)
    width: int = option(MISSING, "channels inside a block; a bottleneck gives out 4 times as many", low=1, high=65536)
    stride: int = option(1, "stride of the first block", low=1, high=2)

    def __post_init__(self) -> None:
        check(self, "network.stages")


@dataclass(frozen=True)
class NetworkSpec:
    """A residual network: stem, stages of blocks `y = relu(F(x) + S(x))`, linear head."""

    stages: tuple[StageSpec, ...] = option(MISSING, "blocks x width / stride, one a stage: 3x16 3x32/2")
    name: str = option("custom", "the zoo's name that the network started from")
    block: Literal["basic", "bottleneck"] = option("basic", "two 3x3 convolutions, or 1x1, 3x3, 1x1")
    shortcut: Literal["projection", "zero_pad", "none"] = option(
        "projection",
        "S(x) where the shape changes: 1x1 convolution (B), zero padding (A), or no skips at all (the plain twin)",
    )
    stem: Literal["auto", "cifar", "imagenet"] = option(
        "auto", "first layers: one 3x3, or 7x7 and max-pool; auto: by the image size (up to 64 pixels: cifar)"
    )
    stem_width: int = option(16, "channels of the stem", low=1, high=65536)
    stem_bias: bool = option(False, "the stem's convolution has a bias (the tutorial's network)")
    zero_init_last: bool = option(False, "each block starts as its shortcut: its last norm's weight is zero")
    in_channels: int = option(3, "channels of an image; training takes the data's", low=1)
    num_classes: int = option(10, "number of logits; training takes the data's", low=1)

    def __post_init__(self) -> None:
        stages = sequence("network.stages", self.stages)
        object.__setattr__(self, "stages", tuple(_stage(s, i) for i, s in enumerate(stages)))
        check(self, "network")
        if not self.stages:
            raise InputError("network.stages must hold at least one stage, such as 3x16")
        width = self.stem_width
        for index, stage in enumerate(self.stages):
            out = stage.width * (4 if self.block == "bottleneck" else 1)
            if self.shortcut == "zero_pad" and out < width:
                raise InputError(
                    f"network.stages[{index}] gives {out} channels after {width}: zero_pad can only add channels; "
                    "choose shortcut projection"
                )
            width = out

    @property
    def downsampling(self) -> int:
        """How many times smaller the last feature map is than the image: also the smallest image it can take."""
        total = {"imagenet": 4}.get(self.stem, 1)
        for stage in self.stages:
            total *= stage.stride
        return total


@dataclass(frozen=True)
class DataSpec:
    """Which images, at which size, split how."""

    path: str = option("", "a built-in data set's name, or a folder of images or parquet files")
    image_size: int = option(
        0,
        "pixels a side; 0: the images' own where all are alike and at most 64 pixels, else 224",
        low=0,
        high=4096,
    )
    val_fraction: float = option(
        0.1, "share of train held out where the data has no validation split", low=0.001, high=0.9
    )
    split_seed: int = option(0, "seed of that split", low=0, high=2**62)
    bad_files: Literal["skip", "stop"] = option("skip", "what to do about files that cannot be read")
    workers: int = option(-1, "processes that read image files; -1: as many as there are cores, 8 at most", low=-1)

    def __post_init__(self) -> None:
        check(self, "data")


@dataclass(frozen=True)
class AugmentSpec:
    """Changes to training images, drawn for each sample from (seed, epoch, index)."""

    flip: bool = option(True, "mirror half of the images")
    pad_crop: float = option(
        0.125, "pad by this share of the size, then crop at random: 0.125 is 4 of 32 pixels", low=0, high=0.5
    )
    randaugment: int = option(0, "RandAugment: operations an image; 0: off", low=0, high=8)
    randaugment_magnitude: int = option(9, "RandAugment: strength", low=0, high=30)
    mixup: float = option(0.0, "mixup: alpha of the Beta distribution; 0: off", low=0)
    cutmix: float = option(0.0, "cutmix: alpha of the Beta distribution; 0: off", low=0)
    erasing_rate: float = option(0.0, "share of images with a rectangle erased", low=0, high=1)

    def __post_init__(self) -> None:
        check(self, "augment")


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
    grad_clip: float = option(0.0, "largest norm of the gradient; 0: off", low=0)
    ema_decay: float = option(0.0, "average of the weights that is validated and kept; 0: off", low=0, high=0.99999)
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "bf16: autocast over fp32 weights; auto: bf16 where the hardware computes in it"
    )
    channels_last: bool = option(True, "memory format of images and weights")
    seed: int = option(0, "seed of weights, order and augmentation", low=0, high=2**62)
    device: str = option("auto", "cpu, cuda, cuda:1, mps; auto: the accelerator where there is one")
    weights: str = option("", "start from these weights: a run folder or its weights.safetensors")

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

    network: NetworkSpec
    recipe: str = ""
    data: DataSpec = field(default_factory=DataSpec)
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    train: TrainSpec = field(default_factory=TrainSpec)

    def __post_init__(self) -> None:
        for name, kind in SECTIONS.items():
            if not isinstance(getattr(self, name), kind):
                raise InputError(f"{name} must be a {kind.__name__}, got {getattr(self, name)!r}")
        if not isinstance(self.recipe, str):
            raise InputError(f"recipe must be text, got {self.recipe!r}")


SECTIONS: dict[str, type] = {
    "data": DataSpec,
    "network": NetworkSpec,
    "augment": AugmentSpec,
    "train": TrainSpec,
}


T = TypeVar("T")
_STAGE = re.compile(r"(\d+)x(\d+)(?:/(\d+))?")


def _stage(value: Any, index: int) -> StageSpec:
    """A StageSpec from itself, from a table, or from `3x32/2`."""
    where = f"network.stages[{index}]"
    if isinstance(value, StageSpec):
        return value
    if isinstance(value, Mapping):
        return _make(StageSpec, value, where)
    match = _STAGE.fullmatch(value) if isinstance(value, str) else None
    if not match:
        raise InputError(f"{where} must look like 3x32/2 (blocks x width / stride), got {value!r}")
    return StageSpec(int(match[1]), int(match[2]), int(match[3] or 1))


def _make(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """An instance of a spec class from a table."""
    if not isinstance(values, Mapping):
        raise InputError(f"{where} must be a table of fields, got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cast(Any, cls))}
    for key in values:
        if key not in fields:
            raise unknown(f"field of {where}", key, fields)
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
            raise unknown("section", key, [*SECTIONS, "recipe"])
    if "network" not in table:
        raise InputError("the section [network] is missing")
    sections = {k: _make(cls, table[k], k) for k, cls in SECTIONS.items() if k in table}
    return RunSpec(recipe=table.get("recipe", ""), **sections)


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
    """The fields in which two runs differ, as `train.epochs: 5 -> 10`; the recipe's name and workers change nothing."""
    rows = []
    for section in SECTIONS:
        a, b = getattr(old, section), getattr(new, section)
        for f in dataclasses.fields(a):
            x, y = getattr(a, f.name), getattr(b, f.name)
            if x != y and f.name != "workers":
                rows.append(f"{section}.{f.name}: {x} -> {y}")
    return rows
