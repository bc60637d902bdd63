"""The command-line flags of a run, generated from the spec: one for every field, named like it."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from cyclopts import Group, Parameter

from skipway.spec import SECTIONS

PANELS = {
    "data": "Data",
    "network": "Network",
    "augment": "Augmentation",
    "train": "Training",
    "speed": "Speed",
    "safety": "Safety",
}
BY_NAME = {("data", "path"), ("network", "name")}  # given as DATA and --network
FROM_DATA = {("network", "num_classes"), ("network", "in_channels")}  # training takes the data's


def _flags(sections: Iterable[str], without: set[tuple[str, str]]) -> type:
    """Every other field of these sections as an optional flag: what is not given stays None and changes nothing."""
    fields = []
    for section in sections:
        cls = SECTIONS[section]
        group, hints = Group(PANELS[section]), get_type_hints(cls)
        for f in dataclasses.fields(cls):
            if (section, f.name) in without:
                continue
            kind = hints[f.name]
            listed = get_origin(kind) is tuple
            if listed:
                kind = list[float] if get_args(kind)[0] is float else list[str]
            help_text = f"{f.metadata['help']}{_shown_default(f.default) if section != 'network' else ''}"
            negative = None if kind is bool else ""
            parameter = Parameter(help=help_text, group=group, consume_multiple=listed, negative=negative)
            fields.append((f.name, Annotated[kind | None, parameter], None))  # pyrefly: ignore[invalid-annotation]
    made = dataclasses.make_dataclass("Flags", fields, frozen=True)
    made.__module__ = __name__
    return Parameter(name="*")(made)


def _shown_default(value: Any) -> str:
    shown = value is not dataclasses.MISSING and value != "" and not isinstance(value, bool)
    text = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return f" [default: {text}]" if shown else ""


Flags = _flags(SECTIONS, BY_NAME | FROM_DATA)
NetworkFlags = _flags(["network"], BY_NAME)
DataFlags = _flags(["data"], BY_NAME)
ResumeFlags = _flags(
    ["train", "data", "speed", "safety"],
    {
        (section, f.name)
        for section in ("train", "data", "speed")
        for f in dataclasses.fields(SECTIONS[section])
        if f.name not in ("epochs", "device", "track", "workers", "cache", "micro_batch")
    },
)
PreviewFlags = _flags(["data", "augment"], BY_NAME)


TrustCode = Annotated[bool, Parameter(negative="", help="Run the code of a python: network that another's file names.")]


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a run is made from besides its data and the settings one by one."""

    network: Annotated[
        str | None,
        Parameter(
            help="A name from `skipway networks`, timm:NAME, torchvision:NAME or python:module:function. "
            "Default: the recipe's."
        ),
    ] = None
    recipe: Annotated[str, Parameter(help="A name from `skipway recipes`. Default: default.", show_default=False)] = ""
    config: Annotated[Path | None, Parameter(help="A TOML file of settings; the spec.toml of another run will do.")] = (
        None
    )
    trust_code: TrustCode = False


WANTED = Wanted()


def settings_of(flags: Any, network: str | None) -> dict[str, dict[str, Any]]:
    """The flags that were given, as section -> field -> value."""
    settings: dict[str, dict[str, Any]] = {"network": {"name": network}} if network else {}
    for section, cls in SECTIONS.items():
        for f in dataclasses.fields(cls):
            value = getattr(flags, f.name, None)
            if value is not None:
                settings.setdefault(section, {})[f.name] = value
    return settings
