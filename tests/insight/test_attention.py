"""Maps of classes against captum and by hand; the experiment on small subjects."""

import json
from dataclasses import replace

import pytest
import torch
from insight.subjects import SMALL, small_subject, some_images, untouched
from insight.test_probe import images, made
from subjects import with_weights
from torch import nn

from skipway.errors import InputError
from skipway.figures import png
from skipway.insight.attention import EXPERIMENT, Attention, AttentionSettings, Hiding, Shown, attention
from skipway.insight.class_maps import Attended, StageMaps, attend, class_activations, grad_cam, layer_cam
from skipway.insight.edits import Edit
from skipway.insight.plain import from_plain, to_text
from skipway.insight.probe import Probe
from skipway.insight.subject import Subject
from skipway.insight.watch import Cancelled, Watch

SETTINGS = AttentionSettings(images=3, scored=12)


def with_network(network: nn.Module) -> Subject:
    """A subject of ten classes around a network."""
    subject = small_subject()
    classes = tuple("0123456789")
    return replace(subject, model=replace(subject.model, network=network.eval(), classes=classes))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet20", {"stage1.block3.output": "stages.0.2", "stage3.block3.output": "stages.2.2"}),
        ("preact_resnet20", {"stage2.block3.output": "stages.1.2"}),
        ("torchvision:resnet18", {"layer1.1.output": "layer1", "layer4.1.output": "layer4"}),
    ],
)
def test_grad_cam_is_captums(name, layers):
    from captum.attr import LayerGradCam

    network, x = made(name, 64), images(3, 64)
    with Probe(network, x) as probe:
        seen = class_activations(with_network(network), probe, x, label=4)
    for ours, theirs in layers.items():
        layer = network.get_submodule(theirs)
        wanted = LayerGradCam(network, layer).attribute(x, 4, relu_attributions=True)
        assert isinstance(wanted, torch.Tensor)
        found = grad_cam(*seen.layers[ours])
        assert found.max() > 0
        assert torch.allclose(found[:, None], wanted, rtol=1e-5, atol=1e-5 * float(wanted.detach().max()))


def test_layer_cam_by_hand():
    a = torch.tensor([[[[1.0, 2.0, 1.0]], [[3.0, 4.0, -4.0]]]])  # two channels, one row of three pixels
    g = torch.tensor([[[[0.5, -1.0, -0.25]], [[1.0, 2.0, 1.5]]]])  # means -0.25 and 1.5
    assert layer_cam(a, g).tolist() == [[[3.5, 8.0, 0.0]]]  # 0.5 + 3; 0 + 8; 0 - 6, cut off
    assert grad_cam(a, g).tolist() == [[[4.25, 5.5, 0.0]]]  # -0.25 + 4.5; -0.5 + 6; -0.25 - 6, cut off


def test_tokens_are_laid_out_as_patches():
    network, x = made("timm:vit_tiny_patch16_224", 64), images(1, 64)
    found = attend(with_network(network), x, label=1)
    assert [s.layer for s in found.stages] == [f"blocks.{i}.attn.input" for i in (2, 5, 8, 11)]
    with Probe(network, x) as probe:
        tokens = probe.activations(x)["blocks.11.attn.input"].detach().requires_grad_()
        logit = probe.run(x, inputs={"blocks.11.attn": tokens})[0, 1]
    (gradient,) = torch.autograd.grad(logit, tokens)
    weights = gradient[0, 1:].mean(0)  # the class token left out
    by_hand = (tokens[0, 1:] @ weights).relu().view(4, 4)
    assert by_hand.max() > 0
    wanted = (by_hand / by_hand.max() * 255).round().int().tolist()
    assert [list(row) for row in found.stages[-1].grad_cam] == wanted


def test_tokens_that_are_no_square_are_refused():
    network = made("timm:vit_tiny_patch16_224", 64)
    network.num_prefix_tokens = 2  # pyrefly: ignore[bad-argument-type]
    with pytest.raises(InputError, match="square patches"):
        attend(with_network(network), images(1, 64))


def test_attend_answers_the_predicted_class_and_any_other_and_edits():
    subject = small_subject(steps=20)
    x = subject.seen.inputs[:1]
    found = attend(subject, x)
    logits = subject.network(x)[0]
    assert found.label == int(logits.argmax())
    assert found.probabilities == pytest.approx(logits.softmax(0).tolist(), abs=1e-6)
    assert [len(s.grad_cam) for s in found.stages] == [8, 4]
    assert max(max(row) for row in found.stages[-1].grad_cam) == 255
    other = attend(subject, x, label=(found.label + 1) % 3)
    assert other.stages != found.stages
    with Probe(subject.network, x) as probe:
        assert attend(subject, x, probe=probe) == found
        assert attend(subject, x, probe=probe, edits=[Edit("branch", "stage1.block2", 0.5)]).stages != found.stages
    with pytest.raises(InputError, match="from 0 to 2"):
        attend(subject, x, label=3)
    with pytest.raises(InputError, match="one image"):
        attend(subject, subject.seen.inputs)


def test_attention_shows_right_and_wrong_images_and_returns_plain_data():
    subject = small_subject(steps=20)
    labels = subject.seen.labels.clone()
    labels[:4] = (labels[:4] + 1) % 3  # at least one of them is wrong now
    subject = replace(subject, seen=replace(subject.seen, labels=labels))
    as_before = untouched(subject.network)
    found = attention(subject, replace(SETTINGS, images=4))
    assert [s.right for s in found.images] == [True, True, False, False]
    assert all((s.predicted == s.truth) is s.right for s in found.images)
    assert found.images[0].side == 8
    assert found.scored == 12
    assert from_plain(json.loads(to_text(found)), Attention) == found
    assert png(EXPERIMENT.draw(found))
    assert as_before()


def test_hiding_is_that_of_pixels_by_hand():
    subject = small_subject(steps=20)
    x = subject.seen.inputs[:1]
    subject = replace(subject, seen=subject.seen.first(1))
    found = attention(subject, AttentionSettings(images=1, scored=1, hide=0.25)).hidings[-1]
    maps = class_activations_of(subject, x)
    marks = nn.functional.interpolate(grad_cam(*maps)[:, None], (8, 8), mode="bilinear").flatten()
    hidden = x.clone()
    for pixel in marks.sort(descending=True, stable=True).indices[:16].tolist():
        hidden[0, :, pixel // 8, pixel % 8] = 0
    with torch.no_grad():
        before, after = subject.network(x).softmax(1)[0], subject.network(hidden).softmax(1)[0]
    label = int(before.argmax())
    assert found.grad_cam == pytest.approx(float(before[label] - after[label]), abs=1e-6)
    assert found.grad_cam != found.grad_cam_rest


def class_activations_of(subject, x):
    with Probe(subject.network, x) as probe:
        return list(class_activations(subject, probe, x).layers.values())[-1]


def test_attention_of_other_weights_is_another():
    subject = small_subject(steps=5)
    other = with_weights(subject, small_subject(seed=3).network.state_dict())
    assert attention(subject, SETTINGS) != attention(other, SETTINGS)


def test_attention_of_several_labels_grey_and_two_images():
    subject = small_subject(replace(SMALL, in_channels=1), count=2)
    several = replace(subject.seen, labels=torch.tensor([[1, 1, 0], [0, 0, 0]], dtype=torch.uint8))
    model = replace(subject.model, thresholds=(0.5, 0.5, 0.5))
    found = attention(replace(subject, seen=several, model=model), SETTINGS)
    assert [s.truth for s in sorted(found.images, key=lambda s: s.name)] == ["a, b", "none"]
    assert found.scored == 2


def test_attention_of_deep_images_is_stretched():
    subject = small_subject(count=2)
    pixels = some_images(2).pixels.float() * 100
    found = attention(replace(subject, seen=replace(subject.seen, pixels=pixels)), SETTINGS)
    assert (min(found.images[0].pixels), max(found.images[0].pixels)) == (0, 255)


def test_a_cancelled_watch_stops():
    with pytest.raises(Cancelled):
        attention(small_subject(), SETTINGS, watch=Watch(cancelled=lambda: True))


def test_late_work_ends_with_what_it_has():
    found = attention(small_subject(count=80), replace(SETTINGS, scored=80), watch=Watch(deadline=0.0))
    assert found.scored == 32


@pytest.mark.parametrize("wrong", [{"images": 0}, {"scored": 0}, {"hide": 1.0}])
def test_settings_out_of_bounds_are_refused(wrong):
    with pytest.raises(InputError, match="attention wants"):
        attention(small_subject(), replace(SETTINGS, **wrong))


@pytest.mark.parametrize(
    ("marked", "rest", "verdict"), [(0.5, 0.1, "agrees"), (0.1, 0.5, "disagrees"), (0.1, 0.1, "open")]
)
def test_reading_goes_by_what_hiding_costs(marked, rest, verdict):
    maps = Attended(0, (1.0,), (StageMaps("stage1.block1.output", ((0,),), ((0,),), 0.0),))
    shown = Shown("x", "a", "a", True, 1, (0, 0, 0), maps)
    reading = EXPERIMENT.read(Attention((shown,), (Hiding("stage1.block1.output", marked, rest, 0.2, 0.1),), 5, 0.25))
    assert reading.verdict == verdict
    assert any("1 of the 1 Grad-CAM maps drawn are empty" in s for s in reading.sentences)
    assert EXPERIMENT.read(Attention((shown,), (), 0, 0.25)).verdict == "open"
