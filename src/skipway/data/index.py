"""The index of a big folder, kept so that it opens at once the next time: paths and labels in flat arrays, mapped."""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from skipway.cache import cache_folder
from skipway.data.files import Names

FORMAT = "skipway-index-1"
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
    return cache_folder() / "index" / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]}.safetensors"


def save(root: Path, made: Index) -> None:
    """Keep an index; where it cannot be written, the folder is walked again the next time."""
    facts = {
        "format": FORMAT,
        "classes": json.dumps(made.classes),
        "splits": json.dumps({name: [int(part[0]), int(part[-1]) + 1] for name, part in made.splits.items()}),
        "bad": json.dumps(made.bad),
        "fingerprint": made.fingerprint,
    }
    arrays = {
        "names": made.names.blob, "name_ends": made.names.ends, "stats": made.stats,
        "folders": made.folders.blob, "folder_ends": made.folders.ends, "times": made.times,
    }  # fmt: skip
    tensors = {key: torch.from_numpy(array.copy()) for key, array in arrays.items()}
    target = place(root)
    beside = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file({**tensors, "labels": made.labels}, beside, facts)
        os.replace(beside, target)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()


def load(root: Path) -> Index | None:
    """The index of a folder that has not changed; None where there is none, or it has.

    Files that come, go or are renamed change their folder's time, and every folder's time is compared. Files
    rewritten in place do not: those are looked for in a sample.
    """
    target = place(root)
    if not target.is_file():
        return None
    try:
        with safe_open(target, framework="pt") as file:
            facts = file.metadata() or {}
            if facts.get("format") != FORMAT:
                return None
            t = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        made = Index(
            Names(t["names"].numpy(), t["name_ends"].numpy()),
            t["labels"],
            tuple(json.loads(facts["classes"])),
            {name: torch.arange(*ends) for name, ends in json.loads(facts["splits"]).items()},
            json.loads(facts["bad"]),
            t["stats"].numpy(),
            Names(t["folders"].numpy(), t["folder_ends"].numpy()),
            t["times"].numpy(),
            facts["fingerprint"],
        )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None
    return made if _unchanged(root, made) else None


def _unchanged(root: Path, made: Index) -> bool:
    try:
        for folder, time in zip(made.folders, made.times.tolist(), strict=True):
            if os.stat(root / folder).st_mtime_ns != time:
                return False
        for i in np.linspace(0, len(made.names) - 1, min(CHECKED, len(made.names))).astype(int).tolist():
            facts = os.stat(root / made.names[i])
            if [facts.st_size, facts.st_mtime_ns] != made.stats[i].tolist():
                return False
    except OSError:
        return False
    return True
