"""What stands in a run folder before the first checkpoint of a run, and what is written anew where one goes on."""

from typing import TYPE_CHECKING

from skipway.data.split import write_split
from skipway.evaluation.task import ManyLabels
from skipway.run import Run
from skipway.training.ending import summarise

if TYPE_CHECKING:
    from skipway.training.loop import Trainer


def create(trainer: "Trainer") -> None:
    """The run folder, up to the first checkpoint."""
    plan = trainer.plan
    Run.create(trainer.run.folder, trainer.spec, plan.source.classes, trainer.preprocess)
    trainer.run.write_bytes("split.csv", write_split(plan.source, plan.splits))
    if isinstance(trainer.task, ManyLabels):
        trainer.run.write_thresholds(trainer.task.thresholds)
    trainer.run.write_text("engine.json", trainer.learner.engine.to_json())
    summarise(trainer, "running")


def write_changed(trainer: "Trainer") -> None:
    """What may be another in a run that goes on; the spec last, by which a change is known."""
    trainer.run.write_text("engine.json", trainer.learner.engine.to_json())
    trainer.run.write_spec(trainer.spec)
