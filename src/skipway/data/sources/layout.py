"""From the paths of a folder or an archive to classes and splits: CLASS/**/image, or SPLIT/CLASS/**/image."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skipway.data.images.decode import is_image_name
from skipway.data.source import consecutive
from skipway.errors import InputError

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
DATA_FILES = (".parquet", ".tar", ".zip", ".npz")  # might hold samples, so they are not passed over in silence
LITTER = frozenset({"thumbs.db", "desktop.ini"})  # what operating systems leave behind


def refuse(message: str) -> None:
    """What a fault of the layout comes to where a set is to be used."""
    raise InputError(message)


@dataclass(frozen=True)
class Layout:
    """Which paths are samples, of which class, in which split.

    Args:
        order: positions in the given paths, split by split and class by class.
        labels: (N,) int64, one for each of `order`.
        classes: names, sorted.
        splits: as in Source; {} for one undivided set.
        bad: paths that were left out -> reason.
    """

    order: list[int]
    labels: Tensor
    classes: tuple[str, ...]
    splits: dict[str, Tensor]
    bad: dict[str, str]


def is_litter(path: str) -> bool:
    """Whether a path is hidden, or what operating systems and archivers leave behind."""
    parts = path.split("/")
    return parts[-1].lower() in LITTER or any(part.startswith((".", "__MACOSX")) for part in parts)


def arrange(
    paths: Sequence[str], folders: Iterable[str], title: str, *, fault: Callable[[str], None] = refuse
) -> Layout:
    """Find classes and splits in paths.

    Args:
        paths: of files, with / between the parts, without litter.
        folders: of folders, empty ones too.
        title: what to call the whole in a message.
        fault: what to do about a class without images, one that train lacks, and the like: raise, or take note.

    Raises:
        InputError: no images in class folders, or (by `fault`) a class that cannot be used.
    """
    tops = sorted({folder.split("/")[0] for folder in folders} | {p.split("/")[0] for p in paths if "/" in p})
    found = _split_folders(tops, title)
    depth = 1 if found else 0
    names: dict[str, dict[str, list[int]]] = {split: {} for split in found.values()} or {"": {}}
    for folder in folders:
        parts = folder.split("/")
        if len(parts) > depth and (not found or parts[0] in found):
            _check_name(parts[depth])
            names[found.get(parts[0], "")].setdefault(parts[depth], [])
    bad: dict[str, str] = {}
    for place, path in enumerate(paths):
        parts = path.split("/")
        if len(parts) > 1 and found and parts[0] not in found:
            bad[parts[0]] = f"stands beside {' and '.join(found)}, so it is passed over"
        elif len(parts) <= depth + 1:
            if is_image_name(path) or path.lower().endswith(DATA_FILES):
                bad[path] = "lies beside the class folders, not in one"
        elif not is_image_name(path):
            bad[path] = "not an image file"
        else:
            names[found.get(parts[0], "")].setdefault(parts[depth], []).append(place)
    order_of = {split: names[split] for split in ("", "train", "val", "test") if split in names}
    classes = _class_names(order_of, title, fault)
    where = {name: i for i, name in enumerate(classes)}
    order, labels, counts = [], [], {}
    for split, part in order_of.items():
        before = len(order)
        for name in sorted(part):
            if name in where:
                order += sorted(part[name], key=paths.__getitem__)
                labels += [where[name]] * len(part[name])
        counts[split] = len(order) - before
    splits = {name: part for name, part in consecutive(counts).items() if name and len(part)}
    return Layout(order, torch.tensor(labels, dtype=torch.int64), classes, splits, bad)


def _check_name(name: str) -> None:
    if not name.isprintable():
        raise InputError(f"class folder {name!r} has characters that cannot be written down; rename it")


def _split_folders(tops: list[str], title: str) -> dict[str, str]:
    """Folder -> split, where the top folders are named so."""
    found: dict[str, str] = {}
    for name in tops:
        split = SPLIT_NAMES.get(name.lower())
        if split in found.values():
            other = next(folder for folder in found if found[folder] == split)
            raise InputError(f"{title} has two {split} folders: {other} and {name}; rename one")
        if split:
            found[name] = split
    return found


def _class_names(parts: dict[str, dict[str, list[int]]], title: str, fault: Callable[[str], None]) -> tuple[str, ...]:
    """The class names, in order; train's where there is one, and the others may not add to them."""
    main = "train" if "train" in parts else next(iter(parts))
    names = sorted(parts[main])
    for name in names:
        if not parts[main][name]:
            place = f"{main}/{name}" if main else name
            fault(f"class folder {place} in {title} has no images: add some, or remove the folder")
    names = [name for name in names if parts[main][name]]
    for split, part in parts.items():
        extra = [name for name in sorted(part) if name not in names] if split != main else []
        if extra:
            known = ", ".join(names) or "none"
            fault(f"{split} has classes that {main} lacks: {', '.join(extra)} ({main} has {known})")
    if not names:
        raise InputError(f"{title} holds no images in class folders: one folder a class, images inside")
    return tuple(names)
