"""Stopping and going on: in the middle of an epoch, in validation, at the end; what may change and what may not."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_FLAGS, newest
from test_loop import quiet, run_tiny, same, tiny, weights  # pyrefly: ignore[missing-import]

import skipway as package
from skipway.errors import InputError
from skipway.run import Run
from skipway.training import ending
from skipway.training.loop import Trainer
from skipway.training.progress import StopRequested, Stops
from skipway.training.saver import Saver
from skipway.training.vault import Vault


def all_same(a: Run, b: Run) -> bool:
    """Weights, everything in the last checkpoint, and every step."""
    return same(weights(a), weights(b)) and same(newest(a.folder), newest(b.folder)) and a.steps() == b.steps()


def signal_in(monkeypatch: pytest.MonkeyPatch, holder: Any, name: str, call: int) -> None:
    """SIGTERM while that function is called for the `call`-th time."""
    own, calls = getattr(holder, name), [0]

    def signalled(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return own(*arguments, **named)

    monkeypatch.setattr(holder, name, signalled)


@pytest.mark.parametrize(
    ("holder", "name", "call", "place"),
    [
        (Trainer, "_step", 6, "epoch-00001-batch-0000002"),  # in the middle of the second epoch of four steps
        (Trainer, "_step", 4, "epoch-00000-batch-0000004"),  # in its last step: before validation
        (Trainer, "_validate", 1, "epoch-00000-batch-0000004"),
        (ending, "score_with_tta", 1, "epoch-00002-batch-0000000"),  # while the end is scored
    ],
)
def test_stopped_anywhere_it_goes_on_to_the_same_bits(photos, tmp_path, monkeypatch, holder, name, call, place):
    whole = run_tiny(photos, tmp_path / "whole")
    with monkeypatch.context() as patch:
        signal_in(patch, holder, name, call)
        cut = run_tiny(photos, tmp_path / "cut")
    assert cut.summary["status"] == "stopped"
    found = Vault(cut.folder).find()
    assert found.folder is not None
    assert found.folder.name == place
    assert package.load(cut.folder).predict(photos / "ants" / "000.png")[0].names
    again = package.resume(cut, console=quiet())
    assert again.finished
    assert all_same(whole, again)


def test_the_clock_stops_a_run(skipway, photos):
    result = skipway("train", photos, *TINY_FLAGS, "--max-minutes", "0.000001", "--out", "run")
    assert result.code == 75
    assert "stopped (--max-minutes 1e-06) after" in result.out
    assert skipway("resume", "run", "--max-minutes", "0").code == 0
    assert Run.open("run").steps() == run_tiny(photos, "whole").steps()


def test_checkpoints_within_an_epoch(photos, tmp_path, monkeypatch):
    names: list[str] = []
    write = Vault.write

    def spied(self: Vault, name: str, *arguments: Any, **named: Any) -> None:
        names.append(name)
        write(self, name, *arguments, **named)

    monkeypatch.setattr(Vault, "write", spied)
    run = run_tiny(photos, tmp_path / "run", tiny(epochs=1) | {"safety": {"save_steps": 2, "keep_checkpoints": 3}})
    wanted = [f"epoch-{epoch:05d}-batch-{batch:07d}" for epoch, batch in ((0, 0), (0, 2), (1, 0))]
    assert names == Vault(run.folder).names() == wanted
    names.clear()
    run_tiny(photos, tmp_path / "often", tiny(epochs=1) | {"safety": {"save_minutes": 1e-9}})
    assert len(names) == 5


def test_what_may_change_and_what_may_not(skipway, photos, monkeypatch):
    with monkeypatch.context() as patch:
        signal_in(patch, Trainer, "_step", 6)
        assert skipway("train", photos, *TINY_FLAGS, "--out", "run").code == 75
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    refused = skipway("train", photos, *TINY_FLAGS, "--out", "run", "--seed", "3", "--momentum", "0.8")
    assert refused.code == 2
    assert "train.momentum: 0.9 -> 0.8; train.seed: 0 -> 3" in refused.err
    with pytest.raises(InputError, match=r"other settings \(train.lr: 0.1 -> 0.2\)"):
        package.resume("run", settings={"train": {"lr": 0.2}}, console=quiet())
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    gone_on = skipway("resume", "run", "--epochs", "3")
    assert gone_on.code == 0
    assert "changed since the run began: train.epochs: 2 -> 3" in gone_on.out
    assert len(Run.open("run").metrics()) == 3
    assert Run.open("run").spec.train.epochs == 3
    finished = skipway("resume", "run", "--epochs", "9")
    assert finished.code == 0
    assert "is finished with other settings" in finished.out
    assert skipway("resume", "nowhere").code == 2


def test_a_save_does_not_hold_up_training(photos, tmp_path, monkeypatch):
    """While a slow disk is written to, steps go on; what is written is what was when the save began."""
    busy, moved_on, steps_meanwhile = threading.Event(), threading.Event(), [0]
    write, step = Vault.write, Trainer._step

    def slow(self: Vault, *arguments: Any, **named: Any) -> None:
        if threading.current_thread() is not threading.main_thread() and not moved_on.is_set():
            busy.set()
            moved_on.wait(30)  # a disk that has not done before two steps more are
            busy.clear()
        write(self, *arguments, **named)

    def counted(self: Trainer, *arguments: Any) -> Any:
        steps_meanwhile[0] += busy.is_set()
        if steps_meanwhile[0] == 2:
            moved_on.set()
        return step(self, *arguments)

    whole = run_tiny(photos, tmp_path / "whole", tiny(epochs=3))
    monkeypatch.setattr(Vault, "write", slow)
    monkeypatch.setattr(Trainer, "_step", counted)
    run = run_tiny(photos, tmp_path / "run", tiny(epochs=3))
    assert moved_on.is_set()
    assert all_same(whole, run)


def test_saver_raises_what_its_job_raised():
    saver = Saver()
    saver.put(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        saver.wait()
    saver.wait()
    done: list[int] = []
    saver.put(lambda: (time.sleep(0.05), done.append(1)))
    saver.put(lambda: None)  # waits for the one before
    assert done == [1]
    saver.close()


def test_all_signals_ask_for_a_stop():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        with Stops() as stop:
            assert not stop.asked()
            os.kill(os.getpid(), number)
            assert stop.asked()
            assert stop.why == signal.Signals(number).name


class Circle:
    """Processes that agree: what the others ask for at each meeting, as the largest flag of all."""

    def __init__(self, count: int, others: list[int]):
        self.count, self.others, self.met = count, others, 0

    def agreed(self, flag: int) -> int:
        self.met += 1
        return max(flag, self.count if self.met == 1 else self.others[self.met - 2])


@pytest.mark.parametrize(("own", "most"), [(3, 3), (2, 3), (0, 3), (3, 2)])
def test_watched_batches_meet_as_often_as_the_others_have_some(own, most):
    with Stops() as stop:
        circle = Circle(most, [0] * 9)
        assert list(stop.watch(range(own), own, circle)) == list(range(own))  # pyrefly: ignore[bad-argument-type]
        assert circle.met == 1 + max(own, most)


def test_a_stop_asked_for_elsewhere_ends_validation_at_the_same_batch():
    seen = []
    with Stops() as stop, pytest.raises(StopRequested, match="as another process was asked to"):
        for batch in stop.watch(range(9), 9, Circle(9, [0, 0, 1])):  # pyrefly: ignore[bad-argument-type]
            seen.append(batch)
    assert seen == [0, 1]


def test_a_run_killed_between_weights_and_checkpoint_makes_them_again(photos, tmp_path, monkeypatch):
    """The best weights are written first, so that no checkpoint is ahead of them."""
    whole = run_tiny(photos, tmp_path / "whole")
    with monkeypatch.context() as patch:
        write, calls = Vault.write, [0]

        def cut(self: Vault, *arguments: Any, **named: Any) -> None:
            calls[0] += 1
            if calls[0] == 3:
                raise KeyboardInterrupt
            write(self, *arguments, **named)

        patch.setattr(Vault, "write", cut)
        with pytest.raises(KeyboardInterrupt):
            run_tiny(photos, tmp_path / "cut")
    assert Run.open(tmp_path / "cut").metrics()[-1]["epoch"] == 2
    assert all_same(whole, run_tiny(photos, tmp_path / "cut"))


def test_time_spent_saving_is_told(photos, tmp_path):
    run = run_tiny(photos, tmp_path / "run")
    assert 0 <= run.summary["saving_s"] < 60
