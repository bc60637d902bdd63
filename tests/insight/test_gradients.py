"""Gradient norms against autograd by hand; what diverges; the experiment on small subjects."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from insight.subjects import SMALL, foreign_subject, small_subject, untouched
from subjects import with_weights

import skipway
from skipway import randomness
from skipway.errors import InputError
from skipway.figures import png
from skipway.insight.counterparts import pair, variants
from skipway.insight.gradient_map import Course
from skipway.insight.gradients import EXPERIMENT, Gradients, GradientsSettings, arrival, gradients
from skipway.insight.plain import from_plain, to_plain, to_text
from skipway.insight.watch import Cancelled, Watch
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.nn.network import ResNet

SETTINGS = GradientsSettings(steps=2, batch_size=8)


def by_title(found: Gradients) -> dict[str, Course]:
    return {course.title: course for course in found.courses}


@pytest.mark.parametrize("title", ["residual, batch norm", "plain, no norm"])
def test_gradients_are_autograds_over_steps_by_hand(title):
    subject = small_subject()
    course = by_title(gradients(subject, SETTINGS))[title]
    spec = SMALL if title.startswith("residual") else skipway.nn.twin.twin(replace(SMALL, norm="none")).spec
    network = skipway.build(spec, seed=0).to(memory_format=torch.channels_last)
    assert isinstance(network, ResNet)
    order = randomness.order(torch.arange(24), seed=0, epoch=0)
    momentum = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for step in range(3):
        chosen = order[8 * step : 8 * step + 8]
        seen = network.features(subject.train.inputs[chosen])
        for tensor in seen.values():
            tensor.retain_grad()
        network.zero_grad()
        loss = F.cross_entropy(seen["logits"], subject.train.labels[chosen])
        loss.backward()
        assert course.losses[step] == pytest.approx(float(loss.detach()), rel=1e-4)
        weights = [network.get_parameter(f"{name}.weight") for name in ("stem.conv", "head.linear")]
        wanted = [float(w.grad.norm()) for w in weights if w.grad is not None]
        assert [course.weights[step][0], course.weights[step][-1]] == pytest.approx(wanted, rel=1e-4)
        outputs = [float(seen[name].grad.norm()) for name in course.units]  # pyrefly: ignore[missing-attribute]
        assert course.outputs[step] == pytest.approx(outputs, rel=1e-4)
        with torch.no_grad():
            for name, p in network.named_parameters():
                assert p.grad is not None
                momentum[name] = 0.9 * momentum[name] + p.grad
                p -= 0.05 * momentum[name]


def test_layers_are_named_from_the_image_on_without_shortcuts():
    found = gradients(small_subject(replace(SMALL, shortcut="projection")), SETTINGS)
    assert len({course.layers for course in found.courses}) == 1
    layers = found.courses[0].layers
    assert layers[0].startswith("stem")
    assert layers[1:3] == ("stage1.block1.conv1", "stage1.block1.conv2")
    assert layers[-1] == "head.linear"
    assert not any("shortcut" in layer for layer in layers)


def test_present_weights_are_measured_as_they_are():
    subject = small_subject(steps=5)
    as_before = untouched(subject.network)
    course = gradients(subject, SETTINGS).courses[-1]
    assert course.name == "this network"
    assert len(course.weights) == 1
    network = copy.deepcopy(subject.network).train()
    chosen = randomness.order(torch.arange(24), seed=0, epoch=0)[:8]
    loss = F.cross_entropy(network(subject.train.inputs[chosen]), subject.train.labels[chosen])
    slope = torch.autograd.grad(loss, network.get_parameter("head.linear.weight"))[0]
    assert course.weights[0][-1] == pytest.approx(float(slope.norm()), rel=1e-4)
    assert as_before()
    other = with_weights(subject, small_subject(seed=3).network.state_dict())
    assert gradients(other, SETTINGS).courses[-1] != course


def test_pairs_share_their_first_tensors():
    specs = pair(replace(SMALL, stem_width=8))
    residual, plain = (skipway.build(spec, seed=3).state_dict() for spec in specs.values())
    assert all(torch.equal(plain[key], residual[key]) for key in plain)
    assert list(pair(specs["plain"])) == ["residual", "plain"]
    assert pair(specs["plain"])["residual"].shortcut == "zero_pad"
    assert [v.title for v in variants(SMALL)] == [
        "residual, batch norm",
        "plain, batch norm",
        "residual, no norm",
        "plain, no norm",
    ]
    shrinking = NetworkSpec((StageSpec(1, 16), StageSpec(1, 8)), stem="cifar", shortcut="none")
    assert pair(shrinking)["residual"].shortcut == "projection"


def test_networks_without_norm_are_set_beside_normalised_ones():
    fixup = replace(SMALL, norm="none", init="fixup")
    found = gradients(small_subject(fixup), SETTINGS)
    assert [c.norm for c in found.courses] == ["none", "none", "batch", "batch", "none"]
    assert found.courses[0].outputs[0][0] == 0  # fixup's head starts at zero
    assert png(EXPERIMENT.draw(found))
    assert "nan" not in EXPERIMENT.read(found).sentences[0]


def test_what_diverges_is_told_and_drawn():
    deep = NetworkSpec((StageSpec(6, 8),), stem="cifar", num_classes=3)
    found = gradients(small_subject(deep), replace(SETTINGS, steps=4, lr=1e8))
    courses = by_title(found)
    ended = courses["residual, no norm"]
    assert ended.diverged
    assert len(ended.losses) < 5
    assert any("no longer finite" in sentence for sentence in EXPERIMENT.read(found).sentences)
    assert png(EXPERIMENT.draw(found))
    again = from_plain(json.loads(to_text(found)), Gradients)
    assert to_plain(again) == to_plain(found)


def test_two_runs_are_the_same_whatever_was_drawn_before():
    subject = small_subject(replace(SMALL, block_dropout=0.3, drop_path=0.3, drop_path_by="batch"))
    first = gradients(subject, SETTINGS)
    torch.manual_seed(9)
    state = torch.get_rng_state()
    assert gradients(subject, SETTINGS) == first
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:vit_tiny_patch16_224"])
def test_networks_of_others_learn_from_their_weights_on_without_a_twin(name):
    subject = foreign_subject(name)
    as_before = untouched(subject.network)
    found = gradients(subject, replace(SETTINGS, steps=1, batch_size=4))
    assert [c.title for c in found.courses] == ["this network"]
    assert len(found.courses[0].losses) == 2
    assert not any("downsample" in layer for layer in found.courses[0].layers)
    assert as_before()
    assert EXPERIMENT.read(found).verdict == "open"
    assert png(EXPERIMENT.draw(found))


def test_several_labels_and_two_images():
    subject = small_subject(count=2)
    labels = torch.tensor([[1, 1, 0], [0, 0, 0]], dtype=torch.uint8)
    found = gradients(replace(subject, train=replace(subject.train, labels=labels)), SETTINGS)
    assert found.courses[0].losses[0] < 5
    with pytest.raises(InputError, match="two training images"):
        gradients(replace(subject, train=subject.train.first(1)), SETTINGS)


def test_watch_sees_courses_grow_and_stops_them():
    told: list[Gradients] = []
    shares: list[float] = []
    found = gradients(small_subject(), SETTINGS, watch=Watch(on_partial=told.append, on_progress=shares.append))
    assert [len(t.courses) for t in told] == [1, 2, 3, 4, 5]
    assert told[-1] == found
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert from_plain(json.loads(to_text(found)), Gradients) == found
    with pytest.raises(Cancelled):
        gradients(small_subject(), SETTINGS, watch=Watch(cancelled=lambda: True))
    late = gradients(small_subject(), SETTINGS, watch=Watch(deadline=0.0))
    assert [len(c.losses) for c in late.courses] == [1]


@pytest.mark.parametrize(
    ("start", "end", "verdict"),
    [((1.0, 1.0), (2.0, 1.0), "agrees"), ((0.05, 1.0), (1.0, 1.0), "disagrees"), ((1.0, 0.0), (1.0, 1.0), "open")],
)
def test_reading_goes_by_the_plain_twin_with_norm(start, end, verdict):
    course = Course("plain", "batch", ("a",), ((1.0,), (1.0,)), ("u", "v"), (start, end), (1.0, 0.5))
    both = (replace(course, name="residual"), course)
    assert EXPERIMENT.read(Gradients(both, SETTINGS, False)).verdict == verdict
    assert EXPERIMENT.read(Gradients((replace(course, norm="none"),), SETTINGS, False)).verdict == "open"


def test_arrival_is_the_first_over_the_last():
    assert arrival((3.0, 9.0, 2.0)) == 1.5
    assert math.isnan(arrival((1.0, 0.0)))
    assert math.isnan(arrival(()))
