"""The training loop: one straight way from a spec to a run folder.

    plan -> run folder -> epochs of (steps, validation, checkpoint) -> best weights -> test, pictures, summary

Best is chosen on validation; the test split is touched once, at the end.
"""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from skipway.data.loader import Batch
from skipway.data.sampler import make_sampler
from skipway.data.source import is_multilabel
from skipway.data.split import write_split
from skipway.errors import InputError, ReadError, for_example
from skipway.evaluation.labels import LabelScores
from skipway.evaluation.metrics import Scores
from skipway.evaluation.pictures import curves, mistakes
from skipway.evaluation.task import ManyLabels, OneLabel, Task, score, score_with_tta
from skipway.run import Run
from skipway.training.assemble import assemble
from skipway.training.checkpoint import Position, load_last, save_last
from skipway.training.facts import bad_files_note
from skipway.training.plan import Plan
from skipway.training.progress import StopRequested, StopSignals, View
from skipway.training.step import Update
from skipway.training.summary import check_same_data, circumstances, outcome, progress
from skipway.training.trackers import need_trackers, open_trackers

VAL_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What a search wants of each of its runs.

    Args:
        on_epoch: told each row of metrics.jsonl; StopRequested out of it ends the run cleanly.
        score_test: whether the test split is scored at the end.
    """

    on_epoch: Callable[[dict[str, Any]], None] | None = None
    score_test: bool = True


HOOKS = Hooks()


class Trainer:
    """Everything one run of the loop holds: data, network, optimizer, average, position.

    Args:
        plan: what to do.
        folder: the run folder.
        console: where to show progress.
        resume: whether it holds a run to go on with.
        hooks: what a search wants.
    """

    def __init__(self, plan: Plan, folder: Path, console: Console, *, resume: bool, hooks: Hooks = HOOKS):
        self.plan = dataclasses.replace(plan, given=None)  # given weights are not kept beside the network's
        self.spec, self.device, self.console, self.hooks = plan.spec, plan.device, console, hooks
        spec = self.spec
        need_trackers(spec.train.track)
        parts = assemble(plan, console, begun=Run.open(folder) if resume else None)
        self.train_loader, self.loader, self.notes = parts.train_loader, parts.loader, parts.notes
        self.preprocess, self.augment, self.learner = parts.preprocess, parts.augment, parts.learner
        labels, num_classes = plan.source.labels, len(plan.source.classes)
        self.task: Task = OneLabel(spec.train.loss)
        if is_multilabel(plan.source):
            self.task = ManyLabels((0.5,) * num_classes)  # until the end, when validation chooses
        self.sampler = make_sampler(plan.splits.train, labels, spec.train.sampler, seed=spec.train.seed)
        self.position = Position()
        if resume:
            self.run = Run.open(folder)
            check_same_data(self.run, plan)
            self.position = load_last(self.run, self.learner)
            self._forget_after(self.position)
        else:
            self.run = Run.create(folder, spec, plan.source.classes, self.preprocess)
            self.run.write_bytes("split.csv", write_split(plan.source, plan.splits))
            if isinstance(self.task, ManyLabels):
                self.run.write_thresholds(self.task.thresholds)
            self.run.write_text("engine.json", self.learner.engine.to_json())
            self._summarise("running", {})
            save_last(self.run, self.position, self.learner)
        self.trackers, failed = open_trackers(spec.train.track, self.run, resume=resume)
        self.notes += failed

    def fit(self) -> Run:
        """All epochs that are left, then the end."""
        spec = self.spec
        parameters = sum(p.numel() for p in self.learner.network.parameters())
        title = f"{spec.network.name} ({parameters:,} parameters) on {spec.data.path} -> {self.run.folder}"
        notes = self.notes + bad_files_note(self.loader.bad, spec.data.bad_files)
        if self.position.epoch:
            notes.append(f"going on after epoch {self.position.epoch}")
        view = View(
            title,
            epochs=spec.train.epochs,
            steps=self.plan.steps_per_epoch,
            notes=notes,
            done=self.position.epoch,
            console=self.console,
            task=self.task,
        )
        told = set(self.loader.bad)
        with contextlib.closing(self.trackers), StopSignals() as stop:
            try:
                with view:
                    for epoch in range(self.position.epoch + 1, spec.train.epochs + 1):
                        self._epoch(epoch, view, stop)
                        new = {name: why for name, why in self.loader.bad.items() if name not in told}
                        told |= set(new)
                        for note in bad_files_note(new, spec.data.bad_files):
                            view.say(f"  {note}", style="yellow")
                        if self.hooks.on_epoch:
                            self.hooks.on_epoch(self.run.metrics()[-1])
            except StopRequested:
                self._stop(view)
                return self.run
            self._finish(view)
        return self.run

    def _epoch(self, epoch: int, view: View, stop: StopSignals) -> None:
        """One epoch: steps, validation, files."""
        view.start_epoch(epoch)
        started = time.perf_counter()
        losses, lrs, right, seen = self._steps(epoch, view, stop)
        step_losses = torch.stack(losses).tolist()  # which waits for the device
        seconds = time.perf_counter() - started
        batches = self.loader.batches(self.plan.splits.val, VAL_BATCH)
        bf16 = self.spec.train.precision == "bf16"
        scores = score(self.learner.kept, batches, self.preprocess, task=self.task, bf16=bf16)
        row = {
            "epoch": epoch,
            "train_loss": sum(step_losses) / len(step_losses),
            f"train_{self.task.train_name}": right.item() / seen,
            "val_loss": scores.loss,
            f"val_{self.task.name}": scores.main,
            "lr": lrs[-1],
            "images_per_s": round(seen / seconds, 1),
            "time_s": round(time.perf_counter() - started, 3),
        }
        if not all(math.isfinite(loss) for loss in (*step_losses, scores.loss)):
            kept = f"; {self.run.folder} keeps the best weights until then" if self.position.best_epoch else ""
            raise InputError(
                f"the loss is no longer a finite number in epoch {epoch}{kept}. "
                "Try a lower --lr, --grad-clip 1, or --precision fp32, with another --out"
            )
        old = self.position
        is_best = (scores.main, -scores.loss) > (old.best_score, -old.best_loss)
        best = (epoch, scores.main, scores.loss) if is_best else (old.best_epoch, old.best_score, old.best_loss)
        self.position = Position(epoch, *best)
        first = (epoch - 1) * self.plan.steps_per_epoch
        rows = [
            {"epoch": epoch, "step": first + i, "loss": loss, "lr": lr}
            for i, (loss, lr) in enumerate(zip(step_losses, lrs, strict=True), 1)
        ]
        self.run.append_lines("steps.jsonl", rows)
        self.run.append_lines("metrics.jsonl", [row])
        if is_best:
            self.run.save_weights(
                self.learner.kept.state_dict(), {"epoch": epoch, f"val_{self.task.name}": scores.main}
            )
        save_last(self.run, self.position, self.learner)
        for note in self.trackers.epoch(rows, row):
            view.say(f"  {note}", style="yellow")
        view.end_epoch(row, self.position.best_score, is_best=is_best)

    def _steps(self, epoch: int, view: View, stop: StopSignals) -> tuple[list[Tensor], list[float], Tensor, int]:
        """All steps of an epoch: their losses, their rates, and how many of the images seen were right."""
        batch_size, per_epoch = self.spec.train.batch_size, self.plan.steps_per_epoch
        order = self.sampler.epoch(epoch)
        losses: list[Tensor] = []
        lrs: list[float] = []
        right, seen = torch.zeros((), device=self.device), 0
        started = time.perf_counter()
        for batch in self.train_loader.batches(order[: per_epoch * batch_size], batch_size):
            stop.check()
            if len(batch.labels) == 1 < batch_size:
                continue  # all the others could not be read, and batch norm needs two
            made = self._step(batch, epoch, (epoch - 1) * per_epoch + len(losses))
            losses.append(made.loss)
            lrs.append(made.lr)
            right = right + made.right
            seen += made.seen
            view.step(made.loss, seen / (time.perf_counter() - started))
        stop.check()
        if not losses:
            raise InputError(f"none of the training images can be read{for_example(self.train_loader.bad)}")
        return losses, lrs, right, seen

    def _step(self, batch: Batch, epoch: int, step: int) -> Update:
        return self.learner.update(batch, epoch, step, augment=self.augment, preprocess=self.preprocess)

    def _forget_after(self, position: Position) -> None:
        """Drop records of an epoch that did not reach its checkpoint."""
        for name, rows in (("metrics.jsonl", self.run.metrics()), ("steps.jsonl", self.run.steps())):
            self.run.write_lines(name, [row for row in rows if row["epoch"] <= position.epoch])

    def _stop(self, view: View) -> None:
        """Leave a loadable run behind."""
        if not self.position.best_epoch:
            self.run.save_weights(self.learner.kept.state_dict(), {"epoch": 0, f"val_{self.task.name}": None})
        self._draw_curves()
        self._summarise("stopped", {})
        self._end_trackers(view)
        done = f"{self.position.epoch} whole epoch{'' if self.position.epoch == 1 else 's'}"
        view.say(f"stopped after {done} of {self.run.folder}; the same command goes on from there", style="yellow")

    def _finish(self, view: View) -> None:
        """Thresholds where there are any; the test, once, with the best weights; pictures; summary."""
        best = self.learner.engine.place(self.run.network(trust_code=True))
        splits, source = self.plan.splits, self.plan.source
        if isinstance(self.task, ManyLabels):
            val = self._score(best, splits.val)
            assert isinstance(val, LabelScores)
            self.task = ManyLabels(val.best_thresholds())
            self.run.write_thresholds(self.task.thresholds)
        test = averaged = None
        if splits.test is not None and self.hooks.score_test:
            try:
                batches, tta = self.loader.batches(splits.test, VAL_BATCH), self.spec.train.tta
                test, averaged = score_with_tta(best, batches, self.preprocess, task=self.task, tta=tta)
            except ReadError:
                raise  # bad files are to stop the run
            except InputError as error:
                view.say(f"test split: {error}; test {self.task.title} is null")
        shown = test or self._score(best, splits.val)
        self._draw_curves()
        title = f"{'test' if test else 'validation'} split of {self.spec.data.path}"
        self.run.write_bytes("mistakes.png", mistakes(source, shown, source.classes, title))
        scores = {"scores": {"split": "test" if test else "val", **shown.report(source.classes)}}
        self._summarise("finished", outcome(test, self.task, averaged) | scores)
        self._end_trackers(view)
        best_score = f"validation {self.task.title} {self.position.best_score:.2%}"
        view.say(f"best epoch {self.position.best_epoch}: {best_score}")
        if not self.hooks.score_test:
            view.say("the test split was left alone")
        elif splits.test is None:
            view.say(f"no test split: test {self.task.title} is null")
        elif test:
            view.say(f"test {self.task.title} {test.main:.2%}", style="bold")
        if averaged:
            view.say(f"  with test-time augmentation ({self.spec.train.tta}): {averaged.main:.2%}")
        view.say(f"run folder {self.run.folder}")
        view.say(f"pictures   {self.run.folder / 'curves.png'}  {self.run.folder / 'mistakes.png'}")

    def _score(self, network: nn.Module, indices: Tensor) -> Scores | LabelScores:
        """In fp32, as `evaluate` and the predictor compute."""
        return score(network, self.loader.batches(indices, VAL_BATCH), self.preprocess, task=self.task)

    def _end_trackers(self, view: View) -> None:
        for note in self.trackers.finish(self.run.summary):
            view.say(f"  {note}", style="yellow")

    def _draw_curves(self) -> None:
        metrics = self.run.metrics()
        if metrics:
            title = f"{self.spec.network.name} on {self.spec.data.path}"
            self.run.write_bytes("curves.png", curves(metrics, self.run.steps(), title, self.task))

    def _summarise(self, status: str, facts: Mapping[str, Any]) -> None:
        summary = {
            "status": status,
            **progress(self.position, self.task),
            **outcome(None, self.task),
            **facts,
            "num_parameters": sum(p.numel() for p in self.learner.network.parameters()),
            "time_s": round(sum(row["time_s"] for row in self.run.metrics()), 1),
            "bad_files": self.loader.bad,
            "chosen": self.notes,
            **circumstances(self.plan),
        }
        self.run.write_text("summary.json", json.dumps(summary, indent=1, allow_nan=False))
