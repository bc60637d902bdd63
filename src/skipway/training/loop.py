"""The training loop: one straight way from a spec to a run folder.

    plan -> run folder -> epochs of (steps, validation, checkpoint) -> best weights -> test, pictures, summary

Best is chosen on validation; the test split is touched once, at the end. A run that was cut off anywhere goes on from
its newest checkpoint, in the middle of an epoch too, to the same bits.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from skipway.data.loader import Batch
from skipway.data.sampler import make_sampler
from skipway.data.source import is_multilabel
from skipway.errors import InputError, for_example
from skipway.evaluation.labels import LabelScores
from skipway.evaluation.metrics import Scores
from skipway.evaluation.task import ManyLabels, OneLabel, Task, at_once, score
from skipway.run import Run
from skipway.training import beginning, ending
from skipway.training.assemble import Begun, assemble
from skipway.training.checkpoint import Position, files_of, load_newest
from skipway.training.facts import bad_files_note
from skipway.training.feeding import Waiting, in_step
from skipway.training.guard import BadNumbers, Guard, is_out_of_memory
from skipway.training.place import Before
from skipway.training.plan import Plan
from skipway.training.progress import StopRequested, Stops, View
from skipway.training.records import Records, begin
from skipway.training.recovery import WentBack, gone_bad, out_of_memory, stopped_by_numbers
from skipway.training.saver import Saver
from skipway.training.sharding import is_sharded, whole_on_first
from skipway.training.step import Update
from skipway.training.summary import check_same_data
from skipway.training.trackers import need_trackers, open_trackers
from skipway.training.vault import Vault
from skipway.training.world import ALONE, World


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What a search wants of each of its runs.

    Args:
        on_epoch: told each row of metrics.jsonl; StopRequested out of it ends the run cleanly.
        score_test: whether the test split is scored at the end.
        max_minutes: what is left of the search's time, in place of the spec's limit; 0: that limit.
    """

    on_epoch: Callable[[dict[str, Any]], None] | None = None
    score_test: bool = True
    max_minutes: float = 0.0


HOOKS = Hooks()


class Trainer:
    """Everything one run of the loop holds: data, network, optimizer, average, position.

    Args:
        plan: what to do.
        folder: the run folder.
        console: where to show progress.
        before: how the run that it holds was left, to go on with it; None: it holds none.
        hooks: what a search wants.
        world: the processes that train together; the first one writes.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        console: Console,
        *,
        before: Before | None = None,
        hooks: Hooks = HOOKS,
        world: World = ALONE,
    ):
        self.plan = dataclasses.replace(plan, given=None)  # given weights are not kept beside the network's
        self.spec, self.device, self.console, self.hooks = plan.spec, plan.device, console, hooks
        self.run, self.world, spec = Run(folder), world, plan.spec
        tracked = spec.train.track if world.is_first else ()
        need_trackers(tracked)
        begun = None
        if before:
            begun = world.first_does(lambda: Begun.of(Run.open(folder), plan, before, world.size))
        parts = assemble(plan, console, begun=begun, world=world)
        self.train_loader, self.loader, self.notes = parts.train_loader, parts.loader, parts.notes
        self.preprocess, self.augment, self.learner = parts.preprocess, parts.augment, parts.learner
        labels, num_classes = plan.source.labels, len(plan.source.classes)
        self.task: Task = OneLabel(spec.train.loss)
        if is_multilabel(plan.source):
            self.task = ManyLabels((0.5,) * num_classes)  # until the end, when validation chooses
        self.sampler = make_sampler(plan.splits.train, labels, spec.train.sampler, seed=spec.train.seed)
        meet = world.circle() if is_sharded(self.learner.network) else None  # each process has its part to save
        self.vault, self.saver = Vault(folder, meet, is_first=world.is_first), Saver()
        self.position, self.writes = Position(), meet is not None or world.is_first
        self.skipped, self.saved_batches, self.saving_s, self.waiting = 0, 0, 0.0, Waiting()
        if plan.device.type == "cpu" or spec.safety.bad_numbers != "stop":  # which waits for the device at each step
            self.learner.guard = Guard(self.learner.network)
        if before:
            world.first_does(lambda: check_same_data(self.run, plan))
            self.position, passed_over = load_newest(folder, self.learner)
            world.first_does(lambda: beginning.write_changed(self))
            self.notes += passed_over
        else:
            files = files_of(self.position, self.learner)
            world.first_does(lambda: beginning.create(self))
            write = partial(self.vault.write, self.position.name, files, keep=1)
            write() if meet else world.first_does(write)
        self.records = begin(self.run, self.position, plan.steps_per_epoch, world)
        self.saved_at = self.began_at = time.monotonic()
        self.trackers, failed = open_trackers(tracked, self.run, resume=before is not None)
        self.notes += failed

    def fit(self) -> Run:
        """All epochs that are left, then the end."""
        spec = self.spec
        parameters = sum(p.numel() for p in self.learner.network.parameters())
        title = f"{spec.network.name} ({parameters:,} parameters) on {spec.data.path} -> {self.run.folder}"
        notes = self.notes + bad_files_note(self.loader.bad, spec.data.bad_files)
        if self.position != Position():
            notes.append(f"going on after {self.position.told()}")
        epochs, steps, done = spec.train.epochs, self.plan.steps_per_epoch, self.position.epoch
        view = View(title, epochs=epochs, steps=steps, notes=notes, done=done, console=self.console, task=self.task)
        told = set(self.loader.bad)
        limit = self.hooks.max_minutes or spec.safety.max_minutes
        with contextlib.closing(self.trackers), contextlib.closing(self.saver), Stops(limit) as stop:
            try:
                with view:
                    while self.position.epoch < spec.train.epochs:
                        try:
                            self._epoch(self.position.epoch + 1, view, stop)
                        except WentBack:
                            continue
                        new = {name: why for name, why in self.loader.bad.items() if name not in told}
                        told |= set(new)
                        for note in bad_files_note(new, spec.data.bad_files):
                            view.say(f"  {note}", style="yellow")
                        if self.hooks.on_epoch:
                            self.saver.wait()
                            self.hooks.on_epoch(self.run.metrics()[-1])
                self.saver.wait()
                self.learner.done()
                ending.finish(self, view, stop)
            except StopRequested as request:
                self._save_within()
                self.saver.wait()
                ending.stopped(self, view, str(request))
            finally:
                self.learner.done()
        return self.run

    def _epoch(self, epoch: int, view: View, stop: Stops) -> None:
        """One epoch, or what is left of it: steps, validation, files."""
        view.start_epoch(epoch, done=self.records.batches)
        self.began_at = time.monotonic()
        self._steps(epoch, view, stop)
        records = self.records
        records.write()  # which waits for the device
        trained = records.seconds + time.monotonic() - self.began_at
        right, seen = records.counts()
        if not records.rows:
            if self.skipped:
                raise stopped_by_numbers(self, f"every batch of epoch {epoch} was left out")
            raise InputError(f"none of the training images can be read{for_example(self.train_loader.bad)}")
        scores = self._validate(stop)
        row = {
            "epoch": epoch,
            "train_loss": sum(records.losses) / records.steps,
            f"train_{self.task.train_name}": right / seen,
            "val_loss": scores.loss,
            f"val_{self.task.name}": scores.main,
            "lr": records.rows[-1]["lr"],
            "images_per_s": round(seen / trained, 1),
            "time_s": round(records.seconds + time.monotonic() - self.began_at, 3),
        }
        self._check_finite([scores.loss])
        self.position = self.position.after(scores.main, scores.loss)
        is_best = self.position.best_epoch == epoch
        if self.world.is_first:
            self.run.append_lines("metrics.jsonl", [row])
        self._save(self.position, best={"epoch": epoch, f"val_{self.task.name}": scores.main} if is_best else None)
        view.end_epoch(row, self.position.best_score, is_best=is_best)
        for note in self.trackers.epoch(records.rows, row) + self.waiting.notes(trained, self.train_loader):
            view.say(f"  {note}", style="yellow")
        self.records = Records(self.run, self.world, epoch * self.plan.steps_per_epoch, epoch + 1)

    def _steps(self, epoch: int, view: View, stop: Stops) -> None:
        """The steps that are left of an epoch."""
        records, per_epoch, first = self.records, self.plan.steps_per_epoch, self.records.batches
        batch_size, world = self.spec.train.batch_size, self.world
        left = self.sampler.epoch(epoch)[first * batch_size : per_epoch * batch_size]
        own = left if world.size == 1 else torch.cat([world.part(batch) for batch in left.split(batch_size)] or [left])
        started, before = time.perf_counter(), records.seen
        batches = self.train_loader.batches(own, len(world.part(torch.arange(batch_size)))) if len(left) else iter(())
        watched = self.waiting.watch(batches)
        for number, batch in in_step(watched, per_epoch - first, least=min(batch_size, 2), together=world.size > 1):
            self._settle(stop)
            if batch is not None:
                self._one(batch, view)
                view.step(records.last_loss, (records.seen - before) * world.size / (time.perf_counter() - started))
            records.batches = first + number + 1
        self._settle(stop)

    def _settle(self, stop: Stops) -> None:
        """What all processes do alike between two batches: stop, or save. Raises StopRequested."""
        self.saver.check()
        if self.world.pulse:
            self.world.pulse.step = self.records.batches
        agreed = self.world.agreed(2 if stop.asked() else int(self._is_due()))
        if agreed == 2:
            raise StopRequested(stop.why or "as another process was asked to")
        if agreed:
            self._save_within()

    def _one(self, batch: Batch, view: View) -> None:
        """One update, or what becomes of it where it goes wrong. Raises WentBack, InputError."""
        records = self.records
        try:
            records.add(self._step(batch, records.epoch, records.first_step + records.steps), self._share(batch))
            self.skipped = 0
        except BadNumbers as bad:
            gone_bad(self, bad, batch, view)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            out_of_memory(self, error, view)

    def _step(self, batch: Batch, epoch: int, step: int) -> Update:
        return self.learner.update(
            batch, epoch, step, augment=self.augment, preprocess=self.preprocess, share=self._share(batch)
        )

    def _share(self, batch: Batch) -> float:
        """Of the whole batch that this process has."""
        return 1.0 if self.world.size == 1 else len(batch.labels) / self.spec.train.batch_size

    def _validate(self, stop: Stops) -> Scores | LabelScores:
        """In the precision of training; each process has a part of the images."""
        self.world.same_buffers(self.learner.kept)
        size, val = at_once(self.preprocess.image_size, self.device), self.plan.splits.val
        mine, gather = (val, lambda rows: rows) if self.spec.speed.shard else self.world.part_of_evaluation(val)
        batches = stop.watch(self.loader.batches(mine, size), -(-len(mine) // size), self.world)
        bf16 = self.spec.train.precision == "bf16"
        return score(self.learner.kept, batches, self.preprocess, task=self.task, bf16=bf16, gather=gather)

    def _is_due(self) -> bool:
        """Whether a checkpoint within the epoch is due."""
        safety, batches = self.spec.safety, self.records.batches
        if batches in (self.saved_batches, self.plan.steps_per_epoch):
            return False
        if safety.save_steps and batches % safety.save_steps == 0:
            return True
        return 0 < safety.save_minutes * 60 <= time.monotonic() - self.saved_at

    def _save_within(self) -> None:
        """A checkpoint of where the epoch stands, if it has begun."""
        if self.records.batches:
            self.records.write()
            self._check_finite()
            self._save(self.records.position(self.position, seconds=time.monotonic() - self.began_at))

    def _save(self, position: Position, *, best: dict[str, Any] | None = None) -> None:
        """Copy everything, then write it beside what comes next: the best weights first, where these are."""
        self.saved_at, self.saved_batches = time.monotonic(), position.batches
        if not self.writes:
            return
        try:
            files, keep = files_of(position, self.learner), self.spec.safety.keep_checkpoints
        except BadNumbers as bad:
            raise stopped_by_numbers(self, f"{bad}; it is not saved") from bad
        kept = whole_on_first(self.learner.kept.state_dict(), self.world) if best else {}
        weights = self.run.weights_of(kept, best) if best and kept else None

        def write() -> None:
            if weights:
                self.run.write_weights(*weights)
            self.vault.write(position.name, files, keep=keep)

        self.saver.put(write)
        self.saving_s += time.monotonic() - self.saved_at

    def _check_finite(self, more: Iterable[float] = ()) -> None:
        """Refuse to go on with losses that are none (on an accelerator they are seen late). Raises InputError."""
        if not all(math.isfinite(loss) for loss in (*self.records.losses, *more)):
            raise stopped_by_numbers(self, f"the loss is no longer a finite number in epoch {self.records.epoch}")
