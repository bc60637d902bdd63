"""summary.json: how a run stands, or how it ended."""

import os
import platform
from typing import Any

import torch

from skipway.errors import InputError
from skipway.evaluation.labels import LabelScores
from skipway.evaluation.metrics import Scores
from skipway.evaluation.task import Task
from skipway.run import Run
from skipway.training.checkpoint import Position
from skipway.training.facts import data_facts
from skipway.training.plan import Plan


def progress(position: Position, task: Task) -> dict[str, Any]:
    """Epochs done, and the validation scores of the best one."""
    best = position if position.best_epoch else None
    return {
        "epochs": position.epoch,
        "best_epoch": best.best_epoch if best else None,
        f"val_{task.name}": best.best_score if best else None,
        "val_loss": best.best_loss if best else None,
    }


def outcome(
    test: Scores | LabelScores | None, task: Task, averaged: Scores | LabelScores | None = None
) -> dict[str, Any]:
    """The test's main score and loss, null where there is no test; beside them those with test-time augmentation."""
    plain = {f"test_{task.name}": test.main if test else None, "test_loss": test.loss if test else None}
    return plain | ({f"test_{task.name}_tta": averaged.main, "test_loss_tta": averaged.loss} if averaged else {})


def circumstances(plan: Plan) -> dict[str, Any]:
    """How many images, which data, which machine."""
    splits = plan.splits
    return {
        "num_train": len(splits.train),
        "num_val": len(splits.val),
        "num_test": None if splits.test is None else len(splits.test),
        "data": data_facts(plan),
        "machine": {
            "device": str(plan.device),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        },
    }


def check_same_data(run: Run, plan: Plan) -> None:
    """Refuse to go on where the data are no longer those that the run began with. Raises InputError."""
    summary, facts = run.summary, data_facts(plan)
    if run.classes != plan.source.classes or summary.get("data", facts) != facts:
        raise InputError(
            f"the data in {plan.spec.data.path} changed since {run.folder} began (classes, or the number of "
            "images): bring them back, or choose another --out"
        )
