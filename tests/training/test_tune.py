"""The search for settings: what may be searched, the study that outlives its processes, trials as runs."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from conftest import TINY, TINY_FLAGS, make_photos
from hypothesis import given
from hypothesis import strategies as st

import skipway as package
from skipway.errors import InputError
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.run import Run
from skipway.spec import RunSpec, to_toml
from skipway.training import trial as trial_module
from skipway.training.progress import StopRequested
from skipway.training.search import Searched, laid_over, parse, usual, value_in
from skipway.training.study import claim, opened
from skipway.training.tune import _order, tune

SPEC = RunSpec(NetworkSpec((StageSpec(1, 4),)))
LR = ["lr=1e-3..1:log"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=1e-3..1:log", Searched("lr", (), 0.001, 1.0, 0, True)),
        ("--weight-decay=0..1e-2", Searched("weight_decay", (), 0.0, 0.01)),
        ("batch_size=32..256:step32", Searched("batch_size", (), 32, 256, 32)),
        ("batch_size=4..17:step=4", Searched("batch_size", (), 4, 16, 4)),
        ("label_smoothing=0..0.35:step0.1", Searched("label_smoothing", (), 0.0, 0.3, 0.1)),
        ("optimizer=sgd, adamw", Searched("optimizer", ("sgd", "adamw"))),
        ("flip=true,false", Searched("flip", (True, False))),
        ("epochs=5,10,1e2", Searched("epochs", (5, 10, 100))),
        ("momentum=0.9,0.95", Searched("momentum", (0.9, 0.95))),
        ("act=relu,silu", Searched("act", ("relu", "silu"))),
        ("network=resnet20,resnet32", Searched("network", ("resnet20", "resnet32"))),
        ("keep_hard=0.5..1", Searched("keep_hard", (), 0.5, 1.0)),
    ],
)
def test_search_is_read_and_written_again(text, expected):
    [made] = parse([text], SPEC)
    assert made == expected
    assert parse([made.text], SPEC) == (made,)
    assert made.distribution()._contains(made.distribution().to_internal_repr(made.high or made.choices[-1]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr", "NAME=LOW..HIGH"),
        ("lr=", "NAME=LOW..HIGH"),
        ("learning_rat=1..2", "unknown field to search 'learning_rat'"),
        ("weight_decai=0..1", "Did you mean 'weight_decay'"),
        ("lr=1..0.1", "from the lower to the higher"),
        ("lr=0..1:log", "begins above 0"),
        ("lr=1..2:log:step1", "has no step"),
        ("lr=1..2:lo", "Did you mean 'log'"),
        ("lr=1..2:step0", "step must be above 0"),
        ("lr=1..2:step3", "fit into the range"),
        ("lr=-1..1", "train.lr must be at least 0"),
        ("lr=a..b", "train.lr must be a number, got 'a'"),
        ("lr=nan..1", "the lower to the higher|a number"),
        ("momentum=0..1", "train.momentum must be between 0 and 0.9999"),
        ("epochs=1.5,2", "train.epochs must be a whole number"),
        ("optimizer=sgd,adamm", "unknown train.optimizer 'adamm'"),
        ("optimizer=a..b", "has no range; name its values"),
        ("flip=yes,no", "true or false"),
        ("milestones=0.5,0.6", "is a list"),
        ("optimizer=sgd", "one value only; --optimizer sgd sets it"),
        ("optimizer=sgd,sgd", "a value twice"),
        ("network=resnet20,resnet21", "unknown network 'resnet21'"),
        ("path=a,b", "unknown field"),
        ("num_classes=2,3", "unknown field"),
    ],
)
def test_bad_search_is_refused(text, words):
    with pytest.raises(InputError, match=words):
        parse([text], SPEC)


def test_a_field_named_twice_is_refused_and_foreign_networks_say_why():
    with pytest.raises(InputError, match="names lr twice"):
        parse(["lr=1..2", "lr=2..3"], SPEC)
    foreign = replace(SPEC, network=package.ForeignSpec("timm:test_vit"))
    with pytest.raises(InputError, match="act cannot be changed"):
        parse(["act=relu,silu"], foreign)


@given(st.data())
def test_every_value_drawn_lies_in_the_search_and_in_the_spec(data):
    texts = [
        "lr=1e-3..1:log",
        "batch_size=4..17:step4",
        "epochs=1..9:log",
        "optimizer=sgd,adamw",
        "momentum=0..0.9:step0.2",
    ]
    for field in parse(texts, SPEC):
        shape = field.distribution()
        if field.choices:
            value = data.draw(st.sampled_from(field.choices))
        else:
            value = shape.to_external_repr(data.draw(st.floats(shape.low, shape.high)))
            value = field.low + round((value - field.low) / field.step) * field.step if field.step else value
        assert field.has(value)
        assert value_in(laid_over(SPEC, {field.name: value}), field.name) == value
        assert not field.has("other")
        assert field.choices or not field.has(field.high * 2)


def test_networks_searched_keep_the_fields_that_were_asked_for():
    spec = laid_over(SPEC, {"network": "resnet32", "lr": 0.5}, {"act": "silu"})
    assert isinstance(spec.network, NetworkSpec)
    assert (spec.network.name, spec.network.act, spec.train.lr) == ("resnet32", "silu", 0.5)


def test_usual_search_is_around_the_settled_rate():
    rate, decay, smoothing = usual(laid_over(SPEC, {"lr": 0.2}))
    assert (rate.low, rate.high, rate.log) == (0.02, 2.0, True)
    assert decay.has(5e-4)
    assert smoothing.has(0.0)


# The study, with a stand-in for training: the score is a function of the rate and rises over the epochs.


class Fake:
    """Stands in for `train`. `before` is called with (run name, epoch) ahead of each epoch."""

    def __init__(self) -> None:
        self.trained: list[tuple[str, int]] = []
        self.limits: list[float] = []
        self.before: Any = lambda run, epoch: None

    def __call__(self, spec, *, out, console, trust_code, hooks) -> Run:
        assert not hooks.score_test
        self.limits.append(hooks.max_minutes)
        out.mkdir(parents=True, exist_ok=True)
        run = Run(out)
        rows = run.metrics()
        run.write_text("spec.toml", to_toml(spec))
        status = "finished"
        try:
            for epoch in range(len(rows) + 1, spec.train.epochs + 1):
                self.before(out.name, epoch)
                self.trained.append((out.name, epoch))
                row = {"epoch": epoch, "val_accuracy": epoch / 10 * (1 - spec.train.lr), "val_loss": 1.0}
                run.append_lines("metrics.jsonl", [row])
                hooks.on_epoch(row)
        except StopRequested:
            status = "stopped"
        run.write_text("summary.json", json.dumps({"status": status}))
        return run


@pytest.fixture
def fake(monkeypatch) -> Fake:
    made = Fake()
    monkeypatch.setattr(trial_module, "train", made)
    return made


def search(photos: Path, **options: Any) -> package.Tuning:
    asked: dict[str, Any] = {"search": LR, "trials": 4, "study": "s.db", **options}
    return tune(photos, settings=TINY, **asked)


def test_first_trial_is_the_settings_as_they_are_and_the_best_has_the_highest_score(photos, fake):
    found = search(photos)
    assert [t.state for t in found.trials] == ["finished"] * 4
    assert found.trials[0].values == {"lr": 0.1}
    assert [t.score for t in found.trials] == [pytest.approx(0.2 * (1 - t.values["lr"])) for t in found.trials]
    assert found.best is not None
    assert found.best.values["lr"] == min(t.values["lr"] for t in found.trials)
    assert [t.run for t in found.trials] == [f"s/trial-{i}" for i in range(4)]
    assert Run(Path("s/trial-2")).spec.train.lr == found.trials[2].values["lr"]


def test_the_limit_is_the_whole_searchs(photos, fake):
    fake.before = lambda run, epoch: time.sleep(0.05)
    settings = TINY | {"safety": {"max_minutes": 0.01}}
    found = tune(photos, settings=settings, search=LR, trials=40, study="s.db")
    assert found.stopped
    assert len(found.trials) < 40
    assert all(0 < limit <= 0.01 for limit in fake.limits)
    assert fake.limits == sorted(fake.limits, reverse=True)
    fake.limits.clear()
    assert not search(photos, trials=1, study="t.db").stopped
    assert fake.limits == [0.0]


def test_going_on_gives_what_an_uninterrupted_search_gives(photos, fake):
    whole = search(photos, trials=7)
    assert len(search(photos, trials=3, study="parts.db").trials) == 3
    parts = search(photos, trials=7, study="parts.db")
    assert [t.values for t in parts.trials] == [t.values for t in whole.trials]
    done = len(fake.trained)
    assert search(photos, trials=7) == whole  # nothing to do
    assert len(fake.trained) == done


def test_trials_below_the_median_end_early_and_their_scores_do_not_win(photos, fake):
    texts = ["lr=0.1,0.2,0.3,0.4,0.5,0.9", "weight_decay=0..1"]
    found = search(photos, search=texts, trials=16)
    pruned = [t for t in found.trials if t.state == "pruned"]
    assert pruned
    assert all(t.epochs == 1 for t in pruned)
    assert all(t.epochs == 2 for t in found.ranked)
    for trial in pruned:
        before = [t for t in found.trials[: found.trials.index(trial)] if t.state == "finished"]
        assert len(before) >= 5
        assert trial.values["lr"] > median(t.values["lr"] for t in before)
    assert not any(
        t.state == "pruned" for t in search(photos, search=["epochs=1,2", *LR], trials=9, study="e.db").trials
    )


def test_values_that_were_tried_are_not_run_again(photos, fake):
    found = search(photos, search=["optimizer=sgd,adamw"], trials=8)
    assert sorted({run for run, _ in fake.trained}) == sorted(
        t.run.split("/")[1] for t in found.trials if not t.same_as
    )
    assert len(found.ranked) == 2
    assert len(found.trials) == 8
    assert {t.score for t in found.trials if t.same_as} <= {t.score for t in found.ranked}


def test_failed_trials_say_why_and_the_others_go_on(photos, fake):
    def fail(run, epoch):
        if run == "trial-1":
            raise InputError("the loss is no longer a finite number")

    fake.before = fail
    found = search(photos)
    assert [t.state for t in found.trials] == ["finished", "failed", "finished", "finished"]
    assert found.trials[1].reason == "the loss is no longer a finite number"
    fake.before = lambda *_: (_ for _ in ()).throw(InputError("no use"))
    with pytest.raises(InputError, match="all 2 trials failed; t/trial-0: no use"):
        search(photos, trials=2, study="t.db")


@pytest.mark.parametrize("stop", [StopRequested, KeyboardInterrupt])
def test_stopped_search_goes_on_with_the_run_that_was_under_way(photos, fake, stop):
    def halt(run, epoch):
        if (run, epoch) == ("trial-1", 2):
            raise stop

    fake.before = halt
    found = search(photos)
    assert found.stopped
    assert [t.state for t in found.trials] == ["finished", "waiting"]
    fake.before = lambda *_: None
    found = search(photos)
    assert not found.stopped
    assert [Path(t.run).name for t in found.trials] == ["trial-0", "trial-1", "trial-3", "trial-4"]
    assert fake.trained.count(("trial-1", 1)) == 1  # its first epoch was not trained again
    assert all(t.state == "finished" and t.epochs == 2 for t in found.trials)


def test_trials_of_dead_processes_are_run_again_three_times(photos, fake):
    order = _order(_asked(photos), {}, LR, 2, "s.db")
    for _ in range(3):
        with opened(order) as study:
            claimed = claim(study, order)
            assert claimed is not None
            assert claimed.run == "trial-0"
            claimed.lock.close()  # as the system does when the process dies
    found = search(photos, trials=2)
    assert [t.state for t in found.trials] == ["failed", "finished"]
    assert "died" in found.trials[0].reason


def test_trials_of_living_processes_are_left_alone(photos, fake):
    order = _order(_asked(photos), {}, LR, 3, "s.db")
    with opened(order) as study:
        claimed = claim(study, order)
        assert claimed is not None
        found = search(photos, trials=3)
        assert [t.state for t in found.trials] == ["running", "finished", "finished"]
        assert claim(study, order) is None
        claimed.lock.close()


def _asked(photos: Path) -> RunSpec:
    from skipway.training.asked import asked_spec

    return asked_spec(photos, settings=TINY)


def test_other_settings_searches_and_data_are_refused(photos, fake, tmp_path):
    search(photos, trials=1)
    with pytest.raises(InputError, match=r"s\.db holds a search with other settings \(train\.epochs: 2 -> 3\)"):
        tune(photos, settings=TINY | {"train": TINY["train"] | {"epochs": 3}}, search=LR, study="s.db")
    with pytest.raises(InputError, match=r"s\.db searches lr=0\.001\.\.1\.0:log, not lr=0\.01\.\.1\.0:log"):
        search(photos, search=["lr=1e-2..1:log"])
    search(photos, trials=1)  # refused ones changed nothing
    make_photos(photos, num=21)
    with pytest.raises(InputError, match="changed since"):
        search(photos, trials=1)


def test_files_that_are_no_study_are_only_read(photos, fake):
    Path("text.db").write_text("mine")
    with pytest.raises(InputError, match=r"text\.db is not a study"):
        search(photos, study="text.db")
    assert Path("text.db").read_text() == "mine"
    with sqlite3.connect("other.db") as base:
        base.execute("create table cats (name text)")
    base.close()
    before = Path("other.db").read_bytes()
    with pytest.raises(InputError, match=r"other\.db is not a study"):
        search(photos, study="other.db")
    assert Path("other.db").read_bytes() == before
    with pytest.raises(InputError, match="no such folder: nowhere"):
        search(photos, study="nowhere/s.db")
    with pytest.raises(InputError, match=r"ends in \.db"):
        search(photos, study="study")
    search(photos, trials=1)
    Path("s.db").unlink()
    with pytest.raises(InputError, match="trials of a study that is gone"):
        search(photos)


def test_without_optuna_the_one_command_is_said(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'skipway\[tune\]'"):
        search(photos)


# With training itself.


def test_command_searches_draws_and_touches_no_test_split(skipway, tmp_path):
    photos = make_photos(tmp_path / "photos", splits=("train", "test"))
    flags = [photos, *TINY_FLAGS, "--trials", "3", "--search", "lr=1e-2..1:log", "--search", "batch_size=8,9999"]
    result = skipway("tune", *flags)
    assert result.code == 0, result.err
    folder = Path("runs/tune-photos-custom")
    assert (folder / "tune.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(skipway("tune", *flags, "--json").out)
    assert len(found["trials"]) == 3
    for trial in found["trials"]:
        if trial["state"] == "failed":
            assert trial["values"]["batch_size"] == 9999
            assert "larger than the" in trial["reason"]
            continue
        run = Run.open(trial["run"])
        assert trial["score"] == max(row["val_accuracy"] for row in run.metrics())
        assert run.summary["test_accuracy"] is None
        assert run.spec.train.lr == trial["values"]["lr"]
    best = found["best"]["run"]
    assert f"best: {best}" in result.out
    assert skipway("evaluate", best).code == 0
    assert skipway("tune", *flags[:-4], "--search", "lr=5..1").code == 2


@pytest.mark.faults
def test_killed_command_goes_on_from_its_last_epoch(skipway, photos):
    flags = [str(photos), *["60" if flag == "2" else flag for flag in TINY_FLAGS]]  # epochs
    flags += ["--trials", "1", "--search", *LR, "--study", "k.db"]
    rows, until = Path("k/trial-0/metrics.jsonl"), time.monotonic() + 60
    with subprocess.Popen([sys.executable, "-m", "skipway", "tune", *flags], stdout=subprocess.DEVNULL) as process:
        while not (rows.exists() and len(rows.read_text().splitlines()) > 2):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    kept = rows.read_text().splitlines()[:2]
    found = json.loads(skipway("tune", *flags, "--json").out)
    assert [(t["state"], t["epochs"], t["run"]) for t in found["trials"]] == [("finished", 60, "k/trial-0")]
    assert rows.read_text().splitlines()[:2] == kept  # with their times: they were not trained again


@pytest.mark.slow
def test_processes_share_the_trials(photos):
    found = search(photos, trials=4, jobs=2)
    assert [t.state for t in found.trials] == ["finished"] * 4
    assert len({t.run for t in found.trials}) == 4
