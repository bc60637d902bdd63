"""Where a network sees a class in an image, stage by stage: Grad-CAM and LayerCAM, of any class on any image.

seen = attend(subject, images[:1])                       # of the most probable class
seen = attend(subject, images[:1], label=3, probe=probe, edits=[Edit("block", "stage2.block3")])
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.insight.edits import Edit
from skipway.insight.probe import Probe
from skipway.insight.subject import Subject
from skipway.insight.units import Parts, Unit

TOKEN_LAYERS = 4  # that are shown of a transformer, whose activations have one shape throughout
Grid = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class StageMaps:
    """Where one layer sees a class; maps from 0 to 255, each scaled by its own maximum, all 0 where that is 0.

    Args:
        layer: whose activations: 'stage2.block3.output'.
        grad_cam, layer_cam: rows of the layer's own resolution.
        peak: of Grad-CAM before scaling, in logits; 0: nothing speaks for the class here.
    """

    layer: str
    grad_cam: Grid
    layer_cam: Grid
    peak: float


@dataclass(frozen=True)
class Attended:
    """Where a network sees a class in an image.

    Args:
        label: the class.
        probabilities: of every class.
        stages: from the image on.
    """

    label: int
    probabilities: tuple[float, ...]
    stages: tuple[StageMaps, ...]


def attend(
    subject: Subject, x: Tensor, *, label: int | None = None, probe: Probe | None = None, edits: Sequence[Edit] = ()
) -> Attended:
    """Where a network sees a class in one image, stage by stage.

    Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): relu(sum_k a_k A_k), a_k the mean over positions of the
    gradient of the class's logit by channel k (eq. 1 and 2). LayerCAM (Jiang et al. 2021, IEEE TIP 30, eq. 5 and 6):
    relu(sum_k relu(gradient) A_k), position by position, which early layers need. A stage's layer is the output of its
    last block; a transformer's, whose tokens are laid out as the image's patches, is what comes into one of its
    blocks, for what its last block gives out is read at the class token alone.

    Args:
        subject: whose network.
        x: (1, C, S, S) as the network takes it.
        label: the class; default: the most probable one.
        probe: the network's open probe, where there is one.
        edits: changes to the network.

    Returns:
        Maps as numbers from 0 to 255, and probabilities.

    Raises:
        InputError: more than one image, no such class, or tokens that are no square of patches.
    """
    if x.ndim != 4 or len(x) != 1:
        raise InputError(f"maps are of one image (1, C, S, S) at a time, got {tuple(x.shape)}")
    classes = len(subject.classes)
    if label is not None and not 0 <= label < classes:
        raise InputError(f"the class must be from 0 to {classes - 1}, got {label}")
    with nullcontext(probe) if probe is not None else Probe(subject.network, x) as held:
        return _attended(class_activations(subject, held, x, label=label, edits=edits), 0)


@dataclass(frozen=True)
class ClassActivations:
    """What maps are made of: for each layer A and the gradient of the class's logit by it, each (B, C, H, W)."""

    labels: Tensor
    probabilities: Tensor
    layers: dict[str, tuple[Tensor, Tensor]]


def class_activations(
    subject: Subject, probe: Probe, x: Tensor, *, label: int | None = None, edits: Sequence[Edit] = ()
) -> ClassActivations:
    """Activations and gradients of the class's logit of each image. Raises InputError. x: (B, C, S, S)."""
    wanted = layers_of(probe.units)
    kept: dict[str, Tensor] = {}

    def note(unit: Unit, parts: Parts) -> None:
        for part, tensor in (("input", parts.x), ("output", parts.output)):
            if f"{unit.name}.{part}" in wanted:
                kept[f"{unit.name}.{part}"] = tensor

    with torch.enable_grad():
        logits = probe.run(x.detach().requires_grad_(), edits=edits, visit=note)
        probabilities = subject.model.probabilities(logits.detach())
        labels = probabilities.argmax(1) if label is None else torch.full((len(x),), label)
        chosen = logits.gather(1, labels[:, None]).sum()  # images do not meet in evaluation mode
        found = torch.autograd.grad(chosen, list(kept.values()), allow_unused=True)
    pairs = zip(kept.items(), found, strict=True)
    layers = {
        name: (_as_map(probe.network, a.detach()), _as_map(probe.network, torch.zeros_like(a) if g is None else g))
        for (name, a), g in pairs
    }
    return ClassActivations(labels, probabilities, layers)


def layers_of(units: Sequence[Unit]) -> tuple[str, ...]:
    """The last output of each stage; of a transformer, inputs of blocks evenly over its depth, up to the last one."""
    if len(units[0].out_shape) == 2:  # (tokens, width)
        firsts = [next(u for u in units if u.index == i) for i in range(units[-1].index + 1)]
        count = min(TOKEN_LAYERS, len(firsts))
        return tuple(f"{firsts[len(firsts) * (i + 1) // count - 1].name}.input" for i in range(count))
    pairs = zip(units, (*units[1:], None), strict=True)
    return tuple(f"{u.name}.output" for u, after in pairs if after is None or after.out_shape != u.out_shape)


def grad_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """(B, C, H, W) twice -> (B, H, W), not negative. Selvaraju et al. 2017, eq. 1 and 2."""
    return (gradient.mean((2, 3), keepdim=True) * activation).sum(1).relu()


def layer_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """(B, C, H, W) twice -> (B, H, W), not negative. Jiang et al. 2021, eq. 5 and 6."""
    return (gradient.relu() * activation).sum(1).relu()


def _as_map(network: nn.Module, x: Tensor) -> Tensor:
    """(B, N, D) -> (B, D, h, w) without the tokens that are no patch; (B, C, H, W) as it is."""
    if x.ndim == 4:
        return x
    first = getattr(network, "num_prefix_tokens", 1 if hasattr(network, "class_token") else 0)
    side = isqrt(x.shape[1] - first) if x.ndim == 3 else 0
    if x.ndim != 3 or side * side != x.shape[1] - first:
        raise InputError(f"activations {tuple(x.shape[1:])} cannot be laid out as an image: maps need square patches")
    return x[:, first:].transpose(1, 2).unflatten(2, (side, side))


def _attended(seen: ClassActivations, i: int) -> Attended:
    stages = []
    for name, (a, g) in seen.layers.items():
        grad, layer = grad_cam(a[i : i + 1], g[i : i + 1])[0], layer_cam(a[i : i + 1], g[i : i + 1])[0]
        stages.append(StageMaps(name, _grid(grad), _grid(layer), float(grad.max())))
    return Attended(int(seen.labels[i]), tuple(seen.probabilities[i].tolist()), tuple(stages))


def _grid(values: Tensor) -> Grid:
    """(H, W) -> whole numbers from 0 to 255."""
    scaled = values / values.max().clamp_min(torch.finfo(values.dtype).tiny) * 255
    return tuple(tuple(row) for row in scaled.nan_to_num(0.0).round().int().tolist())
