"""The verb: from what was asked to a trained run."""

import contextlib
import io
from pathlib import Path

from rich.console import Console
from rich.text import Text

from skipway.compose import Settings, apply
from skipway.errors import InputError
from skipway.foreign_spec import ForeignSpec
from skipway.network_spec import NetworkSpec
from skipway.nn.stem import STEMS
from skipway.run import Run
from skipway.spec import RunSpec
from skipway.training.asked import asked_spec
from skipway.training.loop import HOOKS, Hooks, Trainer
from skipway.training.machine import threads_put_back
from skipway.training.place import Place, claimed, find_place
from skipway.training.plan import Plan, make_plan
from skipway.training.start import NoWeights
from skipway.training.world import joined


def train(
    data: str | Path | RunSpec,
    *,
    network: str | NetworkSpec | ForeignSpec | None = None,
    recipe: str = "",
    config: str | Path | None = None,
    settings: Settings | None = None,
    out: str | Path | None = None,
    console: Console | None = None,
    trust_code: bool = False,
    hooks: Hooks = HOOKS,
) -> Run:
    """Train a residual network, or go on with an unfinished run of the same spec.

    Args:
        data: a built-in data set's name, a folder, or a complete RunSpec (then recipe and config do not count).
        network: a zoo name, another library's (timm:NAME, torchvision:NAME, python:module:function) or a spec;
            default: the recipe's.
        recipe: a recipe's name; default: "default".
        config: a TOML file laid over the recipe.
        settings: section -> field -> value, laid over both: {"train": {"epochs": 5}}.
        out: the run folder; default: the newest unfinished run of an equal spec, else runs/<data>-<network>-<n>.
        console: where to show progress.
        trust_code: run a python: network that was not named here, but by `config` or a RunSpec.
        hooks: what a search wants: a word after each epoch, the test split left alone.

    Returns:
        The run. `run.summary["status"]` is "finished", or "stopped" after Ctrl-C; the same call then goes on.

    Raises:
        InputError: data, network, settings or folder cannot be used; nothing was changed.

    Example:
        >>> run = skipway.train("photos", network="resnet18", settings={"train": {"epochs": 5}})  # doctest: +SKIP
    """
    asked = asked_spec(data, network=network, recipe=recipe, config=config, settings=settings, trust_code=trust_code)
    with joined(asked.safety.timeout_s) as world:
        console = (console or Console(emoji=False)) if world.is_first else Console(file=io.StringIO())
        with console.status(Text(f"reading {asked.data.path}")):
            plan = _plan(asked, Path(out) if out else None)
        place = world.first_does(lambda: find_place(plan.spec, Path(out) if out else None))
        if place.finished:
            return _finished(place, console)
        with contextlib.ExitStack() as stack, threads_put_back():
            before = world.first_does(lambda: stack.enter_context(claimed(place.folder)))
            # Once more, now that nobody else writes there.
            place = world.first_does(lambda: find_place(plan.spec, place.folder))
            if place.finished:
                return _finished(place, console)
            before = before if place.resume else None
            trainer = Trainer(plan, place.folder, console, before=before, hooks=hooks, world=world)
            trainer.notes += [f"changed since the run began: {row}" for row in place.changed]
            plan = trainer.plan  # without the weights that were given
            return trainer.fit()


def _finished(place: Place, console: Console) -> Run:
    text = f"{place.folder} is finished{place.finished}; nothing to do. Choose another --out for a new run."
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return Run(place.folder)


def resume(
    run: str | Path | Run,
    *,
    settings: Settings | None = None,
    console: Console | None = None,
    trust_code: bool = False,
) -> Run:
    """Go on with an unfinished run.

    Args:
        run: its folder.
        settings: what is to change: train.epochs, train.device, train.track, speed.micro_batch, data.workers,
            data.cache, and the section safety. Everything else stays as it began.
        console: where to show progress.
        trust_code: run a python: network that was not named here.

    Returns:
        The run; a finished one as it is.

    Raises:
        InputError: no run, no whole checkpoint, other data, or a setting that may not change; nothing was changed.

    Example:
        >>> skipway.resume("runs/photos-resnet18-1", settings={"train": {"epochs": 30}})  # doctest: +SKIP
    """
    run = run if isinstance(run, Run) else Run.open(run)
    return train(run.spec, settings=settings, out=run.folder, console=console, trust_code=trust_code)


def _plan(asked: RunSpec, out: Path | None) -> Plan:
    """The plan; a run that began from weights which cannot be had any more goes on without them."""
    try:
        return make_plan(asked)
    except NoWeights:
        open_stem = isinstance(asked.network, NetworkSpec) and asked.network.stem == "auto"
        for stem in STEMS if open_stem else ("",):  # the weights settled it
            with contextlib.suppress(InputError):
                spec = apply(asked, {"network": {"stem": stem}}) if stem else asked
                plan = make_plan(spec, open_given=False)
                place = find_place(plan.spec, out)
                if place.resume or place.finished:
                    return plan
        raise
