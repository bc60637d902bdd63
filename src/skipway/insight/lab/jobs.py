"""Experiments in the background: one at a time, each can be cancelled, and shows what it has so far."""

import asyncio
import dataclasses
import secrets
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from skipway.errors import InputError, unknown
from skipway.insight.experiment import Experiment, perform
from skipway.insight.experiments import EXPERIMENTS, find_experiment
from skipway.insight.lab import lines
from skipway.insight.lab.asked import json_of, settings_of
from skipway.insight.lab.guard import PICTURE_POLICY
from skipway.insight.lab.state import Lab
from skipway.insight.lab.stream import event, in_thread, outcome, responding
from skipway.insight.lab.tables import csv_of
from skipway.insight.plain import to_plain, to_text
from skipway.insight.style import svg
from skipway.insight.watch import Cancelled, Watch

KEPT = 32  # jobs, the last ones
BUDGETS_S = (20.0, 60.0, 300.0)  # the first in which an experiment can be done is what its card offers
LOOK_S = 0.2
UNDER_WAY = ("waiting", "running")


@dataclasses.dataclass
class Job:
    """An experiment under way.

    Args:
        experiment, settings: what is done.
    """

    experiment: Experiment
    settings: Any
    state: str = "waiting"  # running, result, error, cancelled
    share: float = 0.0
    error: str = ""
    result: Any = None
    version: int = 0  # of the result
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)

    def take(self, result: Any) -> None:
        """What there is so far."""
        self.result = result
        self.version += 1


class Jobs:
    """The experiments of the page."""

    def __init__(self, lab: Lab):
        self.lab = lab
        self.jobs: OrderedDict[str, Job] = OrderedDict()
        self._drawing = threading.Lock()  # matplotlib draws one at a time
        self._drawn: OrderedDict[tuple[str, int], str] = OrderedDict()

    def start(self, experiment: Experiment, settings: Any) -> str:
        """Begin; it waits for those before."""
        name = secrets.token_hex(8)
        self.jobs[name] = job = Job(experiment, settings)
        in_thread(lambda: self._run(job))
        while len(self.jobs) > KEPT:
            self.jobs.popitem(last=False)[1].stop.set()
        return name

    def _run(self, job: Job) -> None:
        def told(share: float) -> None:
            job.share = share

        def work() -> Any:
            while not self.lab.subject_lock.acquire(timeout=0.2):
                if job.stop.is_set():
                    raise Cancelled
            try:
                job.state = "running"
                watch = Watch(told, job.take, job.stop.is_set)
                return perform(job.experiment, self.lab.subject, job.settings, watch=watch)
            finally:
                self.lab.subject_lock.release()

        kind, value = outcome(work)
        if kind == "result":
            job.take(value)
            job.share = 1.0
        job.error = value if kind == "error" else ""
        job.state = kind

    def close(self) -> None:
        """Stop all of them."""
        for job in self.jobs.values():
            job.stop.set()

    def find(self, name: str) -> Job:
        """Raises InputError where it is not kept (any more)."""
        if name not in self.jobs:
            raise InputError("that experiment is not kept any more: run it again")
        return self.jobs[name]

    def result(self, name: str) -> tuple[Job, Any]:
        """A job and what it has so far. Raises InputError where it has nothing yet."""
        job = self.find(name)
        if job.result is None:
            raise InputError("there is nothing to show yet")
        return job, job.result

    def drawn(self, name: str) -> str:
        """The picture as SVG."""
        job, result = self.result(name)
        with self._drawing:
            key = name, job.version
            if key not in self._drawn:
                self._drawn[key] = svg(job.experiment.draw(result))
            while len(self._drawn) > KEPT:
                self._drawn.popitem(last=False)
            return self._drawn[key]


def card(lab: Lab, experiment: Experiment) -> dict[str, Any]:
    """An experiment as its card begins."""
    settings, seconds = None, 0.0
    for seconds in BUDGETS_S:
        settings = experiment.fit(lab.pace, seconds)
        if settings is not None:
            break
    return {
        "name": experiment.name,
        "title": experiment.title,
        "paper": experiment.paper,
        "claim": experiment.claim,
        "fits": settings is not None,
        "seconds": seconds,
        "settings": to_plain(experiment.settings if settings is None else settings),
    }


async def follow(jobs: dict[str, Job]) -> AsyncIterator[str]:
    """Jobs as events, in one stream, for a browser holds only six connections: "state" with each one's share,
    "partial" with what its result says, at its end how it ended."""
    told: dict[str, dict[str, Any]] = {}
    versions = dict.fromkeys(jobs, 0)
    while len(told) < len(jobs) or any(now["state"] in UNDER_WAY for now in told.values()):
        for name, job in jobs.items():
            now = {"job": name, "state": job.state, "share": job.share, "error": job.error}
            if told.get(name) == now:
                continue
            if job.version != versions[name]:
                versions[name] = job.version
                kind, reading = await asyncio.to_thread(outcome, lambda job=job: job.experiment.read(job.result))
                if kind == "result":
                    yield event("partial", {"job": name, "version": versions[name], "reading": reading})
            yield event("state" if now["state"] in UNDER_WAY else now["state"], now)
            told[name] = now
        await asyncio.sleep(LOOK_S)


def routes(lab: Lab) -> APIRouter:
    """The experiments' requests."""
    router = APIRouter(prefix="/api")
    jobs = Jobs(lab)
    lab.at_end(jobs.close)

    @router.get("/experiments")
    def listed() -> list[dict[str, Any]]:
        return [card(lab, experiment) for experiment in EXPERIMENTS.values()]

    @router.post("/experiments/{name}")
    async def start(name: str, request: Request) -> dict[str, str]:
        experiment = find_experiment(name[:80])
        asked = await json_of(request, ("settings",))
        settings = settings_of(asked.get("settings", {}), experiment.settings, experiment.name)
        return {"job": jobs.start(experiment, settings), "lines": lines.experiment(lab, name, settings)}

    @router.get("/jobs/stream")
    async def stream(jobs_: Annotated[str, Query(alias="jobs")]) -> Response:
        return responding(follow({name: jobs.find(name) for name in jobs_.split(",")[:KEPT]}))

    @router.post("/jobs/{name}/cancel")
    async def cancel(name: str, request: Request) -> dict[str, str]:
        await json_of(request, ())
        jobs.find(name).stop.set()
        return {"state": jobs.find(name).state}

    @router.get("/jobs/{name}/result.{kind}")
    def result(name: str, kind: str) -> Response:
        if kind == "svg":
            text, media = jobs.drawn(name), "image/svg+xml"
            return Response(text, media_type=media, headers={"Content-Security-Policy": PICTURE_POLICY})
        made = jobs.result(name)[1]
        if kind == "json":
            return Response(to_text(made), media_type="application/json")
        if kind == "csv":
            return Response(csv_of(made), media_type="text/csv")
        raise unknown("kind", kind[:80], ("svg", "json", "csv"))

    return router
