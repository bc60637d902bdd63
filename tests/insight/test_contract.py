"""What every experiment promises, asked of each: plain results, pictures, networks left alone, stopping, any network."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from subjects import SMALL, small_subject

from skipway.figures import png
from skipway.foreign_spec import ForeignSpec
from skipway.insight.experiment import Pace
from skipway.insight.experiments import find_experiment
from skipway.insight.lesion import LesionSettings
from skipway.insight.paths import PathsSettings
from skipway.insight.plain import from_plain, to_plain, to_text
from skipway.insight.refinement import RefinementSettings
from skipway.insight.responses import ResponsesSettings
from skipway.insight.style import svg
from skipway.insight.subject import Images, Subject
from skipway.insight.watch import Cancelled, Watch
from skipway.nn.foreign import build_foreign
from skipway.nn.twin import twin

QUICK: dict[str, Any] = {
    "responses": ResponsesSettings(num_images=12),
    "lesion": LesionSettings(num_images=12, num_draws=2, num_swaps=2),
    "refinement": RefinementSettings(num_images=12, num_slopes=6),
    "paths": PathsSettings(num_images=6, num_draws=1),
}
each = pytest.mark.parametrize("name", QUICK)


def ask(name: str, subject: Subject, watch: Watch | None = None, settings: Any = None) -> Any:
    return find_experiment(name).run(subject, settings or QUICK[name], watch=watch or Watch())


def check_shows(name: str, result: Any) -> None:
    """Its picture and its reading can be made."""
    experiment = find_experiment(name)
    assert "<svg" in svg(experiment.draw(result))
    reading = experiment.read(result)
    assert reading.verdict in ("agrees", "disagrees", "open")
    assert any(c.isdigit() for sentence in reading.sentences for c in sentence)
    assert "nan" not in " ".join(reading.sentences)


def everything(subject: Subject) -> list[Any]:
    """All of a subject that an experiment must leave as it is."""
    network = subject.network
    tensors = [t.clone() for t in network.state_dict().values()]
    modes = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in network.modules()
    ]
    parameters = [(p.requires_grad, p.grad is None) for p in network.parameters()]
    return [
        tensors,
        modes,
        parameters,
        torch.get_rng_state(),
        subject.seen.inputs.clone(),
        subject.train.inputs.clone(),
    ]


def same(a: list[Any], b: list[Any]) -> bool:
    return (
        all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True))
        and a[1:3] == b[1:3]
        and all(torch.equal(x, y) for x, y in zip(a[3:], b[3:], strict=True))
    )


@each
def test_result_is_plain_the_same_each_time_and_another_for_other_weights(name):
    subject = small_subject(steps=5)
    before = everything(subject)
    partial: list[Any] = []
    shares: list[float] = []
    result = ask(name, subject, Watch(on_partial=partial.append, on_progress=shares.append))
    assert same(before, everything(subject))
    kind = find_experiment(name).result
    text = to_text(result)
    again = from_plain(json.loads(text), kind)
    assert to_text(again) == text
    assert to_text(find_experiment(name).read(again)) == to_text(find_experiment(name).read(result))
    assert partial
    assert all(type(p) is kind for p in partial)
    assert shares[-1] == 1
    assert all(0 <= s <= 1 for s in shares)
    assert shares == sorted(shares)
    check_shows(name, result)
    check_shows(name, partial[0])
    assert png(find_experiment(name).draw(result))
    assert to_text(ask(name, small_subject(steps=5))) == text
    other = small_subject(steps=5)
    with torch.no_grad():
        for parameter in other.network.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(7))
    assert to_plain(ask(name, other)) != to_plain(result)


@each
def test_a_cancelled_watch_stops_and_leaves_the_network_alone(name):
    subject = small_subject()
    before = everything(subject)
    asked: list[int] = []
    with pytest.raises(Cancelled):
        ask(name, subject, Watch(cancelled=lambda: asked.append(1) is None and len(asked) > 3))
    assert len(asked) == 4
    assert same(before, everything(subject))


@each
def test_a_late_watch_ends_with_what_there_is(name):
    check_shows(name, ask(name, small_subject(), Watch(deadline=0)))


@each
def test_plain_networks_two_images_and_many_labels(name):
    plain = small_subject(twin(SMALL).spec)
    check_shows(name, ask(name, plain))
    check_shows(name, ask(name, small_subject(count=2)))
    one = small_subject()
    one = replace(one, seen=replace(one.seen, labels=torch.zeros(24, dtype=torch.int64)))
    check_shows(name, ask(name, one))
    check_shows(name, ask(name, many_labels(small_subject())))


def many_labels(subject: Subject) -> Subject:
    def several(images: Images) -> Images:
        return replace(images, labels=torch.nn.functional.one_hot(images.labels, 3).to(torch.uint8))

    model = replace(subject.model, thresholds=(0.5, 0.4, 0.6))
    return replace(subject, model=model, seen=several(subject.seen), train=several(subject.train))


def foreign_subject(name: str, size: int) -> Subject:
    own = small_subject()
    spec = ForeignSpec(name, num_classes=3)
    run = replace(own.spec, network=spec, data=replace(own.spec.data, image_size=size))
    network = build_foreign(spec, image_size=size).to(memory_format=torch.channels_last).eval()
    for head in ("head.weight", "fc.weight"):
        if head in dict(network.named_parameters()):
            torch.nn.init.normal_(network.get_parameter(head), std=0.1, generator=torch.Generator().manual_seed(0))

    def grown(images: Images) -> Images:
        return replace(images, inputs=torch.nn.functional.interpolate(images.inputs, size))

    seen, train = grown(own.seen.first(6)), grown(own.train.first(6))
    return replace(own, model=replace(own.model, network=network, spec=run), seen=seen, train=train)


@each
@pytest.mark.parametrize("network", ["torchvision:resnet18", "timm:resnet18", "timm:vit_tiny_patch16_224"])
def test_others_networks(name, network):
    subject = foreign_subject(network, 32)
    before = everything(subject)
    check_shows(name, ask(name, subject))
    assert same(before, everything(subject))


@each
def test_fits_a_budget_or_says_that_it_cannot(name):
    experiment = find_experiment(name)
    pace = Pace(small_subject())
    fitted = experiment.fit(pace, 60.0)
    assert type(fitted) is type(experiment.settings)
    slow = Pace(small_subject())
    slow.__dict__["forward_s"] = 1e6
    assert experiment.fit(slow, 1.0) is None
