"""The learning-rate finder: against a loss whose largest stable rate is known, and on a small run."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, TINY_FLAGS
from hypothesis import given, settings
from hypothesis import strategies as st

import skipway
from skipway.errors import InputError
from skipway.training.find_lr import LrSweep, centred, read, sweep
from skipway.training.step import Learner


def on_quadratic(curvatures: np.ndarray, rates: np.ndarray) -> LrSweep:
    """Gradient descent on sum(c w^2) / 2 from w = 1; stable while rate < 2 / max(c)."""
    w = np.ones_like(curvatures)

    def step(number: int) -> float:
        nonlocal w
        loss = float((curvatures * w**2).sum() / 2)
        w = w - rates[number] * curvatures * w
        return loss

    return read("quadratic", *sweep(step, len(rates), lambda *_: None), rates=rates.tolist())


@settings(max_examples=50, deadline=None)
@given(largest=st.floats(1e-3, 1e3), spread=st.floats(2, 1e4), steps=st.integers(60, 300))
def test_suggestion_is_stable_on_a_quadratic_and_not_timid(largest, spread, steps):
    bound = 2 / largest
    found = on_quadratic(np.geomspace(largest / spread, largest, 20), np.geomspace(bound / 1e4, bound * 1e2, steps))
    assert found.diverged
    assert found.rates[-1] > bound
    assert bound / 300 < found.suggestion < bound / 2
    assert found.steepest <= found.minimum


def test_rates_scale_with_the_inverse_of_the_curvature():
    curvatures, rates = np.geomspace(0.01, 1, 20), np.geomspace(1e-4, 100, 150)
    one, other = on_quadratic(curvatures, rates), on_quadratic(curvatures * 8, rates / 8)
    assert other.minimum == pytest.approx(one.minimum / 8)
    assert other.steepest == pytest.approx(one.steepest / 8)
    assert other.suggestion == pytest.approx(one.suggestion / 8, rel=0.05)  # two digits each


def test_steepest_is_where_a_known_curve_falls_fastest():
    rates = np.geomspace(1e-4, 10, 200)
    at = np.log10(rates)
    losses = 2 - 1 / (1 + np.exp(-4 * (at + 1.5))) + np.maximum(at + 0.75, 0) ** 2  # falls fastest at 10^-1.5
    found = read("curve", losses.tolist(), False, rates=rates.tolist())
    assert found.steepest == pytest.approx(10**-1.5, rel=0.1)
    assert found.minimum == pytest.approx(rates[losses.argmin()], rel=0.2)
    assert found.suggestion == pytest.approx(found.steepest, rel=0.05)
    assert found.why == "where the loss falls fastest"


@pytest.mark.parametrize(("fall", "share"), [(-3.5, 10), (-1.02, 3)])
def test_suggestion_stays_between_a_tenth_and_a_third_of_the_minimum(fall, share):
    at = np.linspace(-4, 0, 200)
    losses = 2 - 1 / (1 + np.exp(-9 * (at - fall))) - 0.02 * at + 4 * np.maximum(at + 0.8, 0) ** 2
    losses += 0.02 * np.abs(at + 0.8)
    found = read("curve", losses.tolist(), False, rates=(10**at).tolist())
    assert found.suggestion == pytest.approx(found.minimum / share, rel=0.05)


@pytest.mark.parametrize(
    ("losses", "taken"),
    [([2.0, 1.5, math.nan, 1.0], 2), ([1.0] * 5 + [1e6] * 9, 6), ([1.0] * 9, 9), ([1.0, math.inf], 1)],
)
def test_sweep_ends_where_the_loss_diverges(losses, taken):
    told = []
    found, diverged = sweep(losses.__getitem__, len(losses), lambda *row: told.append(row))
    assert found == losses[:taken]
    assert diverged == (taken < len(losses))
    assert told == [(i + 1, len(losses), loss) for i, loss in enumerate(found)]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.integers(1, 6))
def test_smoothing_is_the_mean_of_as_many_on_both_sides(values, half):
    expected = []
    for i in range(len(values)):
        reach = min(i, len(values) - 1 - i, half)
        expected.append(np.mean(values[i - reach : i + reach + 1]))
    assert centred(values, half) == pytest.approx(expected, abs=1e-9)


def test_what_cannot_be_read_is_said():
    rates = np.geomspace(1e-3, 1, 100).tolist()
    with pytest.raises(InputError, match=r"diverges from the first steps on, at a rate of 0\.001: try a lower --low"):
        read("x", [1.0, 2.0, 9.0], True, rates=rates)
    with pytest.raises(InputError, match=r"never fell between the rates 0\.001 and 1"):
        read("x", np.linspace(1, 2, 100).tolist(), False, rates=rates)


def test_finding_is_deterministic_and_touches_no_run(photos):
    seen = []

    def found(seed: int) -> LrSweep:
        own = TINY | {"train": TINY["train"] | {"seed": seed}}
        note = lambda *row: seen.append(row[:2])  # noqa: E731
        return skipway.find_lr(photos, settings=own, steps=40, low=1e-3, high=1.0, progress=note)

    first = found(0)
    assert seen == [(i, 40) for i in range(1, len(first.rates) + 1)]
    assert first.rates[0] == pytest.approx(1e-3)
    assert found(0) == first
    assert found(1).losses != first.losses
    assert not Path("runs").exists()


def test_first_loss_is_that_of_a_run(photos, tmp_path):
    """Data, order, augmentation, weights and precision are the run's: so is the loss before the first step."""
    run = skipway.train(photos, settings=TINY, out=tmp_path / "run")
    found = skipway.find_lr(photos, settings=TINY, steps=20)
    assert found.losses[0] == run.steps()[0]["loss"]


def test_nothing_rests_while_rates_are_tried(photos):
    resting = TINY | {"speed": {"rest_stem": 0.0, "freeze_norms": 0.0}}
    found = [skipway.find_lr(photos, settings=asked, steps=20).losses for asked in (TINY, resting)]
    assert found[0] == found[1]


def test_who_judges_hard_images_is_swept_too(photos, monkeypatch):
    rates: dict[int, list[float]] = {}
    own = Learner.learn

    def watched(self: Learner, *given: Any) -> Any:
        made = own(self, *given)
        rates.setdefault(id(self), []).append(made.lr)
        return made

    monkeypatch.setattr(Learner, "learn", watched)
    monkeypatch.setattr("skipway.training.find_lr.read", lambda *_, rates: rates)
    hard = TINY | {"speed": {"keep_hard": 0.5, "hard_by": "proxy"}}
    wanted = skipway.find_lr(photos, settings=hard, steps=20, low=1e-4, high=1e-1)
    assert len(rates) == 2
    for used in rates.values():
        assert used == pytest.approx(wanted)


def test_low_rates_leave_the_weights_and_rates_do_what_they_say(photos):
    still = skipway.find_lr(photos, settings=TINY, steps=20, high=1.0)
    assert still.rates[0] == pytest.approx(1e-3 * 0.1 * 8 / 128)  # the usual rate, whatever --lr says
    with pytest.raises(InputError, match="never fell"):
        skipway.find_lr(photos, settings=TINY, steps=40, low=1e-12, high=2e-12)


def test_command_writes_picture_and_numbers_and_overwrites_nothing(skipway, photos):
    flags = [*TINY_FLAGS, "--steps", "40", "--low", "1e-3", "--high", "1"]
    result = skipway("find-lr", photos, *flags)
    assert result.code == 0, result.err
    picture, numbers = Path("find-lr-photos-custom.png"), Path("find-lr-photos-custom.json")
    assert picture.read_bytes().startswith(b"\x89PNG")
    kept = json.loads(numbers.read_text())
    assert f"suggestion: --lr {kept['suggestion']:g}  ({kept['why']})" in result.out
    assert f"drawn in {picture}, numbers in {numbers}" in result.out
    before = picture.read_bytes(), numbers.read_bytes()
    picture.unlink()
    printed = json.loads(skipway("find-lr", photos, *flags, "--json").out)  # the .json is taken: both are numbered
    assert printed["picture"] == "find-lr-photos-custom-2.png"
    assert printed["losses"] == kept["losses"]
    assert numbers.read_bytes() == before[1]
    assert not picture.exists()
    assert skipway("train", photos, *TINY_FLAGS[:-1], f"{kept['suggestion']:g}", "--out", "run").code == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", "5"], "at least 20 steps"),
        (["--out", "x.jpg"], "must end in .png"),
        (["--out", "no/x.png"], "no such folder: no"),
        (["--low", "1", "--high", "0.1"], "rates rise from --low to --high"),
        (["--network", "resnet21"], "Did you mean 'resnet20'"),
    ],
)
def test_bad_input_costs_one_message(skipway, photos, flags, words):
    result = skipway("find-lr", photos, "--workers", "0", *flags)
    assert result.code == 2
    assert words in " ".join(result.err.split())
    assert [*Path().iterdir()] == []


def test_a_second_dip_at_rates_that_threw_the_network_back_does_not_count():
    rates = np.geomspace(1e-4, 10, 150)
    at = np.log10(rates)
    losses = 2.5 - 1.2 * np.exp(-((at + 1.5) ** 2) / 0.4) - 1.3 * np.exp(-((at - 0.1) ** 2) / 0.1)
    found = read("two dips", losses.tolist(), False, rates=rates.tolist())
    assert 0.02 < found.minimum < 0.05
    assert found.minimum / 10 <= found.suggestion <= found.minimum / 3 * 1.05
    single = read("one dip", (losses + 1.3 * np.exp(-((at - 0.1) ** 2) / 0.1)).tolist(), False, rates=rates.tolist())
    assert found.suggestion == single.suggestion
