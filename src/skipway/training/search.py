"""What is searched: fields of the spec with their ranges or choices, read from `lr=1e-3..1:log`."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, get_args, get_origin, get_type_hints

from skipway.compose import apply
from skipway.errors import InputError, unknown
from skipway.fields import check
from skipway.spec import SECTIONS, RunSpec

TAKEN = {("data", "path"), ("network", "name"), ("network", "num_classes"), ("network", "in_channels")}
WHERE = {f.name: (s, f.name) for s, c in SECTIONS.items() for f in dataclasses.fields(c) if (s, f.name) not in TAKEN}
WHERE["network"] = ("network", "name")
FORM = "NAME=LOW..HIGH, NAME=LOW..HIGH:log, NAME=LOW..HIGH:step8 or NAME=ONE,OTHER"
_RANGE = re.compile(r"(?P<low>[^,:]+?)\.\.(?P<high>[^,:]+?)(?P<ways>(:[^:]*)*)")


@dataclass(frozen=True)
class Searched:
    """A field of the spec, and where in it to look.

    Args:
        name: its flag, with underscores.
        choices: the values; () for a range.
        low, high: of a range, both included.
        step: between its values; 0: any (whole numbers: 1).
        log: whether it is even in the logarithm.
    """

    name: str
    choices: tuple[str | int | float | bool, ...] = ()
    low: float = 0
    high: float = 0
    step: float = 0
    log: bool = False

    @property
    def text(self) -> str:
        """As a user writes it."""
        if self.choices:
            return f"{self.name}={','.join(str(c).lower() if isinstance(c, bool) else str(c) for c in self.choices)}"
        way = ":log" if self.log else f":step{self.step!r}" if self.step else ""
        return f"{self.name}={self.low!r}..{self.high!r}{way}"

    def distribution(self) -> Any:
        """Optuna's word for it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if isinstance(self.low, int):
            return IntDistribution(self.low, int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step or None)

    def has(self, value: Any) -> bool:
        """Whether a value is one that the search may come upon."""
        if self.choices:
            return value in self.choices
        if isinstance(value, (str, bool)) or not self.low <= value <= self.high:
            return False
        return not self.step or abs((value - self.low) / self.step - round((value - self.low) / self.step)) < 1e-9


def parse(texts: Sequence[str], asked: RunSpec) -> tuple[Searched, ...]:
    """Read what is to be searched.

    Args:
        texts: `optimizer=sgd,adamw` or `batch_size=32..256:step32`, one a field.
        asked: the settings otherwise.

    Raises:
        InputError: an unknown field, or values that it does not take.
    """
    found: dict[str, Searched] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not equals or not values.strip():
            raise InputError(f"--search takes {FORM}; got {text!r}")
        if name not in WHERE:
            raise unknown("field to search", name, WHERE)
        if name in found:
            raise InputError(f"--search names {name} twice")
        found[name] = _read(name, values.strip(), asked)
    return tuple(found.values())


def usual(spec: RunSpec) -> tuple[Searched, ...]:
    """What is searched where nothing is named: the rate, the decay, label smoothing, around a resolved spec's."""
    decay = (1e-3, 0.3) if spec.train.optimizer in ("adamw", "lamb") else (1e-5, 1e-2)
    return (
        Searched("lr", low=spec.train.lr / 10, high=spec.train.lr * 10, log=True),
        Searched("weight_decay", low=decay[0], high=decay[1], log=True),
        Searched("label_smoothing", low=0.0, high=0.2),
    )


def laid_over(spec: RunSpec, values: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> RunSpec:
    """The spec with other values in some fields.

    Args:
        spec: the settings otherwise.
        values: name -> value.
        own: fields of the network that another network takes over, where networks are searched.

    Raises:
        InputError: a value that a field refuses, or values that do not go together.
    """
    settings: dict[str, dict[str, Any]] = {"network": dict(own or {})} if "network" in values else {}
    for name, value in values.items():
        section, field = WHERE[name]
        settings.setdefault(section, {})[field] = value
    return apply(spec, settings)


def value_in(spec: RunSpec, name: str) -> Any:
    """What a spec says for a name; None where its network has no such field."""
    section, field = WHERE[name]
    return getattr(getattr(spec, section), field, None)


def _read(name: str, text: str, asked: RunSpec) -> Searched:
    section, field = WHERE[name]
    kind = get_type_hints(SECTIONS[section])[field]
    if get_origin(kind) is tuple:
        raise InputError(f"{section}.{field} is a list, which cannot be searched")
    match = _RANGE.fullmatch(text)
    if match and kind in (int, float):
        made = _range(name, kind, match)
        values: tuple[Any, ...] = (made.low, made.high)
    elif match and name != "network" and (get_origin(kind) is Literal or kind is bool):
        raise InputError(f"{section}.{field} has no range; name its values: --search {name}={_known(kind)}")
    else:
        values = tuple(_value(f"{section}.{field}", kind, part.strip()) for part in text.split(","))
        made = Searched(name, values)
        if len(set(values)) < len(values):
            raise InputError(f"--search {name} names a value twice: {text}")
        if len(values) == 1:
            raise InputError(f"--search {name} has one value only; --{name.replace('_', '-')} {text} sets it")
    for value in values:
        _check_value(section, field, value, asked)
    return made


def _known(kind: Any) -> str:
    return "true,false" if kind is bool else ",".join(get_args(kind))


def _range(name: str, kind: type, match: re.Match[str]) -> Searched:
    """LOW..HIGH, with :log or :stepN behind it."""
    label = ".".join(WHERE[name])
    low, high = (_value(label, kind, match[side].strip()) for side in ("low", "high"))
    log, step = False, 0
    for way in match["ways"].split(":")[1:]:
        if way == "log":
            log = True
        elif way.startswith("step"):
            step = _value(f"the step of {label}", kind, way.removeprefix("step").lstrip("="))
        else:
            raise unknown(f"way of searching {name}", way, ["log", "step8"])
    if not low < high:
        raise InputError(f"--search {name}: a range goes from the lower to the higher, got {match[0]}")
    if log and (low <= 0 or step):
        wrong = "begins above 0" if low <= 0 else "has no step"
        raise InputError(f"--search {name}: a :log range {wrong}, got {match[0]}")
    if step < 0 or step > high - low or (":step" in match["ways"] and not step):
        raise InputError(f"--search {name}: the step must be above 0 and fit into the range, got {match[0]}")
    if step:  # the last value that it reaches, in decimals as they are written
        first, each = Decimal(str(low)), Decimal(str(step))
        high = kind(first + (Decimal(str(high)) - first) // each * each)
    return Searched(name, (), low, high, step, log)


def _value(label: str, kind: Any, text: str) -> Any:
    """A value of a field's type. Raises InputError."""
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"{label} must be true or false, got {text!r}")
        return text.lower() == "true"
    if kind not in (int, float):
        return text
    try:
        exact = Decimal(text)
        if kind is float or exact == int(exact):
            return kind(exact)
    except (InvalidOperation, ValueError, OverflowError):
        pass
    raise InputError(f"{label} must be {'a whole number' if kind is int else 'a number'}, got {text!r}")


def _check_value(section: str, field: str, value: Any, asked: RunSpec) -> None:
    """The field's own bounds, whatever the others say. Raises InputError."""
    if (section, field) == ("network", "name"):
        apply(asked, {"network": {"name": value}})
        return
    cls = SECTIONS[section]
    if not hasattr(getattr(asked, section), field):
        apply(asked, {section: {field: value}})  # which says why
    spec = next(f for f in dataclasses.fields(cls) if f.name == field)
    one = (field, get_type_hints(cls)[field], dataclasses.field(metadata=spec.metadata))
    check(dataclasses.make_dataclass("One", [one])(value), section)
