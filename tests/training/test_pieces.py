"""How many images go through the network at a time, where a run goes on: asked for, or for want of memory."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from conftest import TINY
from test_loop import quiet, run_tiny  # pyrefly: ignore[missing-import]
from test_resume import all_same, signal_in  # pyrefly: ignore[missing-import]

import skipway as package
from skipway.errors import InputError
from skipway.run import LOCK, Run
from skipway.training import engine as engine_module
from skipway.training import place as place_module
from skipway.training.asked import asked_spec
from skipway.training.loop import Trainer
from skipway.training.pieces import engine_to_go_on
from skipway.training.place import Before, claimed
from skipway.training.plan import make_plan


def micro_of(run: Run) -> int:
    return json.loads((run.folder / "engine.json").read_text())["micro_batch"]


@pytest.fixture
def cut(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that was stopped in its second epoch."""
    with monkeypatch.context() as patch:
        signal_in(patch, Trainer, "_step", 6)
        return run_tiny(photos, tmp_path / "cut")


def test_micro_batch_may_change_when_a_run_goes_on(skipway, cut):
    said = skipway("resume", cut.folder, "--micro-batch", "3")
    assert said.code == 0, said.err
    assert "changed since the run began: speed.micro_batch: 0 -> 3" in said.out
    assert said.out.count("but the bits differ from those of a run that was not changed") == 1
    assert micro_of(cut) == cut.spec.speed.micro_batch == 3
    assert len(cut.steps()) == 8


def test_other_settings_of_speed_may_not(skipway, cut):
    assert "Unknown option" in skipway("resume", cut.folder, "--keep-hard", "0.5").err


def test_a_micro_batch_asked_for_twice_is_one_run(photos, cut, monkeypatch):
    """Killed once more after the change, it goes on in the same pieces without another word."""
    wanted = {"speed": {"micro_batch": 3}, "safety": {"save_steps": 1}}
    with monkeypatch.context() as patch:
        signal_in(patch, Trainer, "_step", 2)
        package.resume(cut, settings=wanted, console=quiet())
    again = package.resume(cut, console=quiet())
    assert (again.finished, micro_of(again)) == (True, 3)
    back = engine_to_go_on(again, make_plan(again.spec), Before(), 1)
    assert (back[0].micro_batch, back[1]) == (3, [])
    zero = dataclasses.replace(again.spec, speed=dataclasses.replace(again.spec.speed, micro_batch=0))
    assert engine_to_go_on(again, make_plan(zero), Before(), 1)[0].micro_batch == 0


@pytest.mark.parametrize(
    ("before", "kept", "images", "said"),
    [
        (Before(), 0, 0, ""),
        (Before(cut_off=True), 0, 0, ""),
        (Before(cut_off=True, short_of_memory=True), 0, 4, "the system killed the process before this one"),
        (Before(cut_off=True, short_of_memory=True), 3, 2, "the system killed the process before this one"),
        (Before(cut_off=True, short_of_memory=True), 1, 1, "with one image at a time; try a smaller --image-size"),
    ],
)
def test_pieces_after_a_kill(cut, before, kept, images, said):
    text = json.loads((cut.folder / "engine.json").read_text()) | {"micro_batch": kept}
    (cut.folder / "engine.json").write_text(json.dumps(text))
    engine, notes = engine_to_go_on(cut, make_plan(cut.spec), before, 1)
    assert engine.micro_batch == images
    assert said in " ".join(notes)
    assert len(notes) == bool(said)


def test_a_batch_that_no_longer_fits_is_cut_after_an_end_without_a_word(cut, monkeypatch):
    plan = make_plan(cut.spec)
    monkeypatch.setattr(engine_module, "memory_of", lambda _: 1)
    assert engine_to_go_on(cut, plan, Before(), 1)[0].micro_batch == 0
    engine, notes = engine_to_go_on(cut, plan, Before(cut_off=True), 1)
    assert engine.micro_batch == 1
    assert "ended without a word" in notes[0]


def test_a_killed_run_whose_batch_fits_keeps_its_bits(photos, tmp_path, cut):
    whole = run_tiny(photos, tmp_path / "whole")
    (cut.folder / LOCK).write_text(json.dumps({"group": place_module.group_name(), "kills": place_module.kills()}))
    assert all_same(whole, package.resume(cut, console=quiet()))


def test_a_lock_that_was_left_tells_how(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setattr(place_module, "group_name", lambda: "here")
    monkeypatch.setattr(place_module, "kills", lambda: 2)
    with claimed(folder) as before:
        assert before == Before()
        left = (folder / LOCK).read_bytes()
    assert not folder.joinpath(LOCK).exists()
    for kills, group, wanted in (
        (2, "here", Before(cut_off=True)),
        (3, "here", Before(cut_off=True, short_of_memory=True)),
        (3, "there", Before(cut_off=True)),
    ):
        (folder / LOCK).write_bytes(left)
        monkeypatch.setattr(place_module, "kills", lambda kills=kills: kills)
        monkeypatch.setattr(place_module, "group_name", lambda group=group: group)
        with claimed(folder) as before:
            assert before == wanted
            assert json.loads((folder / LOCK).read_text()) == {"group": group, "kills": kills}
    for text in ("[]", "{", '{"group": 1}', "\0"):
        (folder / LOCK).write_text(text)
        with claimed(folder) as before:
            assert before == Before(cut_off=True)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_a_lock_that_is_no_file_of_ours_is_refused_and_left(tmp_path, kind):
    (tmp_path / "precious").write_text("x")
    folder = tmp_path / "run"
    folder.mkdir()
    lock = folder / LOCK
    make = {"folder": lock.mkdir, "pipe": lambda: os.mkfifo(lock), "link": lambda: lock.symlink_to("../precious")}
    make[kind]()
    with pytest.raises(InputError, match="is no file of ours; remove it"), claimed(folder):
        pass
    assert (tmp_path / "precious").read_text() == "x"


@pytest.mark.parametrize("change", [{"micro_batch": -4}, {"threads": -1}, {"threads": 10**14}])
def test_an_engine_with_numbers_that_cannot_be_is_told(photos, change):
    text = {"compiled": False, "kernels": False, "micro_batch": 4, "threads": 1} | change
    with pytest.raises(InputError, match="engine.json is damaged"):
        engine_module.engine_of(json.dumps(text), make_plan(asked_spec(photos, settings=TINY)))
