"""What a run is made from: one tree of frozen dataclasses, checked where it is made, exact in TOML.

RunSpec = data + network + augment + train + speed + safety. Every field name is unique over the tree, so a command-line
flag is the field's own name. There is no None: what is off is 0 or "", what is left to skipway is 0, -1 or "auto".
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, TypeVar, cast

from skipway.data_spec import AugmentSpec, DataSpec
from skipway.errors import InputError, unknown
from skipway.fields import shown
from skipway.foreign_spec import ForeignSpec, is_foreign
from skipway.network_spec import NetworkSpec
from skipway.safety_spec import SafetySpec
from skipway.speed_spec import SpeedSpec
from skipway.train_spec import TrainSpec


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
    speed: SpeedSpec = field(default_factory=SpeedSpec)
    safety: SafetySpec = field(default_factory=SafetySpec)

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
    "speed": SpeedSpec,
    "safety": SafetySpec,
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
    """The fields in which two runs differ, as `train.epochs: 5 -> 10`.

    The recipe's name, workers, cache and the section safety do not count: they do not change what is computed.
    """
    rows = []
    for section in SECTIONS:
        a, b = getattr(old, section), getattr(new, section)
        fields = dataclasses.fields(a) if type(a) is type(b) else dataclasses.fields(ForeignSpec)
        for f in fields:
            x, y = getattr(a, f.name), getattr(b, f.name)
            if x != y and section != "safety" and f.name not in ("workers", "cache"):
                rows.append(f"{section}.{f.name}: {x} -> {y}")
    return rows
