"""One image: where each stage sees a class, and how the answer forms from block to block."""

from dataclasses import dataclass
from typing import Any

import torch
from fastapi import APIRouter, Request, Response
from torch import Tensor

from skipway.errors import InputError
from skipway.insight.class_maps import Attended, attend
from skipway.insight.edits import Edit
from skipway.insight.forming import logits_by_block
from skipway.insight.lab import lines
from skipway.insight.lab.asked import body_of, edits_of, json_of, whole
from skipway.insight.lab.pictures import UPLOAD_BYTES, Uploads, png
from skipway.insight.lab.state import Lab
from skipway.insight.lab.stream import streamed
from skipway.insight.watch import Watch


@dataclass(frozen=True)
class Forming:
    """The answer as it forms.

    Args:
        blocks: names of the additions.
        probabilities: (additions + 1, classes): what the head reads after each, with the later ones cut that open no
            stage (forming.py); the first row is before any.
    """

    blocks: tuple[str, ...]
    probabilities: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Explained:
    """What the panel shows.

    Args:
        truth: classes by number; empty where nobody knows.
        maps: of each stage; None where the network's activations are no images.
        without_maps: why there are none.
        probabilities: of every class.
        forming: the answer block by block.
        lines: Python that does the same.
    """

    truth: tuple[int, ...]
    maps: Attended | None
    without_maps: str
    probabilities: tuple[float, ...]
    forming: Forming
    lines: str


def forming(lab: Lab, x: Tensor, edits: tuple[Edit, ...], watch: Watch) -> Forming:
    """How the answer forms, with the page's edits. x: (1, C, S, S). The lock is held by the caller."""
    logits = logits_by_block(lab.probe, x, edits=edits, watch=watch)
    rows = tuple(tuple(lab.probabilities(each)[0].nan_to_num().tolist()) for each in logits)
    return Forming(tuple(u.name for u in lab.probe.units), rows)


def explain(lab: Lab, x: Tensor, truth: tuple[int, ...], label: int | None, edits: tuple[Edit, ...], watch: Watch):
    """Maps, probabilities and the forming answer of one image."""
    maps, why = None, ""
    with lab.lock:
        with torch.no_grad():
            probabilities = tuple(lab.probabilities(lab.probe.run(x, edits=edits))[0].nan_to_num().tolist())
        try:
            maps = attend(lab.open, x, label=label, probe=lab.probe, edits=edits)
        except InputError as error:
            why = str(error)
        formed = forming(lab, x, edits, watch)
    return maps, why, probabilities, formed


def routes(lab: Lab) -> APIRouter:
    """The panel's requests."""
    router = APIRouter(prefix="/api")
    uploads = Uploads(lab.subject.model.preprocess)

    def input_of(asked: dict[str, Any]) -> tuple[Tensor, tuple[int, ...], int | None]:
        if "upload" in asked:
            if not isinstance(asked["upload"], str):
                raise InputError("upload must be the name that an upload got")
            pixels = uploads.pixels(asked["upload"])
            return lab.subject.model.preprocess.normalise(pixels[None]), (), None
        place = whole(asked.get("seen", 0), "seen", 0, len(lab.seen) - 1)
        label = lab.seen.labels[place]
        truth = (int(label),) if label.ndim == 0 else tuple(label.nonzero()[:, 0].tolist())
        return lab.seen.inputs[place : place + 1], truth, place

    @router.post("/image")
    async def upload(request: Request) -> Response:
        content = await body_of(request, UPLOAD_BYTES)
        return streamed(lambda watch: {"upload": uploads.add(content)})

    @router.get("/image/{name}.png")
    def uploaded(name: str) -> Response:
        return Response(png(uploads.pixels(name)), media_type="image/png")

    @router.post("/explain")
    async def explain_image(request: Request) -> Response:
        asked = await json_of(request, ("seen", "upload", "label", "edits"))
        x, truth, place = input_of(asked)
        label = asked.get("label")
        if label is not None:
            label = whole(label, "label", 0, len(lab.subject.classes) - 1)
        edits = edits_of(asked.get("edits", []))

        def work(watch: Watch) -> Explained:
            made = explain(lab, x, truth, label, edits, watch)
            return Explained(truth, *made, lines.one_image(lab, place, label))

        return streamed(work)

    return router
