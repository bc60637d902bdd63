"""Points of the landscape: what the network answers where the page clicked. The surface is an experiment's job."""

import threading
from typing import Any

from fastapi import APIRouter, Request, Response

from skipway.errors import InputError
from skipway.insight.lab import lines
from skipway.insight.lab.asked import json_of, number, settings_of
from skipway.insight.lab.pictures import png
from skipway.insight.lab.state import Lab
from skipway.insight.lab.stream import streamed
from skipway.insight.landscape import LandscapeSettings, Spot, at, ground_of
from skipway.insight.surface import Ground
from skipway.insight.watch import Watch

FAR = 100.0  # lengths of the directions


class Terrain:
    """Places of the plane that was asked for last, whose copy of the network is kept.

    Args:
        lab: whose subject; its network's weights are read, and stay.
    """

    def __init__(self, lab: Lab):
        self._lab, self._lock = lab, threading.Lock()
        self._kept: tuple[tuple[str, int], Ground] | None = None

    def spot(self, settings: LandscapeSettings, x: float, y: float) -> Spot:
        """The answers at a place. Raises InputError."""
        with self._lock:
            key = settings.plane, settings.seed
            if self._kept is None or self._kept[0] != key:
                self._kept = key, ground_of(self._lab.subject, settings)
            return at(self._lab.subject, settings, x, y, ground=self._kept[1])


def routes(lab: Lab) -> APIRouter:
    """The panel's requests."""
    router = APIRouter(prefix="/api")
    terrain = Terrain(lab)

    @router.post("/landscape/at")
    async def answers_at(request: Request) -> Response:
        asked = await json_of(request, ("settings", "x", "y"))
        settings = settings_of(asked.get("settings", {}), LandscapeSettings(), "landscape")
        x, y = (number(asked.get(axis), axis, -FAR, FAR) for axis in ("x", "y"))

        def work(watch: Watch) -> dict[str, Any]:
            spot = terrain.spot(settings, x, y)
            return {"spot": spot, "lines": lines_at(lab, settings, x, y)}

        return streamed(work)

    @router.get("/train/{place}.png")
    def thumbnail(place: int) -> Response:
        images = lab.subject.train
        if not 0 <= place < len(images):
            raise InputError(f"the image must be from 0 to {len(images) - 1}, got {place}")
        return Response(png(images.pixels[place]), media_type="image/png", headers={"Cache-Control": "private"})

    return router


def lines_at(lab: Lab, settings: LandscapeSettings, x: float, y: float) -> str:
    """Python that asks the same."""
    return f"""{lines.subject(lab)}

from skipway.insight.landscape import LandscapeSettings, at, landscape

settings = {settings!r}
found = landscape(subject, settings)
print("loss at the weights", found.line_losses[len(found.line) // 2])
spot = at(subject, settings, {x:g}, {y:g})
print(f"loss {{spot.loss:.4f}}, accuracy {{spot.accuracy:.2%}}, {{len(spot.flips)}} answers flipped")
"""
