"""A folder of images: class folders, or train / val / test folders of class folders. Read only, never written."""

import os
from pathlib import Path

import torch
from torch import Tensor

from skipway.data.decode import SUFFIXES, decode, read_size
from skipway.errors import InputError, ReadError

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LITTER = frozenset({"thumbs.db", "desktop.ini"})  # what operating systems leave behind


class FolderSource:
    """Images in class folders; implements Source. Files stay on disk and are decoded when read.

    Args:
        root: `root/CLASS/**/image`, or `root/SPLIT/CLASS/**/image` with SPLIT one of train, val (valid,
            validation), test in any case. Hidden files and folders are passed over.
        stop: raise at the first file that is no image, instead of leaving it out.

    Raises:
        InputError: no images, a class without images, a class that train lacks, or (with `stop`) a bad file.
    """

    images: Tensor | None = None
    channels = 3

    def __init__(self, root: Path, *, stop: bool = False):
        self.root = root
        self.bad: dict[str, str] = {}
        self._sizes: set[tuple[int, int]] = set()
        found = _split_folders(root)
        parts = {s: self._scan(folder) for s, folder in found.items()} or {"": self._scan(root)}
        if not any(files for part in parts.values() for files in part.values()) and not self.bad:
            raise InputError(f"{root} holds no images in class folders: one folder a class, images inside")
        if stop and self.bad:
            name, reason = next(iter(self.bad.items()))
            raise ReadError(name, f"{reason} (--bad-files skip leaves such files out)")
        self.classes = _class_names(parts, root)
        self._files = [(path, c) for part in parts.values() for c, paths in part.items() for path in paths]
        where = {name: i for i, name in enumerate(self.classes)}
        self.labels = torch.tensor([where[c] for _, c in self._files])
        self.splits: dict[str, Tensor] = {}
        start = 0
        for split, part in parts.items():
            count = sum(map(len, part.values()))
            if split and count:
                self.splits[split] = torch.arange(start, start + count)
            start += count

    def _scan(self, folder: Path) -> dict[str, list[Path]]:
        """Class name -> its images, both sorted; headers are checked, bad files noted."""
        classes: dict[str, list[Path]] = {}
        for loose in sorted(folder.iterdir()):
            if loose.is_file() and loose.suffix.lower() in SUFFIXES and not loose.name.startswith("."):
                self.bad[str(loose.relative_to(self.root))] = "lies beside the class folders, not in one"
        for child in _visible_folders(folder):
            if not child.name.isprintable():
                raise InputError(f"class folder {child.name!r} has characters that cannot be written down; rename it")
            classes[child.name] = []
            seen: set[str] = set()
            for at, folders, names in os.walk(child, followlinks=True):
                if os.path.realpath(at) in seen:  # a link back up
                    folders.clear()
                    continue
                seen.add(os.path.realpath(at))
                folders[:] = sorted(f for f in folders if not f.startswith("."))
                for name in sorted(names):
                    if not name.startswith(".") and name.lower() not in LITTER and self._usable(Path(at, name)):
                        classes[child.name].append(Path(at, name))
        return classes

    def _usable(self, path: Path) -> bool:
        """Whether the header is an image's; notes the sizes, and what is wrong with the rest."""
        label = str(path.relative_to(self.root))
        try:
            if path.suffix.lower() not in SUFFIXES:
                raise ReadError(label, "not an image file")
            width, height = read_size(path, label)
        except ReadError as error:
            self.bad[error.name] = error.reason
            return False
        self._sizes.add((height, width))
        return True

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) where all images are alike, else None."""
        return next(iter(self._sizes)) if len(self._sizes) == 1 else None

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        """The file's path below the folder."""
        return str(self._files[index][0].relative_to(self.root))

    def read(self, index: int) -> Tensor:
        """One image, (3, H, W) uint8. Raises ReadError."""
        return decode(self._files[index][0], self.channels, self.name(index))


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__MACOSX")))


def _split_folders(root: Path) -> dict[str, Path]:
    """Split -> folder, where the children are named so; train first."""
    found: dict[str, Path] = {}
    for child in _visible_folders(root):
        split = SPLIT_NAMES.get(child.name.lower())
        if split in found:
            raise InputError(f"{root} has two {split} folders: {found[split].name} and {child.name}; rename one")
        if split:
            found[split] = child
    return {s: found[s] for s in ("train", "val", "test") if s in found}


def _class_names(parts: dict[str, dict[str, list[Path]]], root: Path) -> tuple[str, ...]:
    """The class names, in order; train's where there is one, and the others may not add to them."""
    main = "train" if "train" in parts else next(iter(parts))
    names = sorted(parts[main])
    for name in names:
        if not parts[main][name]:
            place = Path(main, name) if main else Path(name)
            raise InputError(f"class folder {place} in {root} has no images: add some, or remove the folder")
    for split, part in parts.items():
        extra = [name for name in part if name not in names]
        if extra:
            raise InputError(
                f"{split} has classes that {main} lacks: {', '.join(extra)} ({main} has {', '.join(names)})"
            )
    if not names:
        raise InputError(f"{root} holds no images in class folders: one folder a class, images inside")
    return tuple(names)
