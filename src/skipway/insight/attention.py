"""Where a network looks: maps of its answers on some right and wrong images (class_maps.py), and whether they matter.

What the maps mark is hidden, and as much of what they mark least: the answer should depend on the one, not the other.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.errors import InputError
from skipway.figures import short
from skipway.insight.class_maps import Attended, attend, class_activations, grad_cam, layer_cam
from skipway.insight.experiment import Experiment, Pace, Reading
from skipway.insight.probe import Probe
from skipway.insight.style import MAP, figure
from skipway.insight.subject import Images, Subject
from skipway.insight.watch import QUIET, Watch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 32
THUMB = 64  # pixels a side of a drawn image, at most


@dataclass(frozen=True)
class AttentionSettings:
    """What is asked.

    Args:
        images: that are drawn; half of them wrong where there are so many.
        scored: images that the hiding is measured on.
        hide: share of an image that is hidden, in (0, 1).
    """

    images: int = 4
    scored: int = 48
    hide: float = 0.25


@dataclass(frozen=True)
class Shown:
    """An image of the experiment.

    Args:
        name: of the sample.
        truth: its classes' names, in words.
        predicted: likewise.
        right: whether the answer is.
        side: pixels a side of what is drawn.
        pixels: red, green, blue of each pixel, row by row, 0 to 255.
        maps: of the predicted class.
    """

    name: str
    truth: str
    predicted: str
    right: bool
    side: int
    pixels: tuple[int, ...]
    maps: Attended


@dataclass(frozen=True)
class Hiding:
    """What the predicted class's probability loses, on average, when a part of each image is hidden.

    Args:
        layer: whose maps say what is hidden.
        grad_cam, layer_cam: lost by hiding what the map marks most.
        grad_cam_rest, layer_cam_rest: by hiding as much of what it marks least.
    """

    layer: str
    grad_cam: float
    grad_cam_rest: float
    layer_cam: float
    layer_cam_rest: float


@dataclass(frozen=True)
class Attention:
    """Where a network looks.

    Args:
        images: drawn ones.
        hidings: a layer each.
        scored: images behind them.
        hide: share of the image that was hidden.
    """

    images: tuple[Shown, ...]
    hidings: tuple[Hiding, ...]
    scored: int
    hide: float


def attention(
    subject: Subject, settings: AttentionSettings = AttentionSettings(), *, watch: Watch = QUIET
) -> Attention:
    """Where a network sees what it answers, on some images; and what hiding that place costs the answer.

    Args:
        subject: the network and images of its validation split.
        settings: how many images, how much is hidden.
        watch: told of each image.

    Returns:
        Maps of the predicted class (see `attend`) of right and wrong images. Hidden pixels become the mean colour (0 in
        the network's input); the paper hides and measures likewise (section 5.2), by patches of fixed size.

    Raises:
        InputError: settings out of bounds; a network whose activations are no images.
    """
    if not (settings.images >= 1 and settings.scored >= 1 and 0 < settings.hide < 1):
        raise InputError("attention wants images and scored of at least 1, and hide between 0 and 1")
    pool = subject.seen.first(max(settings.scored, settings.images))
    with torch.no_grad():
        right = torch.cat([subject.right(subject.network(x), y) for x, y in _batches(pool)]) == 1
    places = _chosen(right, settings.images)
    with Probe(subject.network, pool.inputs) as probe:
        shown = tuple(_show(subject, probe, pool, i, bool(right[i])) for i in places)
        result = Attention(shown, (), 0, settings.hide)
        watch.partial(result)
        sums: dict[str, Tensor] = {}
        done = 0
        scored = pool.first(settings.scored)
        for x, _ in _batches(scored):
            here = done / len(scored)
            for layer, lost in _hide(subject, probe, x, settings.hide, watch.part(here, here)).items():
                sums[layer] = sums.get(layer, torch.zeros(2, 3)) + lost
            done += len(x)
            result = replace(result, hidings=tuple(_hiding(*item) for item in sums.items()), scored=done)
            watch.tell(done / len(scored))
            watch.partial(result)
            if watch.late:
                break
    return result


def _batches(images: Images):
    return zip(images.inputs.split(BATCH), images.labels.split(BATCH), strict=True)


def _chosen(right: Tensor, count: int) -> list[int]:
    """Places of images, as many wrong as right ones where there are; the right ones first."""
    good, bad = right.nonzero()[:, 0].tolist(), (~right).nonzero()[:, 0].tolist()
    wrong = min(len(bad), max(count // 2, count - len(good)))
    return [*good[: count - wrong], *bad[:wrong]]


def _show(subject: Subject, probe: Probe, images: Images, i: int, right: bool) -> Shown:
    maps = attend(subject, images.inputs[i : i + 1], probe=probe)
    label = images.labels[i]
    several = label.ndim == 1
    truth = [c for c, there in zip(subject.classes, label.tolist(), strict=True) if there] if several else []
    side, pixels = _thumbnail(images.pixels[i])
    named = ", ".join(truth) or "none" if several else subject.classes[int(label)]
    return Shown(images.names[i], named, subject.classes[maps.label], right, side, pixels, maps)


def _thumbnail(pixels: Tensor) -> tuple[int, tuple[int, ...]]:
    """(C, S, S) -> its side, and colours; of other than three channels the first, in grey."""
    x = pixels.float() if pixels.shape[0] == 3 else pixels[:1].float().expand(3, -1, -1)
    if pixels.dtype != torch.uint8:
        low, high = x.min(), x.max()
        x = (x - low) / (high - low).clamp_min(1e-12) * 255
    if x.shape[-1] > THUMB:
        x = F.interpolate(x[None], (THUMB, THUMB), mode="area")[0]
    flat = x.round().clamp(0, 255).int().permute(1, 2, 0).flatten()  # (3, S, S) -> (S * S * 3)
    return x.shape[-1], tuple(flat.tolist())


def _hide(subject: Subject, probe: Probe, x: Tensor, share: float, watch: Watch) -> dict[str, Tensor]:
    """For each layer (2, 3): by Grad-CAM and by LayerCAM, what the batch's images lose by hiding what is marked most,
    and least, in all; and how many images have marks."""
    seen = class_activations(subject, probe, x)
    labels = seen.labels[:, None]
    before = seen.probabilities.gather(1, labels)[:, 0]
    lost: dict[str, Tensor] = {}
    for name, pair in seen.layers.items():
        rows = []
        for kind in (grad_cam, layer_cam):
            marks = F.interpolate(kind(*pair)[:, None], x.shape[-2:], mode="bilinear").flatten(1)
            marked = (marks.amax(1) > 0).float()
            order = marks.argsort(dim=1, descending=True, stable=True)  # (B, H * W)
            count = max(1, round(share * marks.shape[1]))
            drops = []
            for hidden in (order[:, :count], order[:, -count:]):
                keep = torch.ones_like(marks).scatter(1, hidden, 0.0).view(len(x), 1, *x.shape[-2:])
                with torch.no_grad():
                    after = subject.model.probabilities(probe.run(x * keep)).gather(1, labels)[:, 0]
                drops.append(((before - after) * marked).sum())
                watch.tell(0.0)
            rows.append(torch.stack([*drops, marked.sum()]))
        lost[name] = torch.stack(rows)
    return lost


def _hiding(layer: str, total: Tensor) -> Hiding:
    means = total[:, :2] / total[:, 2:].clamp_min(1)
    return Hiding(layer, *means.flatten().tolist())


def _draw(result: Attention) -> "Figure":
    from matplotlib.colors import Normalize

    stages = result.images[0].maps.stages
    columns = 1 + 2 * len(stages)
    made, axes = figure(columns, len(result.images), width=1.15 * columns + 0.5, height=1.15 * len(result.images) + 0.5)
    for row, shown in enumerate(result.images):
        line = axes[row * columns : (row + 1) * columns]
        colours = torch.tensor(shown.pixels, dtype=torch.uint8).view(shown.side, shown.side, 3)
        grey = colours.float().mean(2)
        line[0].imshow(colours.numpy())
        probability = shown.maps.probabilities[shown.maps.label]
        told = f"answer {short(shown.predicted, 12)}, {probability:.0%}"
        line[0].set_ylabel(told if shown.right else f"{told}\ntruth {short(shown.truth, 12)}", fontsize=7)
        grids = [s.grad_cam for s in shown.maps.stages] + [s.layer_cam for s in shown.maps.stages]
        for place, grid in zip(line[1:], grids, strict=True):
            place.imshow(grey.numpy(), cmap="gray", vmin=0, vmax=255)
            marks = torch.tensor(grid, dtype=torch.float32)[None, None] / 255
            marks = F.interpolate(marks, (shown.side, shown.side), mode="bilinear")[0, 0].numpy()
            place.imshow(marks, cmap=MAP, norm=Normalize(0, 1), alpha=0.15 + 0.6 * marks)
        for place in line:
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(False)
    names = [f"{kind}\n{s.layer.rpartition('.')[0]}" for kind in ("Grad-CAM", "LayerCAM") for s in stages]
    for place, name in zip(axes, ["image", *names], strict=False):
        place.set_title(name, fontsize=7)
    return made


def _read(result: Attention) -> Reading:
    if not result.hidings:
        return Reading(("Nothing was hidden yet, so the maps are only pictures.",), "open")
    last = result.hidings[-1]
    sentences = [
        f"Hiding the {result.hide:.0%} of each image that Grad-CAM marks most in {last.layer} takes "
        f"{last.grad_cam:.3f} of the answer's probability; hiding as much of what it marks least takes "
        f"{last.grad_cam_rest:.3f} ({result.scored} images).",
        f"In {result.hidings[0].layer}, the earliest layer shown, it is {result.hidings[0].grad_cam:.3f} against "
        f"{result.hidings[0].grad_cam_rest:.3f} with Grad-CAM, and {result.hidings[0].layer_cam:.3f} against "
        f"{result.hidings[0].layer_cam_rest:.3f} with LayerCAM.",
    ]
    empty = sum(s.peak == 0 for shown in result.images for s in shown.maps.stages)
    if empty:
        maps = sum(len(shown.maps.stages) for shown in result.images)
        sentences.append(f"{empty} of the {maps} Grad-CAM maps drawn are empty: nothing there speaks for the class.")
    gap = last.grad_cam - last.grad_cam_rest
    verdict = "open" if abs(gap) < 0.01 else "agrees" if gap > 0 else "disagrees"
    sentences.append(
        "Rule: it agrees if hiding what the last layer marks costs at least 0.01 more than hiding the rest."
    )
    return Reading(tuple(sentences), verdict)


def _fit(pace: Pace, seconds: float) -> AttentionSettings | None:
    wanted = AttentionSettings()
    fixed = 8 * pace.forward_s * wanted.images
    an_image = pace.forward_s * 24  # a pass to choose, a gradient, and four passes for each of about five layers
    scored = min(wanted.scored, int((seconds - fixed) / an_image))
    return replace(wanted, scored=scored) if scored >= 8 else None


EXPERIMENT = Experiment(
    name="attention",
    title="Where each stage sees the answer",
    paper="Selvaraju et al. 2017, arXiv:1610.02391; Jiang et al. 2021 (LayerCAM)",
    claim="Grad-CAM marks the parts of the image that the answer depends on.",
    settings=AttentionSettings(),
    result=Attention,
    run=attention,
    draw=_draw,
    read=_read,
    fit=_fit,
)
