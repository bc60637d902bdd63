"""What blocks are coloured by: parameters and FLOPs, the gradient that arrives, the branch's share, lesion damage."""

import torch

from skipway.errors import InputError
from skipway.insight.edits import Edit
from skipway.insight.lab.state import Lab
from skipway.insight.units import Parts, Unit
from skipway.insight.watch import Watch
from skipway.nn.describe import describe

NUM_IMAGES = 64  # that gradients and shares are measured on


def costs(lab: Lab, *, trust_code: bool = False) -> dict[str, dict[str, float]]:
    """Parameters and FLOPs of one image by unit; of the whole block where it has several additions."""
    units = lab.probe.units
    names = {u.name: lab.probe.names[u.index] for u in units}
    of_block = dict(zip(lab.probe.names, lab.probe.blocks, strict=True))
    parameters = {n: float(sum(p.numel() for p in of_block[names[n]].parameters())) for n in names}
    try:
        size = lab.seen.inputs.shape[-1]
        rows = describe(lab.subject.spec.network, image_size=size, trust_code=trust_code).layers
    except InputError:
        return {"parameters": parameters}
    flops: dict[str, float] = {}
    for row in rows:
        flops[row.part] = flops.get(row.part, 0.0) + 2.0 * row.macs
    known = {n: flops[block] for n, block in names.items() if block in flops}
    return {"parameters": parameters, "flops": known} if known else {"parameters": parameters}


def passing(lab: Lab) -> dict[str, dict[str, float]]:
    """By unit, on training images: "gradient", the norm of the mean loss's gradient by its output, and "share".

    The share is var F / (var F + var S), as in strengths.py, from 0 (the shortcut alone) to 1 (the branch alone); plain
    units have none.
    """
    images = lab.subject.train.first(NUM_IMAGES)
    outputs: dict[str, torch.Tensor] = {}
    shares: dict[str, float] = {}

    def note(unit: Unit, parts: Parts) -> None:
        outputs[unit.name] = parts.output
        if parts.shortcut is not None:
            f, s = (float(t.detach().var(correction=0)) for t in (parts.branch, parts.shortcut))
            shares[unit.name] = f / (f + s) if f + s > 0 else 0.0

    with lab.lock, torch.enable_grad():
        logits = lab.probe.run(images.inputs.detach().requires_grad_(), visit=note)
        loss = lab.subject.loss(logits, images.labels)
        found = torch.autograd.grad(loss, list(outputs.values()), allow_unused=True)
    norms = {n: float(g.norm()) for n, g in zip(outputs, found, strict=True) if g is not None}
    return {"gradient": norms, "share": shares}


def lesion(lab: Lab, watch: Watch) -> dict[str, float | None]:
    """By unit, what accuracy loses where its block is cut, in [-1, 1]; None where the shapes forbid it.

    Told unit by unit; between two of them edits of the page go first.
    """
    made: dict[str, float | None] = {}
    units = lab.probe.units
    for place, unit in enumerate(units):
        with lab.lock:
            prefix = lab.prefix(watch)
            before = float(lab.subject.right(prefix.logits, lab.seen.labels).mean())
            try:
                logits = prefix.score([Edit("block", unit.name)], watch=Watch(cancelled=watch.cancelled))
                made[unit.name] = before - float(lab.subject.right(logits, lab.seen.labels).mean())
            except InputError:
                made[unit.name] = None
        watch.tell((place + 1) / len(units))
        watch.partial({unit.name: made[unit.name]})
    return made
