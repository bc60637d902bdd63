"""Pictures of a run: how the loss fell, and where the network is most wrong."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, uint8

from skipway.data.source import Source
from skipway.errors import ReadError
from skipway.evaluation.labels import LabelScores
from skipway.evaluation.metrics import Scores
from skipway.evaluation.task import OneLabel, Task
from skipway.figures import png

TRAIN, VAL, BEST, QUIET = "#0072b2", "#d55e00", "#009e73", "#777777"  # told apart by the colour-blind too


def curves(
    metrics: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]], title: str, task: Task | None = None
) -> bytes:
    """Loss, accuracy (or mAP) and learning rate over the epochs.

    Args:
        metrics: one object an epoch, as in metrics.jsonl; at least one.
        steps: one object a step, as in steps.jsonl.
        title: what stands above.
        task: whose scores an epoch has; None: one label an image.

    Returns:
        A PNG.
    """
    task = task or OneLabel()
    on_train, on_val = f"train_{task.train_name}", f"val_{task.name}"
    figure = Figure(figsize=(11, 3.6), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11, parse_math=False)
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in metrics]
    best = max(metrics, key=lambda row: (row[on_val], -row["val_loss"]))
    if steps:
        per_epoch = max(row["step"] for row in steps) / max(row["epoch"] for row in steps)
        at = [row["step"] / per_epoch for row in steps]
        loss.plot(at, [row["loss"] for row in steps], color=TRAIN, alpha=0.25, linewidth=0.7, label="a step")
        rate.plot(at, [row["lr"] for row in steps], color=QUIET)
    loss.plot(epochs, [row["train_loss"] for row in metrics], ".-", color=TRAIN, label="train")
    loss.plot(epochs, [row["val_loss"] for row in metrics], ".-", color=VAL, label="validation")
    seen = "train (augmented)" if task.title == task.train_title else f"train (augmented), {task.train_title}"
    accuracy.plot(epochs, [100 * row[on_train] for row in metrics], color=TRAIN, label=seen, marker=".")
    accuracy.plot(epochs, [100 * row[on_val] for row in metrics], color=VAL, label="validation", marker=".")
    accuracy.plot(best["epoch"], 100 * best[on_val], "o", color=BEST, label=f"best {best[on_val]:.2%}")
    for axes, name in ((loss, "loss (nats)"), (accuracy, f"{task.title} (%)"), (rate, "learning rate")):
        _plain(axes)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(name, fontsize=10)
    loss.legend(frameon=False, fontsize=8)
    accuracy.legend(frameon=False, fontsize=8, loc="lower right")
    return png(figure)


def mistakes(
    source: Source, scores: Scores | LabelScores, classes: tuple[str, ...], title: str, *, num: int = 24
) -> bytes:
    """The most confident errors, each with its true and its predicted name.

    Args:
        source: where the images are.
        scores: what the network said.
        classes: names.
        title: what stands above.
        num: how many at the most.

    Returns:
        A PNG.
    """
    count, worst = scores.mistakes(classes, num)
    columns = 8
    rows = max(1, -(-len(worst) // columns))
    figure = Figure(figsize=(11, 1.9 * rows + 0.5), dpi=110, layout="constrained")
    figure.suptitle(f"{title}: {count}, the most confident first", fontsize=11, parse_math=False)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.axis("off")
    for axes, mistake in zip(grid, worst, strict=False):
        image = _readable(source, mistake.index)
        if image is None:
            continue
        axes.imshow(_shown(image).permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
        axes.set_title("\n".join(mistake.lines), fontsize=8, parse_math=False)
    return png(figure)


def _shown(image: Tensor) -> Tensor:
    """uint8 for the eye: deep images are stretched from their own least value to their greatest."""
    if image.dtype == uint8:
        return image
    image = image.double()
    low, high = image.amin(), image.amax()
    return ((image - low) * (255 / (high - low).clamp(min=1e-12))).round().to(uint8)


def _readable(source: Source, index: int) -> Tensor | None:
    try:
        return source.read(index)
    except ReadError:
        return None  # gone since it was scored


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
