"""Gradients along lines against closed forms: linear and piecewise linear networks, noise; the experiment."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from insight.subjects import SMALL, foreign_subject, small_subject, untouched
from subjects import with_weights
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.figures import png
from skipway.insight.lines import autocorrelation, directional, likeness, line_gradients, noise_autocorrelation
from skipway.insight.plain import from_plain, to_text
from skipway.insight.shattering import EXPERIMENT, Shattering, ShatteringSettings, shattering
from skipway.insight.shattering_picture import Curve, Noise
from skipway.insight.watch import Cancelled, Watch

SETTINGS = ShatteringSettings(points=16, lines=1, deeper=2)
QUICK = replace(SETTINGS, points=8, deeper=1)


def ends() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 2, 2, generator=generator), torch.randn(1, 2, 2, generator=generator)


def test_a_linear_networks_gradient_is_one_and_the_same():
    a, b = ends()
    linear = nn.Linear(4, 3)
    network = nn.Sequential(nn.Flatten(), linear)
    with torch.no_grad():
        found = line_gradients(network, a, b, 20)
    weights = linear.weight.detach().sum(0).double()
    assert torch.allclose(found, weights.expand(20, 4))
    series = directional(found, b - a)
    assert series == pytest.approx([float(weights @ (b - a).flatten().double())] * 20)
    assert autocorrelation(series).tolist() == [1.0] * 10
    assert likeness(found) == pytest.approx([1.0] * 10)


class Bent(nn.Module):
    """w.x + relu(v.x - c): two slopes, w before the bend and w + v after it."""

    def __init__(self, w: Tensor, v: Tensor, c: float):
        super().__init__()
        self.w, self.v, self.c = w, v, c

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return (x @ self.w + F.relu(x @ self.v - self.c))[:, None]


def test_a_bent_network_has_the_closed_form():
    a, b = torch.zeros(1, 1, 2), torch.tensor([[[1.0, 0.0]]])
    w, v = torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])
    points, after = 10, 4
    found = line_gradients(Bent(w, v, 0.6), a, b, points)  # t in 6/9, 7/9, 8/9, 1 is after the bend
    assert found.tolist() == [[1.0, 1.0]] * 6 + [[2.0, 0.0]] * 4
    share = after / points
    series = directional(found, b - a)  # 1 six times, 2 four times: deviations -share and 1 - share
    before, rest = -share, 1 - share
    variance = 6 * before**2 + 4 * rest**2
    at_lag_3 = (3 * before**2 + 3 * before * rest + 1 * rest**2) / variance
    assert float(autocorrelation(series)[3]) == pytest.approx(at_lag_3)
    cosine = 1 / math.sqrt(2)  # of (1, 1) and (2, 0): pairs 3 apart lie across the bend 3 times of 7
    assert float(likeness(found)[3]) == pytest.approx((4 + 3 * cosine) / 7)


def test_noise_is_what_it_is_called():
    white, brown = (noise_autocorrelation(128, brown=brown) for brown in (False, True))
    assert white[0] == brown[0] == pytest.approx(1)
    assert abs(white[1]) < 0.03
    assert brown[1] > 0.9
    assert brown[10] > 0.5


def test_gradients_that_are_none_give_no_number():
    assert all(map(math.isnan, autocorrelation(torch.zeros(8).double())))
    assert all(map(math.isnan, autocorrelation(torch.full((8,), math.inf).double())))
    assert all(map(math.isnan, likeness(torch.zeros(8, 3).double())))
    some = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]).double()
    assert likeness(some).tolist() == [1.0, 0.5]


def test_gradients_are_those_of_the_inputs_in_evaluation():
    subject = small_subject(steps=3)
    a, b = subject.seen.inputs[:2]
    found = line_gradients(subject.network, a, b, 40)
    t = torch.linspace(0, 1, 40)
    place = 13
    x = ((1 - t[place]) * a + t[place] * b)[None].detach().requires_grad_()
    (wanted,) = torch.autograd.grad(subject.network(x).sum(), x)
    assert torch.allclose(found[place], wanted.flatten().double(), rtol=1e-4, atol=1e-6)
    h = 1e-3  # the derivative along the line, by differences, in fp64
    network = subject.fresh().double().eval()
    network.load_state_dict(subject.network.state_dict())
    with torch.no_grad():
        y = [float(network((a + (t[place] + s) * (b - a))[None].double()).sum()) for s in (-h, h)]
    assert float(directional(found, b - a)[place]) == pytest.approx((y[1] - y[0]) / (2 * h), rel=0.05)


def test_shattering_compares_four_networks_by_depth_and_the_one_as_it_is():
    subject = small_subject(steps=3)
    as_before = untouched(subject.network)
    state = torch.get_rng_state()
    told: list[Shattering] = []
    shares: list[float] = []
    found = shattering(subject, SETTINGS, watch=Watch(on_partial=told.append, on_progress=shares.append))
    assert [c.blocks for c in found.curves] == [2] * 4 + [4] * 4 + [8] * 4 + [4]
    assert [c.title for c in found.curves[:4]] == [
        "residual, batch norm",
        "plain, batch norm",
        "residual, no norm",
        "plain, no norm",
    ]
    assert all(len(c.autocorrelation) == len(c.cosine) == 8 and len(c.gradient) == 16 for c in found.curves)
    assert all(max(map(abs, c.gradient)) == pytest.approx(1) for c in found.curves)
    assert told[-1] == found
    assert shares == pytest.approx(sorted(shares))
    assert shares[-1] == pytest.approx(1)
    assert from_plain(json.loads(to_text(found)), Shattering) == found
    assert png(EXPERIMENT.draw(found))
    assert png(EXPERIMENT.draw(told[0]))
    assert as_before()
    assert torch.equal(torch.get_rng_state(), state)
    assert shattering(subject, SETTINGS) == found
    other = with_weights(subject, small_subject(seed=3).network.state_dict())
    assert shattering(other, SETTINGS).curves[-1] != found.curves[-1]


def test_fresh_batch_norms_know_the_training_images():
    """With other training images the fresh normalised networks change, and those without norm do not."""
    subject = small_subject()
    found = shattering(subject, SETTINGS)
    brighter = replace(subject, train=replace(subject.train, inputs=subject.train.inputs * 2 + 1))
    other = shattering(brighter, SETTINGS)
    same = [one == two for one, two in zip(found.curves, other.curves, strict=True)]
    assert same[:4] == [False, False, True, True]


def test_fixups_zero_head_is_told_as_no_number():
    found = shattering(small_subject(replace(SMALL, norm="none", init="fixup")), replace(SETTINGS, deeper=1))
    assert math.isnan(found.curves[0].next)
    assert EXPERIMENT.read(found).verdict == "open"
    assert png(EXPERIMENT.draw(found))


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:vit_tiny_patch16_224"])
def test_networks_of_others_have_their_own_curve(name):
    subject = foreign_subject(name)
    as_before = untouched(subject.network)
    with torch.no_grad():
        found = shattering(subject, replace(SETTINGS, points=8))
    assert [c.title for c in found.curves] == ["this network"]
    assert EXPERIMENT.read(found).verdict == "open"
    assert png(EXPERIMENT.draw(found))
    assert as_before()


def test_watch_stops_and_bad_settings_are_refused():
    with pytest.raises(Cancelled):
        shattering(small_subject(), QUICK, watch=Watch(cancelled=lambda: True))
    assert len(shattering(small_subject(), QUICK, watch=Watch(deadline=0.0)).curves) == 1
    with pytest.raises(InputError, match="shattering wants points"):
        shattering(small_subject(), replace(QUICK, points=4))
    subject = small_subject()
    with pytest.raises(InputError, match="two images"):
        shattering(replace(subject, seen=subject.seen.first(1)), QUICK)
    assert len(shattering(replace(subject, seen=subject.seen.first(2)), QUICK).curves) == 9


@pytest.mark.parametrize(
    ("residual", "plain", "verdict"),
    [((0.8, 0.9), (0.2, 0.8), "agrees"), ((0.2, 0.8), (0.8, 0.9), "disagrees"), ((0.8, 0.8), (0.2, 0.9), "open")],
)
def test_reading_goes_by_the_deepest_networks(residual, plain, verdict):
    def curve(name: str, norm: str, blocks: int, next: float) -> Curve:
        return Curve(name, norm, blocks, (1.0, next), (1.0, 1.0), (1.0,))

    curves = [curve(name, norm, 3, 0.95) for name in ("residual", "plain") for norm in ("batch", "none")]
    curves += [curve("residual", *key, r) for key, r in zip((("batch", 9), ("none", 9)), residual, strict=True)]
    curves += [curve("plain", *key, p) for key, p in zip((("batch", 9), ("none", 9)), plain, strict=True)]
    reading = EXPERIMENT.read(Shattering(tuple(curves), Noise((1.0, 0.0), (1.0, 0.9)), 3, 4, 1))
    assert reading.verdict == verdict
    assert any("0.95 at 3, " in sentence for sentence in reading.sentences)
