"""Races of the page: each in a thread of its own while it is played and somebody looks."""

import asyncio
import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from skipway.errors import InputError, unknown
from skipway.fields import shown
from skipway.insight.lab import lines
from skipway.insight.lab.asked import json_of, settings_of
from skipway.insight.lab.state import Lab
from skipway.insight.lab.stream import event, in_thread, log, responding, streamed
from skipway.insight.race import Race, RaceStep, race_of
from skipway.insight.race_settings import RaceSettings, digits_images
from skipway.insight.subject import Images
from skipway.insight.watch import Watch

KEPT = 4  # races, the last ones
LOOK_S = 0.1  # how often a page is told
ALONE_S = 3.0  # a race that nobody watches goes on so long
OWN_SIZE = 64  # pixels: larger images are not raced on


@dataclass
class Running:
    """A race that can be played."""

    race: Race
    settings: RaceSettings
    watched: int = 0
    playing: bool = False
    error: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    round: int = 0  # how often it was reset

    @property
    def done(self) -> bool:
        """Whether all steps are made, and their scores told."""
        return self.race.done and bool(self.race.told) and self.race.told[-1][0] == self.race.taken

    def play(self) -> None:
        """Go on until it is paused, done, or nobody looks."""
        with self.lock:
            if self.playing or self.race.done:
                return
            self.playing = True
        in_thread(self._play)

    def _play(self) -> None:
        alone_since = time.monotonic()
        try:
            while self.playing and not self.race.done:
                self.step()
                now = time.monotonic()
                alone_since = now if self.watched else alone_since
                if now - alone_since > ALONE_S:
                    break
        except Exception as error:
            self.error = str(error) if isinstance(error, InputError) else "the race broke; the terminal says why"
            if not isinstance(error, InputError):
                log.exception("a race failed")
        finally:
            self.playing = False

    def step(self) -> None:
        """One step; scores at the end of each epoch, and at the very start."""
        with self.lock:
            race = self.race
            if not race.told:
                race.scores()
            race.step()
            if race.taken % race.steps_per_epoch == 0:
                race.scores()

    def reset(self) -> None:
        """Back to the start."""
        self.playing = False
        with self.lock:
            self.race.reset()
            self.round += 1


class RaceRoom:
    """The races that are kept.

    Args:
        lab: whose images may be raced on.
    """

    def __init__(self, lab: Lab):
        self.lab = lab
        self.races: OrderedDict[str, Running] = OrderedDict()
        self._digits: tuple[Images, Images] | None = None

    def images(self, name: Any) -> tuple[Images, Images]:
        """Images by their name: "digits", or "own". Raises InputError."""
        if name == "digits":
            self._digits = self._digits or digits_images()
            return self._digits
        if name != "own":
            raise unknown("images", shown(name)[:80], ("digits", "own"))
        size = self.lab.subject.train.inputs.shape[-1]
        if size > OWN_SIZE:
            raise InputError(f"images of {size} pixels take too long to race on; up to {OWN_SIZE} can be: take digits")
        return self.lab.subject.train, self.lab.subject.seen

    def start(self, settings: RaceSettings, images: str) -> tuple[str, Running, float]:
        """A new race, and how many seconds it takes in all."""
        classes = len(self.lab.subject.classes) if images == "own" else 0
        race = race_of(settings, *self.images(images), classes=classes)
        seconds = race.estimate_s(scores=settings.epochs + 1)
        name = secrets.token_hex(8)
        self.races[name] = running = Running(race, settings)
        while len(self.races) > KEPT:
            self.races.popitem(last=False)[1].playing = False
        return name, running, seconds

    def close(self) -> None:
        """Pause all of them."""
        for running in self.races.values():
            running.playing = False

    def find(self, name: str) -> Running:
        """Raises InputError where it is not kept (any more)."""
        if name not in self.races:
            raise InputError("that race is not kept any more: start it again")
        self.races.move_to_end(name)
        return self.races[name]


def _told(step: RaceStep) -> dict[str, Any]:
    """A step as the page gets it."""
    laps = {
        name: [_short(lap.loss), _short(lap.right), [_short(g) for g in lap.gradients]]
        for name, lap in step.networks.items()
    }
    return {"step": step.step, "laps": laps}


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if abs(value) < float("inf") else None


async def follow(running: Running, since: int) -> AsyncIterator[str]:
    """The race as events: "steps", "scores", "state"; all from a step on, then as they come."""
    running.watched += 1
    state, scores, turn, quiet = "", 0, running.round, 0.0
    try:
        while True:
            race = running.race
            if turn != running.round:
                since, scores, turn = 0, 0, running.round
                yield event("reset", "")
            now = json.dumps(  # before the steps, so that "done" follows the last of them
                {"playing": running.playing, "done": running.done, "step": race.taken, "error": running.error}
            )
            steps = race.steps[since : since + 200]
            if steps:
                since += len(steps)
                yield event("steps", [_told(s) for s in steps])
            if len(race.told) > scores:
                yield event("scores", [[at, made] for at, made in race.told[scores:]])
                scores = len(race.told)
            if len(steps) < 200 and (now != state or quiet >= 2.0):  # so that a page notices a server that is gone
                state, quiet = now, 0.0
                yield f"event: state\ndata: {now}\n\n"
            if len(steps) < 200:
                await asyncio.sleep(LOOK_S)
                quiet += LOOK_S
    finally:
        running.watched -= 1


def begun(room: RaceRoom, settings: RaceSettings, images: Any) -> dict[str, Any]:
    """A new race as the page gets it, before its first step."""
    name, running, seconds = room.start(settings, images)
    race = running.race
    return {
        "race": name,
        "layers": race.layers,
        "total_steps": race.total_steps,
        "steps_per_epoch": race.steps_per_epoch,
        "seconds": seconds,
        "networks": list(race.networks),
        "train": len(race.train),
        "seen": len(race.seen),
        "lines": lines.race(room.lab, settings, digits=images == "digits"),
    }


def routes(lab: Lab) -> APIRouter:
    """The races' requests."""
    router = APIRouter(prefix="/api/race")
    room = RaceRoom(lab)
    lab.at_end(room.close)

    @router.post("")
    async def start(request: Request) -> Response:
        asked = await json_of(request, ("settings", "images"))

        def work(watch: Watch) -> dict[str, Any]:
            settings = settings_of(asked.get("settings", {}), RaceSettings(), "race")
            return begun(room, settings, asked.get("images", "digits"))

        return streamed(work)

    @router.get("/{name}/stream")
    async def stream(name: str, since: int = 0) -> Response:
        return responding(follow(room.find(name), max(since, 0)))

    @router.post("/{name}/{action}")
    async def act(name: str, action: str, request: Request) -> dict[str, Any]:
        await json_of(request, ())
        running = room.find(name)
        if action == "play":
            running.play()
        elif action == "pause":
            running.playing = False
        elif action == "step":
            running.playing = False
            await asyncio.to_thread(running.step)
        elif action == "reset":
            await asyncio.to_thread(running.reset)
        else:
            raise unknown("action", action[:80], ("play", "pause", "step", "reset"))
        return {"step": running.race.taken, "playing": running.playing}

    return router
