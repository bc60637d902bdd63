"""What becomes of a run whose numbers went bad, or that ran out of memory: it stops with a report, leaves the batch
out, or goes back to its last checkpoint with a lower rate or smaller pieces."""

import contextlib
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from skipway.data.loader import Batch
from skipway.errors import InputError
from skipway.training.checkpoint import load_newest
from skipway.training.guard import BadNumbers
from skipway.training.progress import View
from skipway.training.records import begin

if TYPE_CHECKING:
    from skipway.training.loop import Trainer

REPORT = "bad-numbers.json"
SKIPS = 10  # batches left out one after the other until a run stops
LEAST_SCALE = 1 / 64  # of the rate, until a run that goes back stops
NAMED = 10  # samples in a report


class WentBack(Exception):
    """The run stands at its last checkpoint again."""


def gone_bad(trainer: "Trainer", bad: BadNumbers, batch: Batch, view: View) -> None:
    """Do about a batch what `safety.bad_numbers` says: returns where it is to be left out.

    Raises:
        InputError: the run is to stop.
        WentBack: it stands at its last checkpoint, with half the rate.
    """
    report = _report(trainer, bad, batch)
    if trainer.world.is_first or bad.places:
        with contextlib.suppress(OSError):  # the folder may be on the first process's machine alone
            trainer.run.write_text(REPORT, json.dumps(report, indent=1))
    policy = trainer.spec.safety.bad_numbers
    said = f"{bad.what} of step {report['step']} (epoch {report['epoch']}) is no finite number: {bad.where}"
    if policy == "skip":
        trainer.skipped += 1
        if trainer.skipped < SKIPS:
            view.say(f"  {said}; the batch is left out", style="yellow")
            return
        said += f"; {SKIPS} batches one after the other were left out"
    if policy == "back" and trainer.position.lr_scale / 2 >= LEAST_SCALE:
        scale = trainer.position.lr_scale / 2
        go_back(trainer)
        trainer.position = dataclasses.replace(trainer.position, lr_scale=scale)
        trainer.learner.lr_scale = scale
        view.say(f"  {said}; back to {trainer.position.told()}, rates times {scale:g}", style="yellow")
        raise WentBack
    raise stopped_by_numbers(trainer, said)


def stopped_by_numbers(trainer: "Trainer", said: str) -> InputError:
    """The error that ends a run."""
    kept = f"; {trainer.run.folder} keeps the best weights until then" if trainer.position.best_epoch else ""
    more = f" ({trainer.run.folder / REPORT} names the samples)" if (trainer.run.folder / REPORT).exists() else ""
    return InputError(
        f"{said}{more}{kept}. Try --bad-numbers back or skip, or with another --out a lower --lr, --grad-clip 1 or "
        "--precision fp32"
    )


def _report(trainer: "Trainer", bad: BadNumbers, batch: Batch) -> dict[str, Any]:
    """Which step, which layer, which samples: all of the batch where no single one stands out."""
    records, keeps_all = trainer.records, trainer.spec.speed.keep_hard >= 1
    indices = batch.indices[list(bad.places)] if bad.places and keeps_all else batch.indices
    named = [trainer.plan.source.name(index) for index in indices.tolist()[:NAMED]]
    return {
        "epoch": records.epoch,
        "step": records.first_step + records.steps + 1,
        "batch": batch.number,
        "what": bad.what,
        "where": bad.where,
        "num_samples": len(indices),
        "samples": named,
        "lr_scale": trainer.position.lr_scale,
    }


def out_of_memory(trainer: "Trainer", error: BaseException, view: View) -> None:
    """Go back to the last checkpoint, and on in pieces of half the size.

    Raises:
        InputError: the pieces are single images already, or other processes would have to go back too.
        WentBack: always otherwise.
    """
    engine, world = trainer.learner.engine, trainer.world
    images = engine.micro_batch or -(-trainer.spec.train.batch_size // world.size)
    what = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
    if images <= 1:
        raise InputError(
            f"out of memory with one image at a time ({what}): a smaller --image-size or --network, --checkpoint, or "
            "--precision bf16"
        ) from error
    smaller = dataclasses.replace(engine, micro_batch=-(-images // 2))
    if (trainer.run.folder / "engine.json").exists():  # else it is the first process's machine that has it
        trainer.run.write_text("engine.json", smaller.to_json())
    if world.size > 1:
        raise InputError(
            f"out of memory with {images} images at a time ({what}); start all again, and the run goes on with "
            f"{smaller.micro_batch} at a time"
        ) from error
    trainer.learner.done()
    trainer.learner.use(smaller)
    go_back(trainer)
    view.say(
        f"  out of memory ({what}): {smaller.micro_batch} images at a time from here on, in batches as large as "
        f"before (batch norm sees the smaller ones); back to {trainer.position.told()}. --micro-batch "
        f"{smaller.micro_batch} says so from the start",
        style="yellow",
    )
    raise WentBack


def go_back(trainer: "Trainer") -> None:
    """Stand at the newest checkpoint again. Raises InputError where there is none."""
    trainer.saver.wait()
    trainer.learner.optimizer.zero_grad(set_to_none=True)
    trainer.position, _ = load_newest(trainer.run.folder, trainer.learner)
    trainer.records = begin(trainer.run, trainer.position, trainer.plan.steps_per_epoch, trainer.world)
