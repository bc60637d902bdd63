"""Races against a training loop written by hand, and against themselves."""

import math
import threading
import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from insight.subjects import some_images
from torch import Tensor, nn

import skipway
from skipway import randomness
from skipway.errors import InputError
from skipway.insight import race as module
from skipway.insight.plain import from_plain, to_plain
from skipway.insight.race import (
    Race,
    RaceSettings,
    RaceState,
    computing_with,
    digits_images,
    race_of,
    race_spec,
    train_spec,
)
from skipway.insight.subject import Images
from skipway.network_spec import NetworkSpec
from skipway.nn.twin import twin

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = RaceSettings(depth=8, width=4, batch_size=8, epochs=2)


def tiny(settings: RaceSettings = TINY) -> Race:
    return race_of(settings, some_images(seed=1), some_images())


def run(race: Race) -> list[dict]:
    """What every step told, but for its time."""
    while not race.done:
        race.step()
    laps = [step.networks for step in race.steps]
    return [{name: replace(lap, time_s=0.0, cpu_s=0.0) for name, lap in networks.items()} for networks in laps]


@pytest.mark.parametrize("settings", [TINY, replace(TINY, shortcut="projection"), replace(TINY, norm="group")])
def test_twins_start_from_the_same_tensors(settings: RaceSettings):
    race = tiny(settings)
    residual, plain = (race.network(name).state_dict() for name in ("residual", "plain"))
    assert len(plain) > 10
    assert all(torch.equal(residual[name], tensor) for name, tensor in plain.items())
    assert all(".shortcut" in name for name in residual.keys() - plain.keys())
    assert bool(residual.keys() - plain.keys()) is (settings.shortcut == "projection")


def by_hand(spec: NetworkSpec, settings: RaceSettings, train: Images) -> list[tuple[float, float, list[float]]]:
    """Loss, share of right answers, gradient norms of convolutions and head: of a loop that everybody would write."""
    network = skipway.build(spec, seed=settings.seed)
    flat = [p for p in network.parameters() if p.ndim == 1]
    rest = [p for p in network.parameters() if p.ndim > 1]
    groups = [{"params": flat, "weight_decay": 0.0}, {"params": rest, "weight_decay": 5e-4}]
    optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, nesterov=True)
    layers = [m for n, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and "shortcut" not in n]
    steps = len(train) // settings.batch_size
    total, warm = settings.epochs * steps, round(0.05 * settings.epochs * steps)
    told = []
    for step in range(total):
        order = randomness.order(torch.arange(len(train)), seed=settings.seed, epoch=step // steps + 1)
        batch = order[step % steps * settings.batch_size :][: settings.batch_size]
        after = (step - warm) / (total - warm)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * ((step + 1) / warm if step < warm else (1 + math.cos(math.pi * after)) / 2)
        logits = network(train.inputs[batch])
        loss = F.cross_entropy(logits, train.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        norms = [float(layer.weight.grad.norm()) for layer in layers]  # pyrefly: ignore
        optimizer.step()
        told.append((loss.item(), float((logits.argmax(1) == train.labels[batch]).float().mean()), norms))
    return told


def test_race_is_the_loop_written_by_hand():
    settings = replace(TINY, epochs=7)  # a step of warm-up
    race, train = tiny(settings), some_images(seed=1)
    run(race)
    for name, spec in race.networks.items():
        with computing_with(1):
            told = by_hand(spec, settings, train)
        for step, (loss, right, norms) in zip(race.steps, told, strict=True):
            lap = step.networks[name]
            assert lap.loss == pytest.approx(loss, rel=1e-4)
            assert lap.right == pytest.approx(right)
            assert lap.gradients == pytest.approx(norms, rel=1e-3)
            assert 0 < lap.cpu_s < lap.time_s * 1.5
    assert race.layers[:2] == ("stem.conv", "stage1.block1.conv1")
    assert race.layers[-1] == "head.linear"
    assert len(race.layers) == settings.depth
    assert race.steps[0].networks["plain"].loss != race.steps[0].networks["residual"].loss


def test_scores_are_those_of_evaluation():
    race = tiny()
    assert math.isnan(race.scores()["plain"].train_loss)
    run(race)
    score = race.scores()["residual"]
    network, seen = race.network("residual"), race.seen
    assert network.training
    with torch.no_grad():
        logits = network.eval()(seen.inputs)
    assert score.accuracy == pytest.approx(float((logits.argmax(1) == seen.labels).float().mean()))
    assert score.loss == pytest.approx(float(F.cross_entropy(logits, seen.labels)), rel=1e-5)
    last = [step.networks["residual"].loss for step in race.steps[-3:]]
    assert score.train_loss == pytest.approx(sum(last) / 3)


def test_same_seed_gives_the_same_bits_and_another_seed_others():
    first, again, other = run(tiny()), run(tiny()), run(tiny(replace(TINY, seed=1)))
    assert first == again
    assert first[0] != other[0]


def test_reset_gives_the_same_run_again():
    race = tiny()
    first = run(race)
    race.scores()
    race.reset()
    assert (race.taken, race.steps, race.told) == (0, [], [])
    assert run(race) == first


def test_draws_within_networks_do_not_depend_on_what_others_drew():
    spec = replace(race_spec(TINY, channels=3, classes=3), block_dropout=0.5)
    networks = {"residual": spec, "plain": twin(spec).spec}
    races = [Race(networks, train_spec(TINY), some_images(seed=1), some_images()) for _ in range(2)]
    told = []
    for number, race in enumerate(races):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        told.append(run(race))
        assert torch.equal(torch.get_rng_state(), before)
    assert told[0] == told[1]


def test_race_leaves_threads_as_they_were():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        race = tiny()
        race.step()
        race.scores()
        assert torch.get_num_threads() == 3
        assert race.threads == 1
    finally:
        torch.set_num_threads(before)


def test_races_of_several_threads_take_turns():
    race, came = tiny(), threading.Event()
    with computing_with(1):
        other = threading.Thread(target=lambda: (race.step(), came.set()))
        other.start()
        assert not came.wait(0.5)
    other.join()
    assert (came.is_set(), race.taken) == (True, 1)


def test_end_is_told_and_no_step_goes_beyond():
    race = tiny()
    run(race)
    assert race.taken == race.total_steps == len(race.steps) == 6
    assert [step.epoch for step in race.steps] == [1, 1, 1, 2, 2, 2]
    with pytest.raises(InputError, match="over after 6 steps"):
        race.step()


def test_what_diverges_goes_on_and_says_so():
    race = tiny(replace(TINY, norm="none", lr=100.0, epochs=4))
    last = run(race)[-1]["residual"]
    assert not math.isfinite(last.loss)
    assert not math.isfinite(race.scores()["residual"].loss)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"depth": 21}, "race.depth"),
        ({"depth": 2}, "race.depth"),
        ({"width": 64}, "race.width"),
        ({"width": "8"}, "race.width"),
        ({"norm": "layer"}, "race.norm"),
        ({"init": "zero"}, "race.init"),
        ({"shortcut": "none"}, "race.shortcut"),
        ({"lr": 0.0}, "race.lr"),
        ({"lr": math.nan}, "race.lr"),
        ({"batch_size": 1}, "race.batch_size"),
        ({"epochs": 0}, "race.epochs"),
        ({"optimizer": "adamax"}, "race.optimizer"),
        ({"seed": -1}, "race.seed"),
    ],
)
def test_settings_are_refused_by_name(changes: dict, field: str):
    with pytest.raises(InputError, match=field):
        RaceSettings(**changes)


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(InputError, match="init"):
        tiny(replace(TINY, init="fixup"))
    with pytest.raises(InputError, match="two training images"):
        race_of(TINY, some_images(1), some_images())
    with pytest.raises(InputError, match="at least 4"):
        image = some_images()
        small = replace(image, inputs=image.inputs[..., :2, :2])
        race_of(TINY, small, small)
    with pytest.raises(InputError, match="takes 1 channels"):
        networks = {"one": race_spec(TINY, channels=1, classes=3)}
        Race(networks, train_spec(TINY), some_images(seed=1), some_images())


@pytest.mark.parametrize("changes", [{"norm": "none", "init": "fixup"}, {"norm": "group", "width": 6}, {"width": 5}])
def test_every_kind_of_network_races(changes: dict):
    race = tiny(replace(TINY, lr=0.01, **changes))
    assert all(math.isfinite(lap.loss) for lap in run(race)[-1].values())


def test_fewer_images_than_a_batch_are_one_batch():
    race = race_of(replace(TINY, batch_size=64), some_images(2, seed=1), some_images(2))
    assert (race.batch_size, race.total_steps) == (2, 2)
    run(race)


def test_several_labels_an_image():
    def several(images: Images) -> Images:
        return replace(images, labels=F.one_hot(images.labels, 3).to(torch.uint8))

    race = race_of(TINY, several(some_images(seed=1)), several(some_images()))
    first = race.step().networks["plain"].loss
    assert first == pytest.approx(math.log(2), abs=0.5)  # binary cross-entropy, not that of one class in three
    with pytest.raises(InputError, match="bce or --loss focal"):
        Race(race.networks, replace(race.spec, loss="cross_entropy"), race.train, race.seen)
    score, network = race.scores()["plain"], race.network("plain").eval()
    with torch.no_grad():
        decided: Tensor = network(race.seen.inputs) >= 0
    assert score.accuracy == pytest.approx(float((decided == race.seen.labels.bool()).float().mean()))


def test_networks_of_several_depths_share_the_rows_that_all_have():
    settings = replace(TINY, shortcut="projection")
    deep, shallow = (race_spec(replace(settings, depth=d), channels=3, classes=3) for d in (14, 8))
    race = Race({"deep": deep, "shallow": shallow}, train_spec(TINY), some_images(seed=1), some_images())
    assert len(race.layers) == 8
    assert all(len(lap.gradients) == 8 for lap in race.step().networks.values())


def test_estimate_is_near_the_truth_and_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.time, "perf_counter", time.thread_time)  # the machine is shared
    race = tiny(replace(TINY, epochs=20))
    before = {k: v.clone() for k, v in race.network("residual").state_dict().items()}
    estimate = race.estimate_s()
    assert race.taken == 0
    assert all(torch.equal(before[k], v) for k, v in race.network("residual").state_dict().items())
    start = time.thread_time()
    run(race)
    took = time.thread_time() - start
    assert took / 3 < estimate < took * 3
    assert race.estimate_s(scores=1000) > 1.5 * estimate


def test_state_goes_to_plain_data_and_back():
    race = tiny()
    race.step()
    race.scores()
    race.step()
    state = race.state()
    assert (state.step, state.total_steps, len(state.steps), state.scores[0][0]) == (2, 6, 2, 1)
    assert from_plain(to_plain(state), RaceState) == state


def test_digits_are_all_there_and_normalised():
    train, seen = digits_images()
    assert (len(train), len(seen), train.inputs.shape[1:]) == (1438, 359, (1, 16, 16))
    assert abs(float(train.inputs.mean())) < 0.01
    assert not set(train.names) & set(seen.names)
    race = race_of(RaceSettings(), train, seen)
    assert (race.steps_per_epoch, race.threads) == (22, 1)
    assert all(len(lap.gradients) == 20 for lap in race.step().networks.values())
