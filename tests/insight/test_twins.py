"""Twins against races by hand, and what is said of them on results that are made up."""

import math
import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from insight.subjects import SMALL, small_subject, some_images
from subjects import with_weights

from skipway.errors import InputError
from skipway.foreign_spec import ForeignSpec
from skipway.insight.experiment import Pace, perform
from skipway.insight.experiments import find_experiment
from skipway.insight.plain import from_plain, to_plain
from skipway.insight.race import Race
from skipway.insight.style import svg
from skipway.insight.subject import Subject
from skipway.insight.twins import EXPERIMENT, Curves, Twins, TwinsSettings, twins
from skipway.insight.watch import Cancelled, Watch
from skipway.nn.twin import twin
from skipway.spec import RunSpec, TrainSpec

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = TwinsSettings(seeds=2, epochs=2, batch_size=8, marks=3)


def trained_like(subject: Subject, train: TrainSpec) -> Subject:
    spec = RunSpec(subject.spec.network, train=train)
    return replace(subject, model=replace(subject.model, spec=spec))


def test_twins_are_races_with_the_runs_optimizer_on_its_images():
    train = TrainSpec(optimizer="adam", lr=0.02, batch_size=16, seed=5, freeze="backbone", ema_decay=0.9)
    subject = trained_like(small_subject(), train)
    found = twins(subject, QUICK)
    assert found.at == ((2, 4, 6), (2, 4, 6))
    assert (found.steps, found.races, found.images, found.seen, found.batch_size) == (6, 2, 24, 24, 8)
    assert found.lr == 0.01
    for row, seed in enumerate((5, 6)):
        spec = TrainSpec(optimizer="adam", lr=0.01, batch_size=8, seed=seed, epochs=2, warmup_epochs=0.1)
        race = Race({"residual": SMALL, "plain": twin(SMALL).spec}, spec, subject.train, subject.seen)
        laps = [race.step().networks for _ in range(6)]
        for name, curves in (("residual", found.residual), ("plain", found.plain)):
            for mark in range(3):
                part = [lap[name] for lap in laps[2 * mark : 2 * mark + 2]]
                assert curves.train_loss[row][mark] == pytest.approx(sum(lap.loss for lap in part) / 2)
                assert curves.train_accuracy[row][mark] == pytest.approx(sum(lap.right for lap in part) / 2)
            with torch.no_grad():
                logits = race.network(name).eval()(subject.seen.inputs)
            assert curves.loss[row][-1] == pytest.approx(float(F.cross_entropy(logits, subject.seen.labels)))
            right = (logits.argmax(1) == subject.seen.labels).float().mean()
            assert curves.accuracy[row][-1] == pytest.approx(float(right))


def test_rate_is_the_default_for_the_batch_where_the_run_has_none():
    assert twins(small_subject(), replace(QUICK, seeds=1)).lr == 0.1 * 8 / 128
    assert twins(small_subject(), replace(QUICK, seeds=1, lr=0.03)).lr == 0.03


def test_without_normalisation_neither_has_any():
    found = twins(small_subject(), replace(QUICK, with_norm=False, lr=0.001))
    assert found.norm == "none"
    assert "without normalisation" in " ".join(EXPERIMENT.read(found).sentences)
    assert found.plain != twins(small_subject(), replace(QUICK, lr=0.001)).plain


def test_plain_subject_is_compared_with_itself_given_skips():
    plain = twin(SMALL).spec
    found, other = twins(small_subject(plain), QUICK), twins(small_subject(SMALL), QUICK)
    assert found.network == "custom-plain with skips"
    assert (found.plain, found.residual) == (other.plain, other.residual)
    assert found.dropped[0] == "stage1.block1: projection 16 -> 8, 144 parameters"


def test_fewer_images_are_the_first_ones():
    found = twins(small_subject(), replace(QUICK, images=16))
    assert (found.images, found.steps) == (16, 4)


def test_result_changes_with_images_and_seed_and_with_random_weights():
    subject = small_subject(steps=30)
    found = twins(subject, QUICK)
    others = replace(subject, train=some_images(seed=7))
    assert twins(others, QUICK).residual != found.residual
    assert twins(trained_like(subject, TrainSpec(seed=1)), QUICK).residual != found.residual
    random = twins(with_weights(subject, small_subject(seed=3).network.state_dict()), QUICK)
    assert random.own != found.own
    assert random.residual == found.residual  # which starts anew
    assert found.own == pytest.approx(
        float((subject.network(subject.seen.inputs).argmax(1) == subject.seen.labels).float().mean())
    )
    assert math.isnan(twins(small_subject(), QUICK).own)


def test_subject_is_as_before():
    subject = small_subject(steps=3)
    network = subject.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    twins(subject, QUICK)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(module.training or module._forward_hooks for module in network.modules())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_others_networks_and_those_without_logits_are_refused():
    subject = small_subject()
    foreign = replace(subject.model, spec=RunSpec(ForeignSpec("timm:resnet18")))
    with pytest.raises(InputError, match="small is not one of skipway's own networks, so it has no plain twin"):
        twins(replace(subject, model=foreign), QUICK)
    assert EXPERIMENT.fit(Pace(replace(subject, model=foreign)), 100) is None
    bare = trained_like(subject, TrainSpec())
    bare = replace(bare, model=replace(bare.model, spec=RunSpec(replace(SMALL, head="features"))))
    with pytest.raises(InputError, match="head linear"):
        twins(bare, QUICK)


@pytest.mark.parametrize("changes", [{"seeds": 0}, {"epochs": 0}, {"batch_size": 1}, {"marks": 0}, {"lr": -1.0}])
def test_settings_are_refused_by_name(changes: dict):
    with pytest.raises(InputError, match=f"twins.{next(iter(changes))}"):
        TwinsSettings(**changes)


def test_two_images_and_one_class():
    subject = small_subject(replace(SMALL, num_classes=1))
    few = replace(subject, train=subject.train.first(2), seen=subject.seen.first(2))
    few = replace(
        few, train=replace(few.train, labels=few.train.labels * 0), seen=replace(few.seen, labels=few.seen.labels * 0)
    )
    found = twins(few, QUICK)
    assert (found.batch_size, found.residual.accuracy[0][-1]) == (2, 1.0)
    assert EXPERIMENT.read(found).verdict == "open"
    EXPERIMENT.draw(found).canvas.draw()


def test_several_labels_an_image():
    subject = small_subject()

    def several(images):
        return replace(images, labels=F.one_hot(images.labels, 3).to(torch.uint8))

    found = twins(replace(subject, train=several(subject.train), seen=several(subject.seen)), QUICK)
    assert found.plain.train_loss[0][0] == pytest.approx(math.log(2), abs=0.4)


def test_partial_results_grow_and_can_be_shown():
    partial: list[Twins] = []
    shares: list[float] = []
    found = twins(small_subject(), QUICK, watch=Watch(on_partial=partial.append, on_progress=shares.append))
    assert [tuple(len(row) for row in result.at) for result in partial] == [(1,), (2,), (3,), (3, 1), (3, 2), (3, 3)]
    assert partial[-1] == found
    assert partial[1].plain.loss[0] == found.plain.loss[0][:2]
    assert shares == sorted(shares)
    assert (len(shares), shares[-1]) == (12, 1.0)
    assert all(EXPERIMENT.read(result).sentences for result in partial)
    for result in (partial[0], partial[3]):  # one mark; one race in whole, another under way
        svg(EXPERIMENT.draw(result))


def test_cancelled_watch_stops_at_once():
    shares: list[float] = []
    with pytest.raises(Cancelled):
        twins(small_subject(), QUICK, watch=Watch(on_progress=shares.append, cancelled=lambda: len(shares) == 2))
    assert len(shares) == 2


def test_late_watch_ends_with_what_there_is_and_says_so():
    found = twins(small_subject(), QUICK, watch=Watch(deadline=time.monotonic() - 1))
    assert found.at == ((1,),)
    reading = EXPERIMENT.read(found)
    assert "over after 1 of 12 steps" in " ".join(reading.sentences)
    assert reading.verdict == "open"


def test_result_goes_to_plain_data_and_back_and_is_kept():
    subject, watched = small_subject(), []
    found = perform(find_experiment("twins"), subject, QUICK)
    assert perform(EXPERIMENT, subject, QUICK, watch=Watch(on_progress=watched.append)).plain == found.plain
    assert watched == [1.0]
    assert to_plain(from_plain(to_plain(found), Twins)) == to_plain(found)


def made_up(residual: tuple[float, ...], plain: tuple[float, ...], **changes) -> Twins:
    """Twins whose last training losses are these, seed by seed."""

    def curves(ends: tuple[float, ...]) -> Curves:
        rows = tuple((2.0, end) for end in ends)
        return Curves(rows, rows, rows, tuple((0.1, 0.5) for _ in ends))

    at = tuple((50, 100) for _ in residual)
    made = Twins("r", "batch", (), 640, 99, 64, 0.1, 100, len(at), at, curves(residual), curves(plain), math.nan)
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("result", "verdict"),
    [
        (made_up((0.1, 0.2), (0.5, 0.6)), "agrees"),
        (made_up((0.5, 0.6), (0.1, 0.2)), "disagrees"),
        (made_up((0.1, 0.6), (0.5, 0.2)), "open"),
        (made_up((0.1, 0.2), (0.5, 0.21)), "open"),  # too near
        (made_up((0.0,), (0.0,)), "open"),
        (made_up((0.1,), (math.nan,)), "agrees"),
        (made_up((math.inf,), (0.1,)), "disagrees"),
        (made_up((math.nan,), (math.nan,)), "open"),
        (made_up((0.1,), (0.5,), steps=49, at=((10, 49),)), "open"),  # a beginning
        (made_up((0.1,), (0.5,), steps=200, races=1), "open"),  # cut short
        (made_up((0.1, 0.5), (0.5, 0.1), at=((50, 100), (10, 20))), "agrees"),  # the second is under way
    ],
)
def test_verdict_follows_the_rule(result: Twins, verdict: str):
    assert EXPERIMENT.read(result).verdict == verdict


def test_reading_has_the_numbers():
    result = made_up((0.1, 0.2), (0.5, math.nan), own=0.9, dropped=("zero_init_last = True",))
    said = " ".join(EXPERIMENT.read(result).sentences)
    assert "training loss of 0.15 (0.1 to 0.2), its plain twin at 0.5 (0.5 to 0.5, 1 diverged)" in said
    assert "higher with 2 of 2 seeds" in said
    assert "Of 99 held-out images 50.0% (50.0% to 50.0%) are right" in said
    assert "has 90.0% of them right" in said
    assert "goes without zero_init_last = True" in said
    assert "over after" not in said


def test_budget_is_kept_in_mind(monkeypatch: pytest.MonkeyPatch):
    subject = small_subject(count=200)
    pace = Pace(subject)
    vars(pace)["forward_s"] = 1e-5
    monkeypatch.setattr(Race, "estimate_s", lambda race: 0.9)  # of an epoch: a second, rounded up
    subject_seen = len(subject.seen)
    assert subject_seen == 200
    assert EXPERIMENT.fit(pace, 1000) == TwinsSettings(seeds=3, epochs=30, batch_size=32, marks=4)
    assert EXPERIMENT.fit(pace, 43) == TwinsSettings(
        seeds=3, epochs=8, batch_size=32, marks=4
    )  # 30.1 s: 3 x (8.7 + 4 / 3)
    assert EXPERIMENT.fit(pace, 33) == TwinsSettings(seeds=2, epochs=10, batch_size=32, marks=4)
    assert EXPERIMENT.fit(pace, 14) == TwinsSettings(seeds=1, epochs=8, batch_size=32, marks=4)
    assert EXPERIMENT.fit(pace, 10) is None  # 8 epochs of 200 images are 50 steps
    vars(pace)["forward_s"] = 1.0  # too slow to try: 6 s an image
    assert EXPERIMENT.fit(pace, 600) is None
