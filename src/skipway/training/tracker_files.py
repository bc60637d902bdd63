"""What each tracker writes: TensorBoard's events, MLflow's data base, the folders of W&B's offline mode.

The libraries are imported where one is opened (trackers.py has asked for them before).
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from skipway.run import Run
from skipway.spec import RunSpec, to_dict

Row = tuple[int, dict[str, float]]  # step, name -> value


class Tracker(Protocol):
    """One library's record of a run. `id` is the name that it goes on by."""

    id: str

    def log(self, rows: Sequence[Row]) -> None:
        """Add values; they are on disk, or on their way there, when this returns."""

    def finish(self, status: str, rows: Sequence[Row], picture: Path | None) -> None:
        """The end: "finished", "stopped" or "failed" (it may go on), last values, and the curves."""


def flat(spec: RunSpec) -> dict[str, str | float | bool]:
    """Every field as section.field; what is neither text nor a number is JSON."""
    found: dict[str, str | float | bool] = {}
    for section, value in to_dict(spec).items():
        fields = value.items() if isinstance(value, dict) else ()
        for name, item in ((f"{section}.{name}", item) for name, item in fields) if fields else [(section, value)]:
            found[name] = item if isinstance(item, (str, int, float)) else json.dumps(item)
    return found


class _TensorBoard:
    """An event file for each time that the run is taken up. It is written here and now, so that errors come where they
    arise (SummaryWriter writes in a thread of its own, which dies with a traceback)."""

    def __init__(self, run: Run, _: str):
        from torch.utils.tensorboard import summary

        self.id, self._make, self._spec = "", summary, flat(run.spec)
        folder = run.folder / "tensorboard"
        folder.mkdir(exist_ok=True)
        begun = len(list(folder.iterdir()))
        self._path = folder / f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}.{begun}"
        text = "    " + run.read_text("spec.toml").replace("\n", "\n    ")  # Markdown for: as it is
        spec = [] if begun else [{"summary": summary.text("spec", text)}]
        self._write([{"file_version": "brain.Event:2"}, *spec])

    def log(self, rows: Sequence[Row]) -> None:
        self._write(
            {"step": step, "summary": self._make.scalar(name, value)}
            for step, values in rows
            for name, value in values.items()
        )

    def finish(self, status: str, rows: Sequence[Row], picture: Path | None) -> None:
        self.log(rows)
        step, values = rows[-1]
        self._write({"summary": part} for part in self._make.hparams(self._spec, values))
        if picture:
            pixels = np.asarray(Image.open(picture).convert("RGB"))
            self._write([{"step": step, "summary": self._make.image("curves", pixels, dataformats="HWC")}])

    def _write(self, events: Iterable[dict[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyrefly: ignore[missing-module-attribute]
        from torch.utils.tensorboard import RecordWriter

        with self._path.open("ab") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(Event(wall_time=time.time(), **event).SerializeToString())


class _MLflow:
    """One run of one experiment, in an SQLite file: `mlflow ui --backend-store-uri sqlite:///RUN/mlruns/mlflow.db`."""

    def __init__(self, run: Run, known: str):
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._folder = folder = run.folder.absolute() / "mlruns"
        folder.mkdir(exist_ok=True)
        self._client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        if known:
            self.id = known
            self._client.update_run(known, status="RUNNING")
            return
        there = self._client.get_experiment_by_name("skipway")
        artifacts = (folder / "artifacts").as_uri()
        number = there.experiment_id if there else self._client.create_experiment("skipway", artifacts)
        self.id = self._client.create_run(number, run_name=run.folder.absolute().name).info.run_id
        params = [Param(name, str(value)[:6000]) for name, value in flat(run.spec).items()]
        for start in range(0, len(params), 100):  # as many as it takes at a time
            self._client.log_batch(self.id, params=params[start : start + 100])

    def log(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 10**6
        metrics = [Metric(name, value, now, step) for step, values in rows for name, value in values.items()]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self.id, metrics=metrics[start : start + 1000])

    def finish(self, status: str, rows: Sequence[Row], picture: Path | None) -> None:
        self.log(rows)
        here = self._client.get_run(self.id).info.artifact_uri.startswith(self._folder.as_uri())
        if picture and here:  # a run folder that was moved has its old place in there
            self._client.log_artifact(self.id, str(picture))
        self._client.set_terminated(self.id, {"finished": "FINISHED", "stopped": "KILLED"}.get(status, "FAILED"))


class _WandB:
    """A folder for each time that the run is taken up, all of one run id: `wandb sync --append RUN/wandb/offline-*`."""

    def __init__(self, run: Run, known: str):
        import wandb

        self._run = wandb.init(
            project="skipway",
            name=run.folder.absolute().name,
            id=known or uuid.uuid4().hex[:8],
            resume="allow" if known else None,
            config=flat(run.spec),
            dir=str(run.folder),
            reinit="create_new",  # beside a run of the user's own
            settings=wandb.Settings(
                mode="offline",
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                symlink=False,
            ),
        )
        self.id = self._run.id

    def log(self, rows: Sequence[Row]) -> None:
        for step, values in rows:
            self._run.log(values, step=step)

    def finish(self, status: str, rows: Sequence[Row], picture: Path | None) -> None:
        import wandb

        step, values = rows[-1]
        self._run.summary.update(values)
        if picture:
            self._run.log({"curves": wandb.Image(str(picture))}, step=step + 1)
        self._run.finish(exit_code=int(status == "failed"))


KINDS: dict[str, Callable[[Run, str], Tracker]] = {"tensorboard": _TensorBoard, "mlflow": _MLflow, "wandb": _WandB}
