"""From a recipe, a config file and flags to one spec: recipe < config file < flags."""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skipway.errors import InputError, unknown
from skipway.foreign_spec import ForeignSpec, cannot_change, is_foreign
from skipway.nn.zoo import ZOO
from skipway.recipes import RECIPES, trainable
from skipway.spec import SECTIONS, RunSpec, from_dict, to_dict

Settings = Mapping[str, Mapping[str, Any]]  # section -> field -> value


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
            table["network"] = dataclasses.asdict(trainable(name))
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
