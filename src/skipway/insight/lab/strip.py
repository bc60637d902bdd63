"""The strip: what the network is made of, and its answers on the same images with edits and without."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from fastapi import APIRouter, Request, Response
from torch import Tensor

from skipway.errors import InputError
from skipway.insight.edits import Edit
from skipway.insight.lab import lines, measures
from skipway.insight.lab.asked import edits_of, json_of
from skipway.insight.lab.pictures import png
from skipway.insight.lab.state import Lab
from skipway.insight.lab.stream import streamed
from skipway.insight.plain import to_plain
from skipway.insight.watch import Watch

SHOWN = 24  # images whose answer flipped


@dataclass(frozen=True)
class Flipped:
    """An image whose answer changed.

    Args:
        image: its place among the images.
        name: of the sample.
        truth, before, after: classes in words.
        turned: "wrong", "right", or "other": from one wrong answer to another.
        confidence: of the new answer, in [0, 1].
    """

    image: int
    name: str
    truth: str
    before: str
    after: str
    turned: str
    confidence: float


@dataclass(frozen=True)
class Scored:
    """A network's answers with edits, beside those without.

    Args:
        images: how many.
        before, after: accuracy, in [0, 1].
        loss_before, loss_after: in nats.
        classes: of each class how many images, accuracy before and after.
        num_flipped: images whose answer changed.
        flipped: some of them, those that turned wrong first.
        lines: Python that does the same.
    """

    images: int
    before: float
    after: float
    loss_before: float
    loss_after: float
    classes: tuple[tuple[int, float, float], ...]
    num_flipped: int
    flipped: tuple[Flipped, ...]
    lines: str


def score(lab: Lab, edits: Sequence[Edit], watch: Watch) -> Scored:
    """The answers with edits. Raises InputError for an edit that cannot be, Cancelled."""
    with lab.lock:
        prefix = lab.prefix(watch)
        before, after = prefix.logits, prefix.score(edits, watch=watch)
    subject, labels = lab.subject, lab.seen.labels
    right = subject.right(before, labels), subject.right(after, labels)
    flipped = _flipped(lab, before, after)
    return Scored(
        len(labels),
        float(right[0].mean()),
        float(right[1].mean()),
        float(subject.loss(before, labels)),
        float(subject.loss(after, labels)),
        tuple(_by_class(labels, before, after, right, len(subject.classes))),
        len(flipped),
        tuple(flipped[:SHOWN]),
        lines.score(lab, edits),
    )


def _by_class(labels: Tensor, before: Tensor, after: Tensor, right: tuple[Tensor, Tensor], classes: int):
    """(images, accuracy before, accuracy after) of each class; of several labels, of the images that have it."""
    for k in range(classes):
        chosen = labels[:, k].bool() if labels.ndim == 2 else labels == k
        count = int(chosen.sum())
        was, now = (float(r[chosen].mean()) if count else 0.0 for r in right)
        yield count, was, now


def _flipped(lab: Lab, before: Tensor, after: Tensor) -> list[Flipped]:
    """Where the answer changed; turned wrong, then right, then other; sure ones first."""
    labels, classes = lab.seen.labels, lab.subject.classes
    truth = labels.bool() if labels.ndim == 2 else F.one_hot(labels, len(classes)).bool()
    old, new = _decided(lab, before), _decided(lab, after.nan_to_num())
    confidence = lab.probabilities(after).nan_to_num().amax(1)

    def words(row: Tensor) -> str:
        return ", ".join(name for name, there in zip(classes, row.tolist(), strict=True) if there) or "none"

    found = []
    for i in (old != new).any(1).nonzero()[:, 0].tolist():
        was, now = bool((old[i] == truth[i]).all()), bool((new[i] == truth[i]).all())
        turned = "wrong" if was else "right" if now else "other"
        told = words(truth[i]), words(old[i]), words(new[i])
        found.append(Flipped(i, lab.seen.names[i], *told, turned, float(confidence[i])))
    order = {"wrong": 0, "right": 1, "other": 2}
    return sorted(found, key=lambda f: (order[f.turned], -f.confidence))


def _decided(lab: Lab, logits: Tensor) -> Tensor:
    """(N, K) logits -> (N, K) bool: the labels that each image is given, one or several."""
    thresholds = lab.subject.model.thresholds
    if thresholds is None:
        return F.one_hot(logits.argmax(1), logits.shape[1]).bool()
    return lab.probabilities(logits) >= logits.new_tensor(thresholds)


def network(lab: Lab) -> dict[str, Any]:
    """What the page shows of the network before anything is asked."""
    units, stage = [], 0
    for place, unit in enumerate(lab.probe.units):
        stage += unit.opens and place > 0
        units.append({**to_plain(unit), "stage": stage, "opens": unit.opens})
    subject = lab.subject
    own = subject.own
    return {
        "boot": lab.boot,
        "title": subject.title,
        "network": getattr(subject.spec.network, "name", "") or "custom",
        "trained": subject.trained,
        "classes": subject.classes,
        "images": len(lab.seen),
        "image_size": int(lab.seen.inputs.shape[-1]),
        "several": lab.seen.labels.ndim == 2,
        "plain": all(u.skip == "none" for u in lab.probe.units),
        "own": own is not None,
        "units": units,
        "labels": lab.seen.labels.tolist() if lab.seen.labels.ndim == 1 else [],
        "lines": lines.score(lab, ()),
    }


def routes(lab: Lab, *, trust_code: bool) -> APIRouter:
    """The strip's requests."""
    router = APIRouter(prefix="/api")

    @router.get("/network")
    def describe_network() -> dict[str, Any]:
        return network(lab)

    @router.post("/score")
    async def score_edits(request: Request) -> Response:
        edits = edits_of((await json_of(request, ("edits",))).get("edits", []))
        return streamed(lambda watch: score(lab, edits, watch))

    @router.get("/measures/costs")
    def measure_costs() -> dict[str, dict[str, float]]:
        return measures.costs(lab, trust_code=trust_code)

    @router.get("/measures/passing")
    def measure_passing() -> dict[str, Any]:
        return to_plain(measures.passing(lab))

    @router.post("/measures/lesion")
    async def measure_lesion(request: Request) -> Response:
        await json_of(request, ())
        return streamed(lambda watch: measures.lesion(lab, watch))

    @router.get("/seen/{place}.png")
    def thumbnail(place: int) -> Response:
        if not 0 <= place < len(lab.seen):
            raise InputError(f"the image must be from 0 to {len(lab.seen) - 1}, got {place}")
        return Response(png(lab.seen.pixels[place]), media_type="image/png", headers={"Cache-Control": "private"})

    return router
