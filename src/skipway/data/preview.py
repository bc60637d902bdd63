"""A picture of training images before a run: the file, what is made of it, and how each epoch would change it.

The changes are those of training itself: the same loader, the same draws, normalised and mixed like a batch.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from skipway import randomness
from skipway.data.augmentation.augment import Augment, unnormalised
from skipway.data.augmentation.crop import source_size
from skipway.data.loader import Batch, make_loader
from skipway.data.open import open_source
from skipway.data.preprocess import Preprocess, choose_size, normalised, plain
from skipway.data.source import Source
from skipway.data.split import make_splits
from skipway.data_spec import AugmentSpec, DataSpec
from skipway.errors import InputError, ReadError, for_example
from skipway.figures import png, short

ROWS, EPOCHS = 6, 6
LOOKED_AT = 10_000  # images among which one of each class is looked for
ORIGINAL = 256  # pixels that an original is decoded to at least
CELL, GAP, LEFT, TOP, BOTTOM, RIGHT = 1.2, 0.08, 1.5, 1.05, 0.75, 0.2  # inches
INK, QUIET = "#222222", "#777777"


@dataclass(frozen=True)
class Row:
    """One sample.

    Args:
        name: of its class, or classes.
        file: what a person calls it.
        original: (C, H, W), or None where it cannot be read alone.
        fitted: (C, S, S).
        changed: (C, S, S) for each epoch.
        shares: for each epoch what it counts as, "" where that is its own class.
    """

    name: str
    file: str
    original: Tensor | None
    fitted: Tensor
    changed: tuple[Tensor, ...]
    shares: tuple[str, ...]


def preview(
    data: str | Path | DataSpec,
    *,
    augment: AugmentSpec | None = None,
    out: str | Path = "preview.png",
    seed: int = 0,
) -> Path:
    """Draw some training images: as they are, as the network's size wants them, and as six epochs change them.

    Args:
        data: whatever `train` takes, or a DataSpec.
        augment: the changes; default: those of the default recipe.
        out: a .png file; where it exists the next free name is taken (preview-2.png).
        seed: which images, and the draws; that of a run gives the run's.

    Returns:
        The file that was written.

    Raises:
        InputError: data, settings or file cannot be used.

    Example:
        >>> skipway.preview("photos", augment=AugmentSpec(randaugment=2))  # doctest: +SKIP
    """
    out = Path(out)
    if out.suffix.lower() != ".png":
        raise InputError(f"the preview is a PNG: --out must end in .png, got {out}")
    if not out.parent.is_dir():
        raise InputError(f"no such folder: {out.parent}")
    spec = data if isinstance(data, DataSpec) else DataSpec(path=str(data))
    picture = draw(spec, augment or AugmentSpec(), seed)
    number = 1
    while True:
        place = out if number == 1 else out.with_stem(f"{out.stem}-{number}")
        try:
            with place.open("xb") as file:
                file.write(picture)
            return place
        except FileExistsError:
            number += 1
        except OSError as error:
            raise InputError(f"{place} cannot be written: {error.strerror or error}") from error


def draw(spec: DataSpec, augment: AugmentSpec, seed: int) -> bytes:
    """The picture as a PNG. Raises InputError."""
    source = open_source(spec)
    train = make_splits(source, spec).train
    size, _ = choose_size(source, spec.image_size)
    preprocess = plain(source, spec, size)
    changes = Augment(augment, preprocess, num_classes=len(source.classes), seed=seed)
    held = source_size(augment, source.size, size)
    loader = make_loader(source, preprocess.resized(held), spec)
    try:
        preprocess = normalised(loader, train, spec)[0].resized(size)
        chosen = choose(source, train, seed)
        batch = next(loader.batches(chosen, len(chosen)), None)
    finally:
        loader.close()
    if batch is None:
        raise InputError(f"none of the training images can be read{for_example(loader.bad)}")
    title = f"{short(spec.path, 60)}: {len(source.classes)} classes, {len(train):,} training images"
    return _picture(_rows(source, batch, preprocess, changes), title, _footer(preprocess, augment), size)


def choose(source: Source, train: Tensor, seed: int) -> Tensor:
    """Some training samples, each of another class as far as that goes, sorted by class. (n,) int64."""
    order = randomness.order(train, seed=seed, epoch=0)[:LOOKED_AT].tolist()
    labels = source.labels[order]
    keys = [tuple(label) for label in labels.tolist()] if labels.ndim == 2 else labels.tolist()
    first: dict[object, int] = {}
    for place, key in enumerate(keys):
        first.setdefault(key, place)
    others = sorted(set(range(len(order))) - set(first.values()))
    places = [*first.values(), *others][:ROWS]
    return torch.tensor([order[place] for place in sorted(places, key=lambda place: keys[place])])


def _rows(source: Source, batch: Batch, preprocess: Preprocess, augment: Augment) -> list[Row]:
    """Every image of the batch through six epochs."""
    epochs = []
    for epoch in range(1, EPOCHS + 1):
        inputs, targets = augment.mix(preprocess.normalise(augment.pixels(batch, epoch)), batch, epoch)
        mixed = targets is not batch.labels
        texts = [_share(row, source.classes) if mixed else "" for row in targets]
        epochs.append((unnormalised(inputs, preprocess), texts))
    rows = []
    for place, index in enumerate(batch.indices.tolist()):
        try:
            original = source.read(index, max(ORIGINAL, preprocess.image_size))
        except ReadError:
            original = None
        fitted = preprocess.fit(batch.images[place] if original is None else original)
        changed = tuple(images[place] for images, _ in epochs)
        shares = tuple(texts[place] for _, texts in epochs)
        name = _name(batch.labels[place], source.classes)
        rows.append(Row(name, Path(source.name(index)).name, original, fitted, changed, shares))
    return rows


def _name(label: Tensor, classes: tuple[str, ...]) -> str:
    """The class, or all of several."""
    chosen = [int(label)] if label.ndim == 0 else label.nonzero()[:, 0].tolist()
    return ", ".join(classes[i] for i in chosen) or "none"


def _share(target: Tensor, classes: tuple[str, ...]) -> str:
    """The two classes that count most, in percent; "" where it is one."""
    values, places = target.topk(min(2, len(target)))
    parts = [
        f"{v:.0%} {short(classes[i], 9)}" for v, i in zip(values.tolist(), places.tolist(), strict=True) if v > 0.005
    ]
    return " + ".join(parts) if len(parts) > 1 else ""


def flags_of(augment: AugmentSpec) -> list[str]:
    """What is on, as flags of the command."""
    belongs = {"flip_mode": "flip", "pad_mode": "pad_crop", "randaugment_magnitude": "randaugment"}
    shown = []
    for f in dataclasses.fields(augment):
        value = getattr(augment, f.name)
        off = not getattr(augment, belongs.get(f.name, f.name))
        usual = f.name in belongs and value == f.default
        if off or usual or (f.name in ("pad_crop", "pad_mode") and augment.random_resized_crop):
            continue
        text = "" if value is True else " ".join(f"'{v}'" for v in value) if isinstance(value, tuple) else f"{value}"
        shown.append(f"--{f.name.replace('_', '-')} {text}".strip())
    return shown


def _footer(preprocess: Preprocess, augment: AugmentSpec) -> list[str]:
    mean, std = (", ".join(f"{v:.3g}" for v in values) for values in (preprocess.mean, preprocess.std))
    scale = "" if preprocess.reading.deep else ", on a scale of 0 to 1"
    changes = "  ".join(flags_of(augment)) or "none"
    return [
        f"changes   {changes}",
        f"then every channel is normalised, (value - mean) / deviation: mean {mean}, deviation {std}{scale}",
    ]


def _picture(rows: list[Row], title: str, footer: list[str], size: int) -> bytes:
    """The grid."""
    columns = 2 + EPOCHS
    width = LEFT + columns * (CELL + GAP) + 2 * GAP + RIGHT
    height = TOP + len(rows) * (CELL + 2 * GAP) + BOTTOM
    figure = Figure(figsize=(width, height), dpi=110)

    def say(x: float, y: float, text: str, *, size: float = 9, bold: bool = False, quiet: bool = False) -> None:
        """Text at inches from the left (in the margin: beginning there; else: centred) and the top."""
        weight, colour = "bold" if bold else "normal", QUIET if quiet else INK
        where, align = (x / width, 1 - y / height), "left" if x < LEFT else "center"
        figure.text(*where, text, fontsize=size, weight=weight, color=colour, ha=align, va="center", parse_math=False)

    def across(column: int) -> float:
        """The left edge of a column; the two groups stand a little apart."""
        return LEFT + column * (CELL + GAP) + (2 * GAP if column > 1 else 0)

    say(0.2, 0.3, title, size=12, bold=True)
    heads = ["the file", f"fitted: {size} × {size}", *(f"epoch {e}" for e in range(1, EPOCHS + 1))]
    for column, head in enumerate(heads):
        say(across(column) + CELL / 2, TOP - 0.15, head, quiet=column > 1)
    say(
        across(2) + (EPOCHS * (CELL + GAP)) / 2, TOP - 0.4, "what the network is trained on, shown before normalisation"
    )
    ends = (across(2) / width, (across(2) + EPOCHS * (CELL + GAP) - GAP) / width)
    figure.add_artist(Line2D(ends, [1 - (TOP - 0.28) / height] * 2, color=QUIET, linewidth=0.6))
    for number, row in enumerate(rows):
        top = TOP + number * (CELL + 2 * GAP)
        say(0.2, top + CELL / 2 - 0.09, short(row.name, 16), bold=True)
        say(0.2, top + CELL / 2 + 0.11, short(row.file, 22), size=6.5, quiet=True)
        low, high = _ends(row)
        for column, image in enumerate([row.original, row.fitted, *row.changed]):
            if image is None:
                continue
            place = (across(column) / width, 1 - (top + CELL) / height, CELL / width, CELL / height)
            axes = figure.add_axes(place)
            axes.axis("off")
            shown = ((image.float() - low) / (high - low)).clamp(0, 1).permute(1, 2, 0).squeeze(-1).numpy()
            smooth = "nearest" if max(image.shape[1:]) <= 64 else "antialiased"
            axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation=smooth)
            if column > 1 and row.shares[column - 2]:
                say(across(column) + CELL / 2, top + CELL + 0.07, row.shares[column - 2], size=5.5, quiet=True)
    for line, text in enumerate(footer):
        say(0.2, height - BOTTOM + 0.25 + 0.22 * line, text, size=8, quiet=True)
    return png(figure)


def _ends(row: Row) -> tuple[float, float]:
    """Values that are shown black and white: 0 and 255, or nearly all that a deep image holds."""
    if row.fitted.dtype == torch.uint8:
        return 0.0, 255.0
    low, high = np.quantile(row.fitted.numpy(), [0.005, 0.995]).tolist()
    return low, max(high, low + 1e-6)
