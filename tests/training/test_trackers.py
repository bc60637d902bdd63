import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from PIL import Image

import skipway as package
from skipway.data.images.reading import Reading
from skipway.data.preprocess import Preprocess
from skipway.errors import InputError
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.run import Run
from skipway.spec import RunSpec
from skipway.train_spec import TRACKERS, TrainSpec
from skipway.training import trackers
from skipway.training.loop import Trainer
from skipway.training.tracker_files import KINDS, flat
from skipway.training.trackers import need_trackers, open_trackers
from skipway.training.vault import Vault

NAMES = ("tensorboard", "mlflow", "wandb")
SPEC = RunSpec(NetworkSpec(stages=(StageSpec(1, 4),)), train=TrainSpec(track=NAMES, lr=0.25))
PNG = BytesIO()
Image.new("RGB", (2, 1)).save(PNG, "png")
SUMMARY = {
    "status": "finished",
    "val_accuracy": 0.5,
    "test_accuracy": 0.625,
    "test_loss": None,
    "machine": {"cores": 2},
}


def make_run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", SPEC, ("a", "b"), Preprocess(8, (0.5,), (0.25,), Reading(1)))


def epoch(run: Run, number: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """An epoch of three steps in the JSON lines, as the loop writes it."""
    steps = [{"epoch": number, "step": s, "loss": 1 / s, "lr": 0.5 * s} for s in range(3 * number - 2, 3 * number + 1)]
    row = {"epoch": number, "val_accuracy": number / 4, "lr": 1.5 * number, "time_s": 2.0}
    run.append_lines("steps.jsonl", steps)
    run.append_lines("metrics.jsonl", [row])
    return steps, row


def expected(epochs: int) -> dict[str, list[tuple[int, float]]]:
    """What every tracker should hold: name -> (step, value)s."""
    steps, ends = range(1, 3 * epochs + 1), range(1, epochs + 1)
    return {
        "loss": [(s, 1 / s) for s in steps],
        "lr": [(s, 0.5 * s) for s in steps],
        "epoch": [(3 * e, e) for e in ends],
        "val_accuracy": [(3 * e, e / 4) for e in ends],
        "time_s": [(3 * e, 2.0) for e in ends],
    }


def in_tensorboard(run: Run) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder / "tensorboard"), {"scalars": 0, "tensors": 0, "images": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}  # pyrefly: ignore[not-iterable]


def in_mlflow(run: Run) -> dict[str, list[tuple[int, float]]]:
    client, found = mlflow_run(run)
    histories = {name: client.get_metric_history(found.info.run_id, name) for name in found.data.metrics}
    return {name: [(m.step, m.value) for m in history] for name, history in histories.items()}


def mlflow_run(run: Run) -> tuple[Any, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.folder / 'mlruns' / 'mlflow.db'}")
    [experiment] = [e.experiment_id for e in client.search_experiments() if e.name == "skipway"]
    [found] = client.search_runs([experiment])
    return client, found


def wandb_records(run: Run) -> Iterator[Any]:
    """The records of all folders of the run, by W&B's own protocol; the framing is that of LevelDB's logs."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record  # pyrefly: ignore[missing-module-attribute]

    wandb.teardown()  # its own process writes a little later
    for file in sorted(
        (run.folder / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns
    ):
        content, place, whole = file.read_bytes(), 7, b""
        while place + 7 <= len(content):
            if 32768 - place % 32768 < 7:
                place += 32768 - place % 32768  # a header does not go over the end of a block
                continue
            length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
            whole += content[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # all of it, or the last piece
                record = Record()
                record.ParseFromString(whole)
                whole = b""
                yield record


def in_wandb(run: Run) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for record in wandb_records(run):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            for name, value in items.items():
                if not name.startswith("_") and name != "curves":
                    found.setdefault(name, []).append((record.history.step.num, json.loads(value)))
    return found


READERS = {"tensorboard": in_tensorboard, "mlflow": in_mlflow, "wandb": in_wandb}


def check(run: Run, name: str, epochs: int, **more: list[tuple[int, float]]) -> None:
    found, wanted = READERS[name](run), expected(epochs) | more
    assert {n: [step for step, _ in rows] for n, rows in found.items()} == {
        n: [step for step, _ in rows] for n, rows in wanted.items()
    }
    for key, rows in wanted.items():
        assert [v for _, v in found[key]] == pytest.approx([v for _, v in rows], rel=1e-6), key


@pytest.mark.parametrize("name", NAMES)
def test_tracker_holds_what_the_json_lines_hold_and_goes_on_without_repeating(tmp_path, name, capfd):
    run = make_run(tmp_path)
    told, failed = open_trackers([name], run, resume=False)
    assert failed == []
    assert told.epoch(*epoch(run, 1)) == []
    assert told.epoch(*epoch(run, 2)) == []
    (run.folder / "curves.png").write_bytes(PNG.getvalue())
    assert told.finish({**SUMMARY, "status": "stopped", "test_accuracy": None}) == []
    check(run, name, 2)
    state = json.loads((run.folder / "trackers.json").read_text())
    again, failed = open_trackers([name], Run.open(run.folder), resume=True)
    assert failed == []
    epoch_3 = epoch(run, 3)
    assert again.epoch(*epoch_3) == again.epoch(*epoch_3) == []  # told twice, held once
    assert again.finish(SUMMARY) == []
    ends = {} if name == "wandb" else {"test_accuracy": [(9, 0.625)]}
    check(run, name, 3, **ends)
    after = json.loads((run.folder / "trackers.json").read_text())
    assert after[name] == {**state[name], "epoch": 3}
    assert capfd.readouterr() == ("", "")
    assert {path.name for path in run.folder.iterdir()} - set(os.listdir(run.folder)) == set()
    assert os.listdir() == []  # nothing beside the run folder


@pytest.mark.parametrize("name", NAMES)
def test_run_that_was_cut_off_is_caught_up(tmp_path, name):
    run = make_run(tmp_path)
    told, _ = open_trackers([name], run, resume=False)
    told.epoch(*epoch(run, 1))
    epoch(run, 2)  # its checkpoint was written, and then something broke
    told.close()
    again, failed = open_trackers([name], run, resume=True)
    assert failed == []
    again.epoch(*epoch(run, 3))
    again.finish({"status": "finished"})
    check(run, name, 3)


def test_tensorboard_has_spec_hyperparameters_and_curves(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

    run = make_run(tmp_path)
    told, _ = open_trackers(["tensorboard"], run, resume=False)
    told.epoch(*epoch(run, 1))
    (run.folder / "curves.png").write_bytes(PNG.getvalue())
    told.finish(SUMMARY)
    events = EventAccumulator(str(run.folder / "tensorboard"), {"tensors": 0, "images": 0})
    events.Reload()
    [image] = events.Images("curves")
    assert (image.step, image.width, image.height) == (3, 2, 1)
    [text] = events.Tensors("spec/text_summary")
    assert b"lr = 0.25" in text.tensor_proto.string_val[0]
    data = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    held = parse_session_start_info_plugin_data(data).hparams
    assert held["train.lr"].number_value == 0.25
    assert set(held) == set(flat(SPEC))


def test_mlflow_has_parameters_status_and_curves(tmp_path):
    run = make_run(tmp_path)
    told, _ = open_trackers(["mlflow"], run, resume=False)
    _, found = mlflow_run(run)
    assert found.info.status == "RUNNING"
    assert found.data.params == {name: str(value) for name, value in flat(SPEC).items()}
    assert found.info.run_name == "run"
    told.epoch(*epoch(run, 1))
    (run.folder / "curves.png").write_bytes(PNG.getvalue())
    told.finish({"status": "stopped"})
    client, found = mlflow_run(run)
    assert found.info.status == "KILLED"
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["curves.png"]


def test_wandb_has_config_summary_and_curves_and_is_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    run = make_run(tmp_path)
    told, _ = open_trackers(["wandb"], run, resume=False)
    told.epoch(*epoch(run, 1))
    (run.folder / "curves.png").write_bytes(PNG.getvalue())
    told.finish(SUMMARY)
    config, summary, runs = {}, {}, []
    for record in wandb_records(run):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            runs.append((record.run.run_id, record.run.project))
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if kind == "summary":
            summary |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.summary.update}
    assert runs[0] == (json.loads((run.folder / "trackers.json").read_text())["wandb"]["id"], "skipway")
    assert {name: config[name] for name in flat(SPEC)} == flat(SPEC)
    assert summary["test_accuracy"] == 0.625
    assert list((run.folder / "wandb").glob("offline-run-*/files/media/images/curves*.png"))


def test_all_at_once_in_a_process_of_ones_own_without_a_network_or_a_word(tmp_path):
    make_run(tmp_path)
    code = """
import socket, sys, warnings
from skipway.run import Run
from skipway.training.trackers import open_trackers
asked, look_up = [], socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **more: (asked.append(host), look_up(host, *rest, **more))[1]
run = Run(__import__("pathlib").Path(sys.argv[1]))
told, failed = open_trackers(("tensorboard", "mlflow", "wandb"), run, resume=False)
failed += told.epoch([{"epoch": 1, "step": 1, "loss": 1.0, "lr": 0.1}], {"epoch": 1, "val_loss": 2.0})
failed += told.finish({"status": "finished"})
from mlflow.telemetry import get_telemetry_client
from mlflow.telemetry.utils import is_telemetry_disabled
assert is_telemetry_disabled() and get_telemetry_client() is None
assert set(asked) <= {"localhost", "127.0.0.1"}, asked
assert failed == [], failed
"""
    ci = {"CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST", "MLFLOW_DISABLE_TELEMETRY", "WANDB_ERROR_REPORTING"}
    environment = {name: value for name, value in os.environ.items() if name not in ci}
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", NAMES)
def test_missing_library_is_one_command(name, monkeypatch):
    def missing(module: str) -> None:
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=rf"--track {name} needs \w+: pip install 'skipway\[{name}\]'"):
        need_trackers([name])


def test_unknown_tracker_is_refused_where_the_spec_is_made():
    assert TRACKERS == tuple(KINDS) == tuple(trackers.NEEDS) == NAMES
    with pytest.raises(
        InputError,
        match="unknown tracker in train.track 'mlflo'. Did you mean 'mlflow'\\? Known: tensorboard, mlflow, wandb",
    ):
        TrainSpec(track=("mlflo",))


class Full:
    """A tracker whose disk is full from its second epoch on."""

    id = "full"

    def __init__(self, *_: object):
        self.told = 0

    def log(self, rows: object) -> None:
        warnings.warn("theirs", stacklevel=1)
        self.told += 1
        if self.told > 1:
            raise OSError(28, "No space left on device")

    def finish(self, *_: object) -> None:
        raise AssertionError("it is left alone")


def test_one_that_fails_is_named_once_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "wandb", Full)
    run = make_run(tmp_path)
    told, failed = open_trackers(["wandb", "tensorboard"], run, resume=False)
    assert failed == []
    assert told.epoch(*epoch(run, 1)) == []
    assert told.epoch(*epoch(run, 2)) == [
        "wandb failed and is left out from here on: OSError: [Errno 28] No space left on device"
    ]
    assert told.epoch(*epoch(run, 3)) == []
    assert told.finish({"status": "finished"}) == []
    check(run, "tensorboard", 3)
    state = json.loads((run.folder / "trackers.json").read_text())
    assert (state["wandb"]["epoch"], state["tensorboard"]["epoch"]) == (2, 3)


def test_one_that_cannot_be_opened_is_named_and_the_others_go_on(tmp_path):
    run = make_run(tmp_path)
    (run.folder / "tensorboard").write_text("in the way")
    told, [failed] = open_trackers(["tensorboard", "mlflow"], run, resume=False)
    assert failed.startswith("tensorboard failed and is left out from here on: FileExistsError")
    assert told.epoch(*epoch(run, 1)) == []
    check(run, "mlflow", 1)


@pytest.mark.parametrize("text", ["{", "[]x", '{"mlflow": 3}', '{"mlflow": {"id": "a"}}'])
def test_damaged_state_is_named(tmp_path, text):
    run = make_run(tmp_path)
    run.write_text("trackers.json", text)
    with pytest.raises(InputError, match=r"trackers.json is damaged.*without it trackers begin anew"):
        open_trackers(["tensorboard"], run, resume=True)


def test_flat_spec_has_every_field_as_text_or_number():
    found = flat(SPEC)
    assert found["train.lr"] == 0.25
    assert json.loads(str(found["network.stages"]))[0]["depth"] == 1
    assert json.loads(str(found["train.track"])) == list(NAMES)
    assert all(type(value) in (str, int, float, bool) for value in found.values())


def train(photos: Path, out: Path) -> Run:
    settings = {**TINY, "train": {**TINY["train"], "precision": "fp32", "track": ["tensorboard"]}}
    return package.train(photos, settings=settings, out=out)


def test_training_reports_and_goes_on_after_a_kill_at_any_place(photos, tmp_path, monkeypatch):
    whole = train(photos, tmp_path / "whole")
    found = in_tensorboard(whole)
    assert [step for step, _ in found["loss"]] == [row["step"] for row in whole.steps()]
    assert [loss for _, loss in found["loss"]] == pytest.approx([row["loss"] for row in whole.steps()], rel=1e-6)
    last = [row["step"] for row in whole.steps() if row["epoch"] == 2][-1]
    assert [step for step, _ in found["val_accuracy"]] == [last // 2, last]
    assert found["best_epoch"] == [(last, whole.summary["best_epoch"])]
    for number, (holder, name) in enumerate([(Trainer, "_step"), (Vault, "write"), (trackers.Trackers, "epoch")]):
        out, own, calls = tmp_path / f"cut{number}", getattr(holder, name), []

        def cut(
            *arguments: Any, own: Any = own, calls: list = calls, at: int = 6 if name == "_step" else 2, **more: Any
        ) -> Any:
            calls.append(1)
            if len(calls) == at:  # in the second epoch; before its checkpoint; after it, before trackers hear of it
                raise KeyboardInterrupt
            return own(*arguments, **more)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(holder, name, cut)
            train(photos, out)
        again = train(photos, out)
        for key in ("loss", "lr", "val_accuracy", "val_loss"):
            assert in_tensorboard(again)[key] == found[key], (name, key)


def test_missing_library_leaves_no_run(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.NEEDS, "tensorboard", ("no_such_library",))
    with pytest.raises(
        InputError, match=r"--track tensorboard needs no_such_library: pip install 'skipway\[tensorboard\]'"
    ):
        train(photos, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_names_a_tracker_that_fails_and_ends_well(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(KINDS, "tensorboard", Full)
    run = train(photos, tmp_path / "run")
    assert run.finished
    assert capsys.readouterr().out.count("tensorboard failed and is left out from here on: OSError") == 1
