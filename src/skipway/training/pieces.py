"""How many images go through the network at a time in a run that goes on: as many as before, unless it was told
otherwise, or the memory did not do.

A process that the system kills for its memory leaves no word. What is left: its lock in the run folder, and the count
of such kills that Linux keeps for a control group.
"""

import dataclasses

from skipway.run import Run
from skipway.training.engine import Engine, choose_engine, engine_of, fitting
from skipway.training.place import Before
from skipway.training.plan import Plan

ELSE = "batches are as large as before, but the bits differ from those of a run that was not changed"


def engine_to_go_on(run: Run, plan: Plan, before: Before, processes: int) -> tuple[Engine, list[str]]:
    """The engine of a run that goes on, and a sentence where it is not that of the process before.

    Args:
        run: what there is of it.
        plan: what to do; its spec may ask for another `speed.micro_batch` than the run's.
        before: how the process before this one left the run folder.
        processes: how many share each batch.

    Raises:
        InputError: its engine.json is damaged, or its kernels cannot be had any more.
    """
    engine = engine_of(run.read_text("engine.json"), plan)
    share = -(-plan.spec.train.batch_size // processes)
    images, asked = engine.micro_batch or share, plan.spec.speed.micro_batch
    if asked != run.spec.speed.micro_batch:
        chosen = choose_engine(plan, processes)[0].micro_batch
        return _in_pieces(engine, chosen, share, f"{chosen or share} images at a time, as was asked for: {ELSE}")
    if before.short_of_memory:
        why = "the system killed the process before this one for want of memory"
        if images == 1:
            return engine, [f"warning: {why}, with one image at a time; try a smaller --image-size or --network"]
        smaller = -(-images // 2)
    else:
        why = (
            f"the process before this one ended without a word, and {images} images at a time are more than the memory "
            "that this one may take is made for"
        )
        smaller = images if asked or not before.cut_off else min(fitting(plan, share), images)
    if smaller >= images:
        return engine, []
    return _in_pieces(engine, smaller, share, f"warning: {why}: {smaller} images at a time from here on; {ELSE}")


def _in_pieces(engine: Engine, images: int, share: int, said: str) -> tuple[Engine, list[str]]:
    return dataclasses.replace(engine, micro_batch=0 if images >= share else images), [said]
