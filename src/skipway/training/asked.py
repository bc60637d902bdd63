"""From what a verb was told to the spec that is asked for, with its code trusted."""

from pathlib import Path

from skipway.compose import Settings, apply, compose
from skipway.spec import RunSpec
from skipway.trust import check_trust, trust


def asked_spec(
    data: str | Path | RunSpec,
    *,
    network: str | None = None,
    recipe: str = "",
    settings: Settings | None = None,
    trust_code: bool = False,
) -> RunSpec:
    """One spec, which may leave things open.

    Args:
        data: a built-in data set's name, a folder, ..., or a whole RunSpec (then the recipe does not count).
        network: a name; default: the recipe's.
        recipe: a name; default: "default".
        settings: section -> field -> value, laid over both.
        trust_code: run a python: network that was not named here, but by a RunSpec.

    Raises:
        InputError: an unknown name, a value that a field refuses, or code that nobody here has named.
    """
    own = dict((settings or {}).get("network", {}))
    spec = data if isinstance(data, RunSpec) else compose(str(data), recipe=recipe)
    spec = apply(spec, {**(settings or {}), "network": {**own, **({"name": network} if network else {})}})
    named_here = bool(network) or "name" in own
    check_trust(spec.network, trust_code=trust_code or named_here)
    trust(spec.network)
    return spec
