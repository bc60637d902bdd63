"""The verb: from what was asked to a trained run."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from skipway.network_spec import NetworkSpec
from skipway.recipes import Settings, apply, compose
from skipway.run import Run
from skipway.spec import RunSpec
from skipway.training.loop import Trainer
from skipway.training.place import claimed, find_place
from skipway.training.plan import make_plan
from skipway.trust import check_trust, trust


def train(
    data: str | Path | RunSpec,
    *,
    network: str | NetworkSpec | None = None,
    recipe: str = "",
    config: str | Path | None = None,
    settings: Settings | None = None,
    out: str | Path | None = None,
    console: Console | None = None,
    trust_code: bool = False,
) -> Run:
    """Train a residual network, or go on with an unfinished run of the same spec.

    Args:
        data: a built-in data set's name, a folder, or a complete RunSpec (then only `out` and `console` count).
        network: a zoo name, another library's (timm:NAME, torchvision:NAME, python:module:function) or a spec;
            default: the recipe's.
        recipe: a recipe's name; default: "default".
        config: a TOML file laid over the recipe.
        settings: section -> field -> value, laid over both: {"train": {"epochs": 5}}.
        out: the run folder; default: the newest unfinished run of an equal spec, else runs/<data>-<network>-<n>.
        console: where to show progress.
        trust_code: run a python: network that was not named here, but by `config` or a RunSpec.

    Returns:
        The run. `run.summary["status"]` is "finished", or "stopped" after Ctrl-C; the same call then goes on.

    Raises:
        InputError: data, network, settings or folder cannot be used; nothing was changed.

    Example:
        >>> run = skipway.train("photos", network="resnet18", settings={"train": {"epochs": 5}})  # doctest: +SKIP
    """
    if isinstance(data, RunSpec):
        asked = data
    else:
        asked = compose(str(data), recipe=recipe, config=Path(config) if config else None, settings=settings)
        changes = (settings or {}).get("network", {})
        if isinstance(network, NetworkSpec):
            asked = apply(replace(asked, network=network), {"network": changes})
        elif network:
            asked = apply(asked, {"network": {"name": network, **changes}})
        if network or "name" in changes:
            trust(asked.network)
    check_trust(asked.network, trust_code=trust_code)
    trust(asked.network)
    console = console or Console()
    with console.status(Text(f"reading {asked.data.path}")):
        plan = make_plan(asked)
    place = find_place(plan.spec, Path(out) if out else None)
    if place.finished:
        text = f"{place.folder} is finished{place.finished}; nothing to do. Choose another --out for a new run."
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return Run.open(place.folder)
    with claimed(place.folder):
        return Trainer(plan, place.folder, resume=place.resume).fit(console)
