"""How training is fed: what is said of the time that it waits."""

from types import SimpleNamespace
from typing import Any

import pytest
from conftest import make_photos
from test_loop import tiny  # pyrefly: ignore[missing-import]

import skipway
from skipway.training import feeding
from skipway.training.feeding import Waiting


def clock(monkeypatch: pytest.MonkeyPatch, each: float) -> None:
    """A clock that goes on by so much at each look."""
    now = [0.0]

    def perf_counter() -> float:
        now[0] += each
        return now[0]

    monkeypatch.setattr(feeding.time, "perf_counter", perf_counter)


def waited(monkeypatch: pytest.MonkeyPatch, trained: float, *, in_memory: bool, epochs: int = 3) -> list[list[str]]:
    clock(monkeypatch, 1.0)  # a second a batch, and one to see that there is no more
    waiting, loader, said = Waiting(), SimpleNamespace(in_memory=in_memory), []
    batches: Any = range(5)
    for _ in range(epochs):
        assert list(waiting.watch(batches)) == list(range(5))
        said.append(waiting.notes(trained, loader))  # pyrefly: ignore[bad-argument-type]
    return said


def test_long_waits_are_told_once_and_not_of_the_first_epoch(monkeypatch):
    said = waited(monkeypatch, 10.0, in_memory=False)
    assert [len(notes) for notes in said] == [0, 1, 0]
    assert said[1][0].startswith("60% of the epoch's time went by waiting for images; --cache on")


def test_what_is_kept_already_cannot_be_cached(monkeypatch):
    assert waited(monkeypatch, 10.0, in_memory=True)[1] == ["60% of the epoch's time went by waiting for images"]


def test_short_waits_are_not_worth_a_word(monkeypatch):
    assert waited(monkeypatch, 100.0, in_memory=False) == [[], [], []]


def test_a_run_says_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(feeding, "SLOW", 0.0)
    skipway.train(str(make_photos(tmp_path / "photos")), settings=tiny(epochs=3), out=tmp_path / "run")
    assert capsys.readouterr().out.count("went by waiting for images") == 1
