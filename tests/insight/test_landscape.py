"""The loss around weights: the origin to the bit, filters' norms, the path of checkpoints; the experiment."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from insight.subjects import SMALL, small_subject, untouched
from safetensors.torch import save_file
from subjects import with_weights
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.figures import png
from skipway.insight.landscape import EXPERIMENT, LandscapeSettings, at, falls, ground_of, landscape, ticks
from skipway.insight.landscape_picture import Landscape, draw
from skipway.insight.plain import from_plain, to_text
from skipway.insight.subject import Subject
from skipway.insight.surface import Ground, path_plane, random_plane, states_of
from skipway.insight.watch import Cancelled, Watch
from skipway.run import Run
from skipway.training.parts import file_name
from skipway.training.vault import Vault

SETTINGS = LandscapeSettings(points=5, side=5, images=10)


def with_checkpoints(subject: Subject, folder: Path, count: int, *, whose: str = "network") -> Subject:
    """The subject with a run whose checkpoints moved away from its weights step by step."""
    generator = torch.Generator().manual_seed(0)
    state = {k: v.clone() for k, v in subject.network.state_dict().items()}
    for number in range(count, 0, -1):
        for value in state.values():
            if value.is_floating_point():
                value += 0.02 * torch.rand(value.shape, generator=generator)
        tensors = {f"{whose}.{k}": v.contiguous() for k, v in state.items()}
        beside = Vault(folder).folder / f"epoch-{number:05d}-batch-0000000"
        beside.mkdir(parents=True)
        save_file(tensors, beside / file_name())
    return replace(subject, run=Run(folder))


def test_the_origin_is_the_evaluated_loss_to_the_bit():
    subject = small_subject(steps=5)
    as_before = untouched(subject.network)
    found = landscape(subject, SETTINGS)
    images = subject.train.first(10)
    with torch.no_grad():
        logits = subject.network(images.inputs)
    assert found.line_losses[2] == found.losses[2][2] == float(subject.loss(logits, images.labels))
    assert found.line_accuracies[2] == float((logits.argmax(1) == images.labels).float().mean())
    assert found.line == (-0.5, -0.25, 0.0, 0.25, 0.5)
    assert found.grid == found.line
    assert found.losses[2] == found.line_losses  # the middle row is the line
    assert as_before()


def test_a_place_is_the_network_with_its_weights_moved():
    subject = small_subject(steps=20)
    plane = random_plane(subject, 0)
    moved = copy.deepcopy(subject.network)
    with torch.no_grad():
        for name, p in moved.named_parameters():
            if name in plane.x:
                p += 0.25 * plane.x[name] - 0.5 * plane.y[name]
        logits = moved(subject.train.inputs[:10])
    loss = float(subject.loss(logits, subject.train.labels[:10]))
    found = landscape(subject, SETTINGS)
    assert found.losses[0][3] == pytest.approx(loss, rel=1e-5)  # rows are y, columns x
    spot = at(subject, SETTINGS, 0.25, -0.5)
    assert spot.loss == found.losses[0][3]
    before = subject.network(subject.train.inputs[:10]).argmax(1).tolist()
    after = logits.argmax(1).tolist()
    changed = [i for i in range(10) if before[i] != after[i]]
    assert changed
    assert [flip.index for flip in spot.flips] == changed
    first = spot.flips[0]
    names = subject.classes
    assert (first.before, first.after) == (names[before[changed[0]]], names[after[changed[0]]])
    assert first.name == subject.train.names[changed[0]]
    assert at(subject, SETTINGS, 0.0, 0.0).flips == ()
    assert at(subject, SETTINGS, 0.25, -0.5, ground=ground_of(subject, SETTINGS)) == spot


def test_directions_have_the_filters_norms_and_leave_biases_and_norms():
    subject = small_subject(steps=3)
    plane = random_plane(subject, 0)
    parameters = dict(subject.network.named_parameters())
    for axis in (plane.x, plane.y):
        assert set(axis) == {k for k, p in parameters.items() if p.ndim > 1}
        for key, drawn in axis.items():
            own = parameters[key].detach().flatten(1).norm(dim=1)
            assert torch.allclose(drawn.flatten(1).norm(dim=1), own, rtol=1e-4, atol=1e-6)
    assert not any(torch.equal(plane.x[k], plane.y[k]) for k in plane.x if plane.x[k].abs().sum() > 0)
    assert all(torch.equal(v, random_plane(subject, 0).x[k]) for k, v in plane.x.items())
    assert any(not torch.equal(v, random_plane(subject, 1).x[k]) for k, v in plane.x.items())
    assert plane.path == ()


def test_ticks_hold_zero_and_those_of_coarser_grids():
    assert ticks(0.3, 5)[2] == 0
    assert set(ticks(0.3, 5)) <= set(ticks(0.3, 9)) <= set(ticks(0.3, 17))


def evaluated(subject: Subject, state: dict[str, Tensor]) -> float:
    network = copy.deepcopy(subject.network)
    network.load_state_dict(state, strict=False)
    with torch.no_grad():
        return float(subject.loss(network(subject.train.inputs[:10]), subject.train.labels[:10]))


@pytest.mark.parametrize("whose", ["network", "average"])
def test_the_paths_plane_goes_through_its_checkpoints(tmp_path, whose):
    subject = with_checkpoints(small_subject(steps=5), tmp_path, 2, whose=whose)
    found = landscape(subject, replace(SETTINGS, plane="path", span=1.0))
    assert [step.name for step in found.path] == [name for name, _ in states_of(subject)]
    assert len(found.path) == 2
    assert [step.inside for step in found.path] == pytest.approx([1, 1], abs=1e-4)
    for step, (_, state) in zip(found.path, states_of(subject), strict=True):  # running statistics move along
        spot = at(subject, replace(SETTINGS, plane="path"), step.x, step.y)
        assert spot.loss == pytest.approx(evaluated(subject, state), rel=1e-3)
        length = math.hypot(step.x * found.lengths[0], step.y * found.lengths[1])
        assert length == pytest.approx(step.distance, rel=1e-4)
    assert max(abs(v) for step in found.path for v in (step.x, step.y)) == pytest.approx(1)
    assert found.losses[2][2] == evaluated(subject, subject.network.state_dict())
    assert png(EXPERIMENT.draw(found))
    assert "2 checkpoints" in " ".join(EXPERIMENT.read(found).sentences)


def test_principal_directions_are_those_of_the_singular_values(tmp_path):
    subject = with_checkpoints(small_subject(steps=5), tmp_path, 4)
    plane = path_plane(subject, 0)
    names = [name for name, _ in subject.network.named_parameters()]

    def flat(state: dict[str, Tensor]) -> Tensor:
        return torch.cat([state[k].double().flatten() for k in names])

    origin = flat(subject.network.state_dict())
    rows = torch.stack([flat(state) - origin for _, state in states_of(subject)])
    wanted = torch.linalg.svd(rows, full_matrices=False).Vh[:2]
    for axis, vector in zip((plane.x, plane.y), wanted, strict=True):
        found = flat(axis)
        assert float((found @ vector).abs() / found.norm()) == pytest.approx(1, abs=1e-4)


def test_one_checkpoint_gets_a_random_second_direction_and_none_is_refused(tmp_path):
    subject = small_subject(steps=5)
    with pytest.raises(InputError, match="has no checkpoints"):
        landscape(subject, replace(SETTINGS, plane="path"))
    one = with_checkpoints(subject, tmp_path, 1)
    found = landscape(one, replace(SETTINGS, plane="path"))
    assert (found.path[0].x, found.path[0].y) == pytest.approx((1, 0), abs=1e-4)
    assert found.lengths[0] == pytest.approx(found.lengths[1], rel=1e-4)
    projected = landscape(one, SETTINGS).path  # onto the random plane, which sees next to nothing of it
    assert 0 <= projected[0].inside < 0.2


def test_checkpoints_that_are_damaged_or_anothers_are_passed_over(tmp_path):
    subject = with_checkpoints(small_subject(steps=5), tmp_path, 3)
    first, second, _ = sorted(Vault(tmp_path).folder.iterdir())
    (first / file_name()).write_bytes(b"none")
    save_file({"network.stem.conv.weight": torch.zeros(2)}, second / file_name())
    assert len(states_of(subject)) == 1


def test_landscape_grows_from_line_to_plane_and_stops():
    subject = small_subject(steps=5)
    told: list[Landscape] = []
    shares: list[float] = []
    watch = Watch(on_partial=told.append, on_progress=shares.append)
    found = landscape(subject, replace(SETTINGS, side=9), watch=watch)
    assert [len(t.grid) for t in told] == [0, 3, 5, 9]
    assert told[-1] == found
    assert [row[::2] for row in found.losses[::2]] == list(told[2].losses)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert from_plain(json.loads(to_text(found)), Landscape) == found
    assert all(png(EXPERIMENT.draw(t)) for t in told)
    with pytest.raises(Cancelled):
        landscape(subject, SETTINGS, watch=Watch(cancelled=lambda: True))
    late = landscape(subject, SETTINGS, watch=Watch(deadline=0.0))
    assert late.line
    assert not late.grid
    assert EXPERIMENT.read(late).verdict == "open"


def test_landscape_of_other_weights_is_another_and_two_are_drawn_on_one_scale():
    subject = small_subject(steps=5)
    found = landscape(subject, SETTINGS)
    other = landscape(with_weights(subject, small_subject(seed=3).network.state_dict()), SETTINGS)
    assert found.losses != other.losses
    plain = landscape(small_subject(replace(SMALL, shortcut="none"), steps=5), SETTINGS)
    assert not plain.skips
    drawn = draw((found, plain))
    assert png(drawn)
    scales = [place.collections[0].get_clim() for place in drawn.axes[:2]]
    assert scales[0] == scales[1]


def test_several_labels_two_images_and_numbers_beyond_all_bounds():
    subject = small_subject(count=2)
    labels = torch.tensor([[1, 1, 0], [0, 0, 0]], dtype=torch.uint8)
    model = replace(subject.model, thresholds=(0.5, 0.5, 0.5))
    several = replace(subject, train=replace(subject.train, labels=labels), model=model)
    found = landscape(several, replace(SETTINGS, span=100.0))
    assert found.images == 2
    assert found.chance == pytest.approx(math.log(2))
    assert at(several, SETTINGS, 50, 50).flips[0].before != at(several, SETTINGS, 50, 50).flips[0].after
    with torch.no_grad():
        for p in subject.network.parameters():
            p *= 1e12
    broken = landscape(subject, replace(SETTINGS, span=100.0))
    assert any(math.isnan(v) for row in broken.losses for v in row)
    assert png(EXPERIMENT.draw(broken))
    EXPERIMENT.read(broken)


@pytest.mark.parametrize("wrong", [{"plane": "ramdom"}, {"side": 8}, {"points": 4}, {"span": 0}, {"images": 0}])
def test_settings_out_of_bounds_are_refused(wrong):
    with pytest.raises(InputError):
        replace(SETTINGS, **wrong)


def test_places_that_are_none_are_refused():
    with pytest.raises(InputError, match="two numbers"):
        at(small_subject(), SETTINGS, math.nan, 0)


def test_a_variance_never_gets_below_zero(tmp_path):
    subject = with_checkpoints(small_subject(steps=5), tmp_path, 2)
    network = Ground(subject.network, path_plane(subject, 0)).go(-50, -50)
    variances = [m.running_var for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(v is not None and float(v.min()) >= 0 for v in variances)


def made_up(rise: bool, *, skips: bool = True) -> Landscape:
    """A bowl, or one with a second valley beside it."""
    grid = ticks(1.0, 9)
    values = [abs(x) + (0.0 if rise else math.cos(12 * x)) + 0.1 for x in grid]
    losses = tuple(tuple(max(a, b) for a in values) for b in values)
    return Landscape("x", "random", 1.0, 5, skips, 3.0, (1, 1), grid, tuple(values), (0.5,) * 9, grid, losses, losses)


def test_reading_goes_by_steps_outward_that_fall():
    assert falls(made_up(True))[0] == 0
    assert EXPERIMENT.read(made_up(True)).verdict == "agrees"
    assert EXPERIMENT.read(made_up(False)).verdict == "disagrees"
    assert EXPERIMENT.read(made_up(False, skips=False)).verdict == "open"
    assert EXPERIMENT.read(Landscape("x", "random", 1.0, 5, True, 1.0)).verdict == "open"


def test_a_flat_surface_shows_nothing():
    bowl = made_up(True)
    flat = replace(bowl, line_losses=tuple(0.5 for _ in bowl.line_losses))
    assert EXPERIMENT.read(flat).verdict == "open"
    assert "hardly changes" in EXPERIMENT.read(flat).sentences[-1]
