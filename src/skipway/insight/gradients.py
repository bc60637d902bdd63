"""How gradients arrive: their norm layer by layer, step by step, in the network and in its plain twin.

Both learn for some steps from fresh weights, with and without normalisation; the network as it is now is measured too.
What grows beyond all numbers is told, and the map is empty from there on.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from skipway import randomness
from skipway.errors import InputError
from skipway.insight.counterparts import PLAIN, RESIDUAL, variants
from skipway.insight.experiment import Experiment, Pace, Reading
from skipway.insight.gradient_map import Course, draw
from skipway.insight.probe import Probe
from skipway.insight.subject import Subject
from skipway.insight.units import Parts, Unit
from skipway.insight.watch import QUIET, Watch
from skipway.nn.network import build

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOW = "this network"
VANISHED = 0.1  # of the last block's gradient, at the first one


@dataclass(frozen=True)
class GradientsSettings:
    """How the networks learn: plain SGD with momentum 0.9, at one rate.

    Args:
        steps: updates.
        batch_size: images a step, all of them where there are fewer.
        lr: learning rate.
        seed: of weights and order.
    """

    steps: int = 24
    batch_size: int = 32
    lr: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class Gradients:
    """Every course.

    Args:
        courses: with normalisation first.
        settings: how they learnt.
        trained: whether the present weights come from training.
    """

    courses: tuple[Course, ...]
    settings: GradientsSettings
    trained: bool


def gradients(
    subject: Subject, settings: GradientsSettings = GradientsSettings(), *, watch: Watch = QUIET
) -> Gradients:
    """Gradient norms by depth and step, at initialisation and in training.

    Glorot and Bengio 2010 (fig. 7) and He et al. 2015 (arXiv:1512.03385, section 4.1). Where we differ: norms rather
    than histograms, and the network's own layers and images.

    Args:
        subject: the network and its training images. Networks of others have no twin: they learn from the present
            weights on, in a copy.
        settings: how they learn.
        watch: told of each step.

    Returns:
        Euclidean norms of the batch's mean loss's gradient, in training mode, fp32, summed in fp64.

    Raises:
        InputError: fewer than two training images, or no steps.
    """
    if len(subject.train) < 2 or settings.steps < 1 or settings.batch_size < 2 or not 0 < settings.lr < math.inf:
        raise InputError(
            "gradients want two training images, steps of at least 1, batch_size of at least 2 and a positive lr; "
            f"got {len(subject.train)} images and {settings}"
        )
    plans = list(_plans(subject, settings))
    result = Gradients((), settings, subject.trained)
    for number, (name, norm, make, steps) in enumerate(plans):
        part = watch.part(number / len(plans), (number + 1) / len(plans))
        start = Course(name, norm, (), (), (), (), ())
        with torch.random.fork_rng(devices=[]):
            course = _follow(subject, start, make(), replace(settings, steps=steps), part)
        result = replace(result, courses=(*result.courses, course))
        watch.partial(result)
        if watch.late:
            break
    return result


def _plans(subject: Subject, settings: GradientsSettings):
    """(name, norm, what makes it, steps) of each network that is followed."""
    own = subject.own
    if own is None:
        yield NOW, "its own", lambda: copy.deepcopy(subject.network), settings.steps
        return
    for each in variants(own):
        yield each.name, each.norm, lambda spec=each.spec: build(spec, seed=settings.seed), settings.steps

    def now() -> nn.Module:
        network = build(replace(own, drop_path=0.0, checkpoint=False))
        network.load_state_dict(subject.network.state_dict())
        return network

    yield NOW, own.norm, now, 0


def _follow(subject: Subject, course: Course, network: nn.Module, settings: GradientsSettings, watch: Watch) -> Course:
    """Let a network of its own learn, and keep its gradients."""
    network.train().requires_grad_(True).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=settings.lr, momentum=0.9)
    with Probe(network, subject.train.inputs) as probe:
        for step in range(settings.steps + 1):
            x, labels = _batch(subject, settings, step)
            randomness.seed_network(seed=settings.seed, step=step)
            seen = layer_gradients(subject, probe, x, labels)
            course = _with(course, network, seen)
            watch.tell((step + 1) / (settings.steps + 1))
            if course.diverged or watch.late:
                break
            for parameter, gradient in zip(network.parameters(), seen.parameters, strict=True):
                parameter.grad = gradient
            optimizer.step()
    return course


def _batch(subject: Subject, settings: GradientsSettings, step: int) -> tuple[Tensor, Tensor]:
    """Images and labels of a step; every epoch has its order, and no partial batch."""
    images, size = subject.train, min(settings.batch_size, len(subject.train))
    epoch, place = divmod(step, len(images) // size)
    chosen = randomness.order(torch.arange(len(images)), seed=settings.seed, epoch=epoch)[place * size :][:size]
    return images.inputs[chosen].contiguous(memory_format=torch.channels_last), images.labels[chosen]


@dataclass(frozen=True)
class LayerGradients:
    """Of one batch's mean loss: by each parameter (None where it has no part in it), and by each unit's output."""

    loss: float
    parameters: tuple[Tensor | None, ...]
    units: dict[str, Tensor | None]


def layer_gradients(subject: Subject, probe: Probe, x: Tensor, labels: Tensor) -> LayerGradients:
    """Gradients of the loss on a batch by everything in the network, which stays as it is."""
    outputs: dict[str, Tensor] = {}

    def note(unit: Unit, parts: Parts) -> None:
        outputs[unit.name] = parts.output

    parameters = list(probe.network.parameters())
    with torch.enable_grad():
        loss = subject.loss(probe.run(x, visit=note), labels)
        found = torch.autograd.grad(loss, [*outputs.values(), *parameters], allow_unused=True)
    by_unit: dict[str, Tensor | None] = dict(zip(outputs, found, strict=False))
    return LayerGradients(float(loss.detach()), found[len(outputs) :], by_unit)


def _with(course: Course, network: nn.Module, seen: LayerGradients) -> Course:
    """The course with one more row."""
    named = zip(network.named_parameters(), seen.parameters, strict=True)
    layers = {_display(name): g for (name, p), g in named if _is_layer(name, p)}
    return replace(
        course,
        layers=tuple(layers),
        weights=(*course.weights, _norms(list(layers.values()))),
        units=tuple(seen.units),
        outputs=(*course.outputs, _norms(list(seen.units.values()))),
        losses=(*course.losses, seen.loss if math.isfinite(seen.loss) else math.nan),
    )


def _is_layer(name: str, parameter: Tensor) -> bool:
    """Whether it is the weight of a layer between image and logits."""
    return parameter.ndim > 1 and name.endswith("weight") and ".shortcut" not in name and ".downsample" not in name


def _display(name: str) -> str:
    """'stage1.block2.conv1' for 'stages.0.1.conv1.weight' of a network of ours."""
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "stages" and len(parts) == 4 and parts[1].isdigit() and parts[2].isdigit():
        parts[:3] = [f"stage{int(parts[1]) + 1}", f"block{int(parts[2]) + 1}"]
    return ".".join(parts)


def _norms(found: Sequence[Tensor | None]) -> tuple[float, ...]:
    norms = [0.0 if g is None else float(g.double().norm()) for g in found]
    return tuple(n if math.isfinite(n) else math.nan for n in norms)


def arrival(row: Sequence[float]) -> float:
    """The gradient at the first block's output over that at the last one's; NaN where there is none to compare."""
    return row[0] / row[-1] if row and row[-1] > 0 else math.nan


def _told(course: Course) -> str:
    arrivals = [arrival(row) for row in course.outputs]
    first = next((a for a in arrivals if math.isfinite(a)), math.nan)
    told = f"{course.title}: the gradient at the first block's output is {first:.3g} times that at the last one's"
    if course.diverged:
        return f"{told} at the start; after {len(course.losses) - 1} steps its numbers are no longer finite."
    if len(arrivals) == 1:
        return f"{told} with its present weights."
    steps, losses = len(arrivals) - 1, course.losses
    return (
        f"{told} at the start, {arrivals[-1]:.3g} times after {steps} steps; loss {losses[0]:.3g} to {losses[-1]:.3g}."
    )


def _read(result: Gradients) -> Reading:
    sentences = [_told(course) for course in result.courses]
    twin = next((c for c in result.courses if c.name == PLAIN and c.norm != "none"), None)
    if twin is None or not any(c.name == RESIDUAL for c in result.courses):
        return Reading((*sentences, "There is no plain twin with normalisation to judge the claim by."), "open")
    ends = [arrival(twin.outputs[0]), arrival(twin.outputs[-1])]
    if not all(math.isfinite(a) for a in ends):
        return Reading((*sentences, "The plain twin's gradients cannot be compared."), "open")
    rule = (
        f"Rule: they vanish if the first block gets less than {VANISHED:g} of the last one's, at the start or the end."
    )
    verdict = "agrees" if min(ends) >= VANISHED else "disagrees"
    if verdict == "agrees" and max(ends) > 1 / VANISHED:
        sentences.append("In the plain twin they do not vanish: they grow towards the image.")
    return Reading((*sentences, rule), verdict)


def _fit(pace: Pace, seconds: float) -> GradientsSettings | None:
    wanted = GradientsSettings()
    networks = 4 if pace.subject.own is not None else 1
    steps = int(seconds / (networks * wanted.batch_size * pace.step_s)) - 2
    return replace(wanted, steps=min(steps, wanted.steps)) if steps >= 4 and len(pace.subject.train) > 1 else None


def _draw(result: Gradients) -> "Figure":
    return draw(result.courses)


EXPERIMENT = Experiment(
    name="gradients",
    title="How gradients arrive, layer by layer",
    paper="He et al. 2015, arXiv:1512.03385; Glorot and Bengio 2010",
    claim="With batch norm, gradients do not vanish in plain networks either (He 2015, section 4.1).",
    settings=GradientsSettings(),
    result=Gradients,
    run=gradients,
    draw=_draw,
    read=_read,
    fit=_fit,
)
