"""The numbers of a data set: classes, sizes, formats, mean and deviation, time to decode."""

from collections import Counter
from typing import Any

import numpy as np

from skipway.data.doctor.case import Case
from skipway.data.source import is_multilabel

SLOWEST, SIZES = 5, 100


def class_counts(case: Case) -> dict[str, dict[str, int]]:
    """class -> split -> images."""
    labels, classes = case.source.labels.numpy(), case.source.classes
    counts: dict[str, dict[str, int]] = {name: {} for name in classes}
    for split, part in case.parts.items():
        own = labels[part]
        of_class = own.sum(0) if is_multilabel(case.source) else np.bincount(own, minlength=len(classes))
        for name, count in zip(classes, of_class.tolist(), strict=True):
            counts[name][split] = int(count)
    return counts


def mean_and_std(case: Case) -> tuple[list[float], list[float]]:
    """Of each channel over the train split (all, where it is undivided), each image counting alike; 0 to 1, or deep."""
    part = case.parts.get("train", case.looks.seen)
    table, channels = case.looks.table, case.source.channels
    if not len(part):
        return [0.0] * channels, [0.0] * channels
    mean = table["mean"][part].mean(0, dtype=np.float64)[:channels]
    square = table["square"][part].mean(0, dtype=np.float64)[:channels]
    return mean.round(4).tolist(), np.sqrt(np.maximum(square - mean**2, 0)).round(4).tolist()


def sizes(case: Case) -> list[dict[str, int]]:
    """{width, height, count}, the most frequent first."""
    pairs = Counter(zip(case.column("width").tolist(), case.column("height").tolist(), strict=True))
    return [{"width": w, "height": h, "count": count} for (w, h), count in pairs.most_common(SIZES)]


def side_histogram(case: Case) -> dict[str, list[float]]:
    """Shorter sides in steps of a factor of the square root of 2: {edges: n + 1, counts: n}."""
    side = np.minimum(case.column("width"), case.column("height")).clip(1)
    if not len(side):
        return {"edges": [], "counts": []}
    low, high = np.floor(2 * np.log2(side.min())), np.floor(2 * np.log2(side.max())) + 1
    edges = 2 ** (np.arange(low, high + 1) / 2)
    edges[-1] = max(edges[-1], side.max() + 1)
    counts, _ = np.histogram(side, edges)
    return {"edges": edges.round(1).tolist(), "counts": counts.tolist()}


def statistics_of(case: Case) -> dict[str, Any]:
    """All of it, as plain data."""
    mean, std = mean_and_std(case)
    seconds, seen = case.column("seconds"), case.looks.seen
    slow = [(case.source.name(int(seen[i])), round(float(seconds[i]), 4)) for i in np.argsort(-seconds)[:SLOWEST]]
    return {
        "images": sum(map(len, case.parts.values())),
        "read": len(seen),
        "splits": {split: len(part) for split, part in case.parts.items()},
        "classes": class_counts(case),
        "channels": case.source.channels,
        "deep": case.source.deep,
        "mean": mean,
        "std": std,
        "sizes": sizes(case),
        "side_histogram": side_histogram(case),
        "formats": _tally(case, "format"),
        "modes": _tally(case, "mode"),
        "bytes": int(case.column("bytes").sum()),
        "decode_seconds": float(seconds.sum().round(3)),
        "slowest": [{"file": name, "seconds": taken} for name, taken in slow],
    }


def _tally(case: Case, column: str) -> dict[str, int]:
    values, counts = np.unique(case.column(column), return_counts=True)
    return {value.decode(): int(count) for value, count in zip(values, counts, strict=True) if value}
