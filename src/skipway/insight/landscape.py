"""The loss around a network's weights: along a line at once, then over a plane, from coarse to fine.

found = landscape(subject, LandscapeSettings(side=17))
at(subject, LandscapeSettings(side=17), 0.5, -0.25).flips         # whose answers change there
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from skipway.errors import InputError, unknown
from skipway.insight.experiment import Experiment, Pace, Reading
from skipway.insight.landscape_picture import Landscape, draw
from skipway.insight.subject import Subject
from skipway.insight.surface import PLANES, Ground, score
from skipway.insight.watch import QUIET, Watch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDES = (3, 5, 9, 17, 33, 65)
RAYS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
FALL = 0.01  # of the loss: a smaller fall on the way out is none
CALM = 0.05  # share of the steps outward that may fall
FEW = 8  # steps that say nothing yet


@dataclass(frozen=True)
class LandscapeSettings:
    """What is looked at.

    Args:
        plane: "random", filter-normalised; "path", through the run's checkpoints.
        span: how far from the weights, in lengths of the directions: 1 is as far as every filter is long.
        points: of the line along the first direction, odd.
        side: points of a side of the plane: 3, 5, 9, 17, 33, 65.
        images: training images that the loss is of.
        seed: of the directions.
    """

    plane: str = "random"
    span: float = 0.5
    points: int = 31
    side: int = 9
    images: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        if self.plane not in PLANES:
            raise unknown("plane", self.plane, PLANES)
        if self.side not in SIDES:
            raise InputError(f"landscape.side must be one of {', '.join(map(str, SIDES))}, got {self.side}")
        if self.points < 3 or self.points % 2 == 0:
            raise InputError(f"landscape.points must be odd and at least 3, got {self.points}")
        if not 0 < self.span <= 100 or self.images < 1:
            raise InputError(
                f"landscape wants a span from 0 to 100 and at least an image, got {self.span:g}, {self.images}"
            )


@dataclass(frozen=True)
class Flip:
    """An image whose answer is another away from the weights.

    Args:
        index: of the image, in subject.train.
        name: of the sample.
        before, after: answers in words, at the weights and there.
    """

    index: int
    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Spot:
    """One place of the plane.

    Args:
        x, y: where.
        loss: in nats; NaN where it is not finite.
        accuracy: in [0, 1].
        flips: images whose answer is another than at the weights.
    """

    x: float
    y: float
    loss: float
    accuracy: float
    flips: tuple[Flip, ...]


def landscape(
    subject: Subject, settings: LandscapeSettings = LandscapeSettings(), *, watch: Watch = QUIET
) -> Landscape:
    """The loss and accuracy around the weights, along a line and over a plane.

    Li et al. 2018 (arXiv:1712.09913): directions as in `surface.random_plane` and `surface.path_plane`. The network is
    evaluated with its running statistics, as in the paper's code, so that the origin has the evaluated loss.

    Args:
        subject: the network and its training images.
        settings: plane, extent, fineness.
        watch: handed the line, then the plane with 3 points a side, 5, 9, ..., up to the fineness asked.

    Returns:
        Losses in nats of the first training images; NaN where not finite.

    Raises:
        InputError: settings out of bounds; no checkpoints for a path.
    """
    ground, images = ground_of(subject, settings), subject.train.first(settings.images)
    name = Path(subject.title).name
    skips = subject.own is None or subject.own.shortcut != "none"
    chance = math.log(2 if images.labels.ndim == 2 else max(len(subject.classes), 2))
    found = Landscape(name, settings.plane, settings.span, len(images), skips, chance)
    found = replace(found, path=ground.plane.path, lengths=(ground.plane.length_x, ground.plane.length_y))
    levels = [side for side in SIDES if side <= settings.side]
    total, done = settings.points + settings.side**2, 0
    here = watch.part(0, 0)

    def measure(x: float, y: float) -> tuple[float, float]:
        nonlocal done, here
        made = score(subject, ground.logits(x, y, images, watch=here), images.labels)
        done += 1
        watch.tell(done / total)
        here = watch.part(done / total, done / total)
        return made

    line = ticks(settings.span, settings.points)
    along = [measure(x, 0.0) for x in line]
    found = replace(found, line=line, line_losses=_of(along, 0), line_accuracies=_of(along, 1))
    watch.partial(found)
    known: dict[tuple[float, float], tuple[float, float]] = {}
    for side in levels:
        if watch.late:
            break
        grid = ticks(settings.span, side)
        for place in _outward(grid):
            if place not in known:
                known[place] = measure(*place)
        rows = [[known[x, y] for x in grid] for y in grid]
        losses, accuracies = (tuple(_of(row, part) for row in rows) for part in (0, 1))
        found = replace(found, grid=grid, losses=losses, accuracies=accuracies)
        watch.partial(found)
    return found


def ground_of(subject: Subject, settings: LandscapeSettings) -> Ground:
    """What `at` may use again and again. Raises InputError where there are no checkpoints for a path."""
    return Ground(subject.network, PLANES[settings.plane](subject, settings.seed))


def at(subject: Subject, settings: LandscapeSettings, x: float, y: float, *, ground: Ground | None = None) -> Spot:
    """What the network answers at a place of the plane.

    Args:
        subject, settings: of the landscape.
        x, y: the place, in lengths of the directions.
        ground: of `ground_of`, where it is at hand.

    Returns:
        Its loss and accuracy, and the images that change their answer, of those that the landscape is of.

    Raises:
        InputError: a place that is none, or far away.
    """
    if not (math.isfinite(x) and math.isfinite(y) and max(abs(x), abs(y)) <= 100):
        raise InputError(f"a place of the landscape has two numbers from -100 to 100, got {x}, {y}")
    ground = ground or ground_of(subject, settings)
    images = subject.train.first(settings.images)
    before, after = (_answers(subject, ground.logits(*place, images)) for place in ((0.0, 0.0), (x, y)))
    loss, accuracy = score(subject, ground.logits(x, y, images), images.labels)
    pairs = enumerate(zip(before, after, strict=True))
    flips = tuple(Flip(i, images.names[i], old, new) for i, (old, new) in pairs if old != new)
    return Spot(x, y, loss, accuracy, flips)


def ticks(span: float, count: int) -> tuple[float, ...]:
    """Evenly from -span to span, with 0 itself; those of a coarser grid are among those of a finer one."""
    half = count // 2
    return tuple(span * i / half for i in range(-half, half + 1))


def _outward(grid: tuple[float, ...]) -> Iterator[tuple[float, float]]:
    """Places of a grid, those near the origin first."""
    places = [(x, y) for y in grid for x in grid]
    return iter(sorted(places, key=lambda place: place[0] ** 2 + place[1] ** 2))


def _of(pairs: list[tuple[float, float]], part: int) -> tuple[float, ...]:
    return tuple(pair[part] for pair in pairs)


def _answers(subject: Subject, logits: Tensor) -> list[str]:
    """Each image's answer in words."""
    if subject.model.thresholds is None:
        return [subject.classes[i] for i in logits.argmax(1).tolist()]
    given = subject.model.probabilities(logits) >= logits.new_tensor(subject.model.thresholds)
    return [", ".join(c for c, there in zip(subject.classes, row, strict=True) if there) for row in given.tolist()]


def falls(result: Landscape) -> tuple[int, int]:
    """Steps outward in the basin that lower the loss by more than 1%, and how many there are in all.

    They lie on the line and on the plane's eight rays; the basin is where the loss is below that of guessing.
    """
    middle, centre = len(result.line) // 2, len(result.grid) // 2
    rays = [result.line_losses[middle:], result.line_losses[middle::-1]]
    for down, right in RAYS if result.grid else ():
        rays.append(tuple(result.losses[centre + down * k][centre + right * k] for k in range(centre + 1)))
    steps = [(a, b) for ray in rays for a, b in itertools.pairwise(ray) if a < result.chance and not math.isnan(b)]
    return sum(after < before * (1 - FALL) for before, after in steps), len(steps)


def _read(result: Landscape) -> Reading:
    if not result.line:
        return Reading(("Nothing has been measured yet.",), "open")
    middle = len(result.line) // 2
    loss, accuracy = result.line_losses[middle], result.line_accuracies[middle]
    ends = [f"{result.line_losses[i]:.3g}" for i in (0, -1)]
    sentences = [
        f"At the weights the loss is {loss:.3g} and the accuracy {accuracy:.1%} ({result.images} training images); at "
        f"the two ends of the line, {result.span:g} away, the losses are {ends[0]} and {ends[1]}.",
        _width(result, loss),
    ]
    fallen, steps = falls(result)
    sentences.append(
        f"Where the loss is below that of guessing ({result.chance:.2f}), {fallen} of {steps} steps outward lower it "
        f"by more than {FALL:.0%}."
    )
    if result.path:
        whole = sum(step.distance**2 for step in result.path)
        share = sum(step.inside * step.distance**2 for step in result.path) / whole if whole else 1.0
        told = f"{len(result.path)} checkpoint{'' if len(result.path) == 1 else 's'}"
        sentences.append(f"The plane holds {share:.0%} of the squared distances of {told} from the weights.")
    if max(result.line_losses) <= loss + FALL:  # all of it flat
        return Reading((*sentences, "The loss hardly changes anywhere: nothing can be judged."), "open")
    if not result.skips or steps < FEW or result.plane != "random":
        why = f"It takes a network with skips, a random plane and {FEW} such steps to judge the claim."
        return Reading((*sentences, why), "open")
    rule = f"Rule: it agrees if at most {CALM:.0%} of these steps fall."
    return Reading((*sentences, rule), "agrees" if fallen <= CALM * steps else "disagrees")


def _width(result: Landscape, loss: float) -> str:
    """How far one can go until the loss is a nat higher."""
    pairs = zip(result.line, result.line_losses, strict=True)
    beyond = [abs(x) for x, value in pairs if not value < loss + 1]
    if not beyond:
        return "Nowhere on the line is it a nat higher."
    return f"It is a nat higher from a distance of {min(beyond):.2g} on."


def _fit(pace: Pace, seconds: float) -> LandscapeSettings | None:
    wanted = LandscapeSettings()
    for side, points, images in ((9, 31, 96), (9, 21, 64), (5, 21, 48), (5, 11, 32)):
        if (side**2 + points) * min(images, len(pace.subject.train)) * pace.forward_s <= seconds:
            return replace(wanted, side=side, points=points, images=images)
    return None


def _draw(result: Landscape) -> "Figure":
    return draw((result,))


EXPERIMENT = Experiment(
    name="landscape",
    title="The loss around the weights",
    paper="Li et al. 2018, arXiv:1712.09913",
    claim="Around the minimum of a network with skips the loss is nearly convex; of deep plain networks it is chaotic.",
    settings=LandscapeSettings(),
    result=Landscape,
    run=landscape,
    draw=_draw,
    read=_read,
    fit=_fit,
)
