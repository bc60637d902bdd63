"""From what a verb was told to the spec that is asked for, with its code trusted."""

from dataclasses import replace
from pathlib import Path

from skipway.compose import Settings, apply, compose
from skipway.foreign_spec import ForeignSpec
from skipway.network_spec import NetworkSpec
from skipway.spec import RunSpec
from skipway.trust import check_trust, trust


def asked_spec(
    data: str | Path | RunSpec,
    *,
    network: str | NetworkSpec | ForeignSpec | None = None,
    recipe: str = "",
    config: str | Path | None = None,
    settings: Settings | None = None,
    trust_code: bool = False,
) -> RunSpec:
    """One spec, which may leave things open: recipe < config file < network < settings.

    Args:
        data: a built-in data set's name, a folder, ..., or a whole RunSpec (then recipe and config do not count).
        network: a name or a spec; default: the recipe's.
        recipe: a name; default: the config file's, else "default".
        config: a TOML file of settings.
        settings: section -> field -> value.
        trust_code: run a python: network that was not named here, but by `config` or a RunSpec.

    Raises:
        InputError: an unknown name, a value that a field refuses, or code that nobody here has named.
    """
    settings = settings or {}
    own = settings.get("network", {})
    spec = data
    if not isinstance(spec, RunSpec):
        spec = compose(str(data), recipe=recipe, config=Path(config) if config else None)
    if isinstance(network, (NetworkSpec, ForeignSpec)):
        spec = replace(spec, network=network)
    elif network:
        settings = {**settings, "network": {"name": network, **own}}
    spec = apply(spec, settings)
    check_trust(spec.network, trust_code=trust_code or bool(network) or "name" in own)
    trust(spec.network)
    return spec
