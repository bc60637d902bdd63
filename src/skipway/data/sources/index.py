"""The index of a big folder, kept so that it opens at once the next time: paths and labels in flat arrays, mapped."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from skipway.cache import cache_folder, keep_arrays, kept_arrays
from skipway.data.files import Names

FORMAT = "index-2"  # in the name of an index, so that one of another kind is never read
EMPTY, NOTHING = "empty (0 bytes)", "a link to nothing"  # why files cannot be used that may be mended in place
CHECKED = 1_000  # files whose size and time are compared when an index is opened; of folders all times are


@dataclass(frozen=True)
class Index:
    """What is known of a folder of images.

    Args:
        names, labels, classes, splits, bad: as in FileSource.
        stats: (N, 2) int64: size in bytes, time of change in ns.
        folders, times: every folder below it, and its time of change in ns.
        fingerprint: hash over names and stats.
    """

    names: Names
    labels: Tensor
    classes: tuple[str, ...]
    splits: dict[str, Tensor]
    bad: dict[str, str]
    stats: np.ndarray
    folders: Names
    times: np.ndarray
    fingerprint: str


def place(root: Path) -> Path:
    """Where the index of a folder is kept."""
    name = hashlib.sha256(FORMAT.encode() + os.fsencode(root.resolve())).hexdigest()[:24]
    return cache_folder() / "index" / f"{name}.safetensors"


def save(root: Path, made: Index) -> None:
    """Keep an index; where it cannot be written, the folder is walked again the next time."""
    arrays = {
        "names": made.names.blob, "name_ends": made.names.ends, "stats": made.stats, "labels": made.labels.numpy(),
        "folders": made.folders.blob, "folder_ends": made.folders.ends, "times": made.times,
    }  # fmt: skip
    splits = {name: [int(part[0]), int(part[-1]) + 1] for name, part in made.splits.items()}
    facts = {"classes": made.classes, "splits": splits, "bad": made.bad, "fingerprint": made.fingerprint}
    keep_arrays(place(root), arrays, facts)


def load(root: Path) -> Index | None:
    """The index of a folder that has not changed; None where there is none, or it has.

    Files that come, go or are renamed change their folder's time, and every folder's time is compared. Files
    rewritten in place do not: those are looked for in a sample, and among the files that could not be used.
    """
    kept = kept_arrays(place(root))
    if kept is None:
        return None
    t, facts = kept
    try:
        made = Index(
            Names(t["names"], t["name_ends"]),
            torch.from_numpy(t["labels"]),
            tuple(facts["classes"]),
            {name: torch.arange(*ends) for name, ends in facts["splits"].items()},
            facts["bad"],
            t["stats"],
            Names(t["folders"], t["folder_ends"]),
            t["times"],
            facts["fingerprint"],
        )
    except (KeyError, ValueError, TypeError):
        return None
    return made if _unchanged(root, made) else None


def _unchanged(root: Path, made: Index) -> bool:
    try:
        for folder, time in zip(made.folders, made.times.tolist(), strict=True):
            if os.stat(root / folder).st_mtime_ns != time:
                return False
        for name, reason in made.bad.items():
            if (reason == EMPTY and os.stat(root / name).st_size) or (reason == NOTHING and (root / name).exists()):
                return False
        for i in np.linspace(0, len(made.names) - 1, min(CHECKED, len(made.names))).astype(int).tolist():
            facts = os.stat(root / made.names[i])
            if [facts.st_size, facts.st_mtime_ns] != made.stats[i].tolist():
                return False
    except OSError:
        return False
    return True
