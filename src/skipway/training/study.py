"""The study file of a search: which trials there were, with Optuna over SQLite; shared by any number of processes.

A process that works on a trial holds a lock on a file beside the runs, which the system lets go of when the process
dies, however it does. So a trial that runs without its lock is a dead one's: it counts as failed, and its run is gone
on with as another trial. Windows has no such locks: there a dead trial stays as it is.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from skipway.errors import InputError
from skipway.spec import RunSpec, differences, from_toml, to_toml
from skipway.training.search import WHERE, Searched, laid_over, value_in

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = "skipway"
ROUNDS = 3  # times that a trial may die with its process
WAIT_S = 120  # for another process's write


@dataclass(frozen=True)
class Order:
    """A search: what each of its processes must know.

    Args:
        spec: the settings that trials share; may leave things open.
        resolved: the same, nothing open: where the search begins.
        searched: the fields.
        own: fields of the network that every network searched takes over.
        file: the study.
        trials: how many in all.
        metric: the validation score, as in metrics.jsonl: accuracy or map.
        facts: what shows that the data are the same.
    """

    spec: RunSpec
    resolved: RunSpec
    searched: tuple[Searched, ...]
    own: Mapping[str, Any]
    file: Path
    trials: int
    metric: str
    facts: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Of the runs: the study's name without its ending."""
        return self.file.with_suffix("")

    def spec_of(self, values: Mapping[str, Any]) -> RunSpec:
        """The settings of a trial. Raises InputError."""
        return laid_over(self.spec, values, self.own)


@dataclass(frozen=True)
class Claimed:
    """A trial that this process works on: Optuna's, the name of its run folder, and the lock."""

    trial: Any
    run: str
    lock: IO[str]


def optuna() -> Any:
    """The library. Raises InputError where it is not installed."""
    try:
        import optuna as library
    except ImportError as error:
        raise InputError("searching settings needs optuna: pip install 'skipway[tune]'") from error
    library.logging.set_verbosity(library.logging.ERROR)
    return library


@contextlib.contextmanager
def opened(order: Order) -> Iterator[Any]:
    """The study, begun where there is none.

    Raises:
        InputError: the file is something else, or a study of other settings.
    """
    library = optuna()
    _check_file(order.file)
    order.folder.mkdir(parents=True, exist_ok=True)
    with _alone(order):
        fresh = not order.file.exists() or not order.file.stat().st_size
        engine = {"connect_args": {"timeout": WAIT_S}}
        storage = library.storages.RDBStorage(f"sqlite:///{order.file}", engine_kwargs=engine)
        try:
            study = library.create_study(
                storage=storage, study_name=NAME, direction="maximize", load_if_exists=True, pruner=_pruner(order)
            )
            _begin(study, order) if fresh or not study.user_attrs else _check_same(study, order)
        except BaseException:
            storage.engine.dispose()
            raise
    try:
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def claim(study: Any, order: Order) -> Claimed | None:
    """The next trial for this process; None where there are as many as were asked for."""
    library = optuna()
    waiting = library.trial.TrialState.WAITING
    with _alone(order):
        bury(study, order)
        known = last_of_each(study)
        if len(known) >= order.trials and not any(t.state == waiting for t in known):
            return None
        seed = (order.spec.train.seed * 1_000_003 + len(study.get_trials(deepcopy=False))) % 2**32
        startup = max(4, min(10, order.trials // 3))
        study.sampler = library.samplers.TPESampler(seed=seed, n_startup_trials=startup)
        trial = study.ask({field.name: field.distribution() for field in order.searched})
        run = trial.user_attrs.get("run", f"trial-{trial.number}")
        trial.set_user_attr("run", run)
        lock = (order.folder / f".{run}.lock").open("w")
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Claimed(trial, run, lock)


def settle(
    study: Any, order: Order, claimed: Claimed, score: float | None, reason: str, facts: Mapping[str, Any]
) -> None:
    """A trial is over: with its score, pruned for a reason of "pruned", or failed for any other.

    Args:
        study, order, claimed: which.
        score: the validation score.
        reason: where there is none; else "".
        facts: more to remember.
    """
    states = optuna().trial.TrialState
    with _alone(order):
        for key, value in {**facts, **({"reason": reason} if reason else {})}.items():
            claimed.trial.set_user_attr(key, value)
        if score is not None:
            study.tell(claimed.trial, score)
        else:
            study.tell(claimed.trial, state=states.PRUNED if reason == "pruned" else states.FAIL)
        _release(order, claimed)


def put_back(study: Any, order: Order, claimed: Claimed) -> None:
    """This process stops: the trial's run is there to be gone on with."""
    with _alone(order):
        frozen = next(t for t in study.get_trials(deepcopy=False) if t.number == claimed.trial.number)
        _again(study, frozen, deaths=frozen.user_attrs.get("deaths", 0))
        _release(order, claimed)


def bury(study: Any, order: Order) -> None:
    """Mark trials whose process died as failed, and have them done again, three times at most."""
    running = optuna().trial.TrialState.RUNNING
    for trial in study.get_trials(deepcopy=False, states=(running,)):
        run = trial.user_attrs.get("run", f"trial-{trial.number}")
        if _held(order.folder / f".{run}.lock"):
            continue
        deaths = trial.user_attrs.get("deaths", 0) + 1
        if deaths < ROUNDS:
            _again(study, trial, deaths=deaths)
        else:
            study.tell(trial.number, state=optuna().trial.TrialState.FAIL)


def last_of_each(study: Any) -> list[Any]:
    """The trials but those that others go on with, in order."""
    trials = study.get_trials(deepcopy=False)
    before = {trial.user_attrs.get("goes_on_from") for trial in trials}
    return [trial for trial in trials if trial.number not in before]


def _again(study: Any, trial: Any, *, deaths: int) -> None:
    """Let another trial with the values and the run of this one wait; then mark this one as failed."""
    library = optuna()
    run = trial.user_attrs.get("run", f"trial-{trial.number}")
    if trial in last_of_each(study):  # else a process died right here
        study.add_trial(
            library.trial.create_trial(
                state=library.trial.TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={"run": run, "deaths": deaths, "goes_on_from": trial.number},
            )
        )
    study.tell(trial.number, state=library.trial.TrialState.FAIL)


def _begin(study: Any, order: Order) -> None:
    """Write down what is searched; the settings as they are become the first trial, where they lie in the search."""
    study.set_user_attr("spec", to_toml(order.spec))
    study.set_user_attr("search", [field.text for field in order.searched])
    study.set_user_attr("metric", order.metric)
    study.set_user_attr("data", dict(order.facts))
    values = {field.name: value_in(order.resolved, field.name) for field in order.searched}
    inside = {f.name: values[f.name] for f in order.searched if values[f.name] is not None and f.has(values[f.name])}
    if inside:
        study.enqueue_trial(inside)


def _check_same(study: Any, order: Order) -> None:
    """Refuse a study of other settings, of another search, or of data that changed."""
    kept, other = study.user_attrs, "choose another --study"
    names = {".".join(WHERE[field.name]) for field in order.searched}
    search = [field.text for field in order.searched]
    if kept.get("search") != search:
        raise InputError(f"{order.file} searches {', '.join(kept.get('search', []))}, not {', '.join(search)}; {other}")
    changed = [d for d in differences(from_toml(kept["spec"]), order.spec) if d.split(":")[0] not in names]
    if changed:
        raise InputError(f"{order.file} holds a search with other settings ({'; '.join(changed[:4])}); {other}")
    if kept.get("data") != dict(order.facts) or kept.get("metric") != order.metric:
        raise InputError(f"the data in {order.spec.data.path} changed since {order.file} was begun; {other}")


def _check_file(file: Path) -> None:
    """Refuse a file that is no study of skipway's, which is only read for that."""
    if not file.exists() or not file.stat().st_size:
        return
    query = "select study_name from studies"
    try:
        with contextlib.closing(
            sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=WAIT_S)
        ) as base:
            names = [row[0] for row in base.execute(query)]
    except sqlite3.Error as error:
        raise InputError(f"{file} is not a study of skipway tune ({error}); name a new file") from error
    if names not in ([NAME], []):
        raise InputError(f"{file} holds studies of another program ({', '.join(map(str, names[:3]))}); name a new file")


def _pruner(order: Order) -> Any:
    """Median pruning once the warm-up is over; none where runs are of different lengths."""
    library, train = optuna(), order.resolved.train
    if any(field.name == "epochs" for field in order.searched):
        return library.pruners.NopPruner()
    return library.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=int(max(train.warmup_epochs, 0)) + 1)


@contextlib.contextmanager
def _alone(order: Order) -> Iterator[None]:
    """Hold the study for this process alone."""
    with (order.folder / ".study.lock").open("w") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _held(lock: Path) -> bool:
    """Whether a living process holds a lock."""
    if fcntl is None:
        return True
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _release(order: Order, claimed: Claimed) -> None:
    with contextlib.suppress(OSError):
        os.unlink(order.folder / f".{claimed.run}.lock")
    claimed.lock.close()
