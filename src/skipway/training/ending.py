"""How a run ends: with its test, pictures and summary, or stopped, to go on later."""

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from skipway.errors import InputError, ReadError
from skipway.evaluation.labels import LabelScores
from skipway.evaluation.metrics import Scores
from skipway.evaluation.pictures import curves, mistakes
from skipway.evaluation.task import ManyLabels, at_once, score_with_tta
from skipway.nn.foreign import build_any
from skipway.nn.weight_files import read_safetensors
from skipway.training.progress import Stops, View
from skipway.training.sharding import whole_on_first
from skipway.training.summary import circumstances, outcome, progress

if TYPE_CHECKING:
    from skipway.training.loop import Trainer


def finish(trainer: "Trainer", view: View, stop: Stops) -> None:
    """Thresholds where there are any; the test, once, with the best weights; pictures; summary.

    Raises:
        StopRequested: a stop was asked for; the same command comes here again.
    """
    run, splits, source, world = trainer.run, trainer.plan.splits, trainer.plan.source, trainer.world
    best = _best(trainer)
    if isinstance(trainer.task, ManyLabels):
        val, _ = _scored(trainer, best, splits.val, stop)
        assert isinstance(val, LabelScores)
        trainer.task = ManyLabels(val.best_thresholds())
        world.first_does(lambda: run.write_thresholds(val.best_thresholds()))
    test = averaged = None
    if splits.test is not None and trainer.hooks.score_test:
        try:
            test, averaged = _scored(trainer, best, splits.test, stop, tta=trainer.spec.train.tta)
        except ReadError:
            raise  # bad files are to stop the run
        except InputError as error:
            view.say(f"test split: {error}; test {trainer.task.title} is null")
    shown = test or _scored(trainer, best, splits.val, stop)[0]
    if not world.is_first:
        return
    draw_curves(trainer)
    title = f"{'test' if test else 'validation'} split of {trainer.spec.data.path}"
    run.write_bytes("mistakes.png", mistakes(source, shown, source.classes, title))
    scores = {"scores": {"split": "test" if test else "val", **shown.report(source.classes)}}
    summarise(trainer, "finished", outcome(test, trainer.task, averaged) | scores)
    _end_trackers(trainer, view)
    _tell(trainer, view, test, averaged)


def _tell(
    trainer: "Trainer", view: View, test: Scores | LabelScores | None, averaged: Scores | LabelScores | None
) -> None:
    """The last words."""
    folder, title, position = trainer.run.folder, trainer.task.title, trainer.position
    view.say(f"best epoch {position.best_epoch}: validation {title} {position.best_score:.2%}")
    if not trainer.hooks.score_test:
        view.say("the test split was left alone")
    elif trainer.plan.splits.test is None:
        view.say(f"no test split: test {title} is null")
    elif test:
        view.say(f"test {title} {test.main:.2%}", style="bold")
    if averaged:
        view.say(f"  with test-time augmentation ({trainer.spec.train.tta}): {averaged.main:.2%}")
    view.say(f"run folder {folder}")
    view.say(f"pictures   {folder / 'curves.png'}  {folder / 'mistakes.png'}")


def stopped(trainer: "Trainer", view: View, why: str) -> None:
    """Leave a loadable run behind."""
    state = whole_on_first(trainer.learner.kept.state_dict(), trainer.world)
    if not trainer.world.is_first:
        return
    if not trainer.position.best_epoch:
        facts = {"epoch": 0, f"val_{trainer.task.name}": None}
        trainer.run.write_weights(*trainer.run.weights_of(state, facts))
    draw_curves(trainer)
    summarise(trainer, "stopped")
    _end_trackers(trainer, view)
    at = dataclasses.replace(trainer.position, batches=trainer.records.batches).told()
    reason = f" ({why})" if why else ""
    view.say(f"stopped{reason} after {at} of {trainer.run.folder}; the same command goes on from there", style="yellow")


def draw_curves(trainer: "Trainer") -> None:
    """curves.png, once there is an epoch to draw."""
    metrics = trainer.run.metrics()
    if metrics:
        title, kept = f"{trainer.spec.network.name} on {trainer.spec.data.path}", trainer.spec.speed.keep_hard
        if kept < 1:
            title += f" (train: the {kept:.0%} of each batch with the largest loss)"
        try:
            picture = curves(metrics, trainer.run.steps(), title, trainer.task)
        except (KeyError, TypeError) as error:
            raise InputError(f"{trainer.run.folder / 'metrics.jsonl'} or steps.jsonl is damaged: {error!r}") from error
        trainer.run.write_bytes("curves.png", picture)


def summarise(trainer: "Trainer", status: str, facts: Mapping[str, Any] | None = None) -> None:
    """summary.json."""
    summary = {
        "status": status,
        **progress(trainer.position, trainer.task),
        **outcome(None, trainer.task),
        **(facts or {}),
        "num_parameters": sum(p.numel() for p in trainer.learner.network.parameters()),
        "time_s": round(sum(row["time_s"] for row in trainer.run.metrics()), 1),
        "saving_s": round(trainer.saving_s, 2),
        "processes": trainer.world.size,
        "bad_files": trainer.loader.bad,
        "chosen": trainer.notes,
        **circumstances(trainer.plan),
    }
    trainer.run.write_text("summary.json", json.dumps(summary, indent=1, allow_nan=False))


def _scored(
    trainer: "Trainer", network: nn.Module, indices: Tensor, stop: Stops, *, tta: str = "none"
) -> tuple[Scores | LabelScores, Scores | LabelScores | None]:
    """In fp32, as `evaluate` and the predictor compute."""
    size = at_once(trainer.preprocess.image_size, trainer.device)
    mine, gather = trainer.world.part_of_evaluation(indices)
    batches = stop.watch(trainer.loader.batches(mine, size), -(-len(mine) // size), trainer.world)
    return score_with_tta(network, batches, trainer.preprocess, task=trainer.task, tta=tta, gather=gather)


def _best(trainer: "Trainer") -> nn.Module:
    """The best network on validation, which the first process reads for all."""
    if trainer.world.size == 1:
        return trainer.learner.engine.place(trainer.run.network(trust_code=True))
    state = trainer.world.first_does(lambda: read_safetensors(trainer.run.folder / "weights.safetensors")[0])
    network = build_any(trainer.spec.network, image_size=trainer.spec.data.image_size)
    network.load_state_dict(state)
    return trainer.learner.engine.place(network.eval())


def _end_trackers(trainer: "Trainer", view: View) -> None:
    for note in trainer.trackers.finish(trainer.run.summary):
        view.say(f"  {note}", style="yellow")
