"""The tensors of a checkpoint in their files: one, or one of each process where weights are shared out over several.

A shared tensor's rows lie in the files one after the other; what every process has alike is in the first file alone. So
any number of processes can go on from it, each of which reads the rows that are its own.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from skipway.errors import InputError


def file_name(rank: int = 0, size: int = 1) -> str:
    """Of a process's tensors; `size` is 1 where nothing is shared out."""
    return "state.safetensors" if size == 1 else f"state-{rank + 1:05d}-of-{size:05d}.safetensors"


class Parts(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, whole; `rows` reads no more than it is asked for.

    Args:
        folder: of the checkpoint.
        files: those open.
    """

    def __init__(self, folder: Path, files: list[Any]):
        self.folder = folder
        self._of: dict[str, list[Any]] = {}
        for file in files:
            for key in file.keys():  # noqa: SIM118
                self._of.setdefault(key, []).append(file)

    def __getitem__(self, key: str) -> Tensor:
        parts = [file.get_tensor(key) for file in self._of[key]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)

    def rows(self, key: str, first: int, last: int) -> Tensor:
        """The rows from `first` up to before `last`, of a tensor of one dimension or more."""
        found, start = [], 0
        for file in self._of[key]:
            part = file.get_slice(key)
            end = start + part.get_shape()[0]
            if max(first, start) < min(last, end):
                found.append(part[max(first, start) - start : min(last, end) - start])
            start = end
        return torch.cat(found) if found else self._of[key][0].get_slice(key)[:0]

    def shape(self, key: str) -> tuple[int, ...]:
        """Of a whole tensor."""
        shapes = [tuple(file.get_slice(key).get_shape()) for file in self._of[key]]
        return shapes[0] if len(shapes) == 1 else (sum(shape[0] for shape in shapes), *shapes[0][1:])


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Parts]:
    """The tensors of the checkpoint in a folder, for as long as this is open.

    Raises:
        InputError: a file is missing or is none of safetensors.
    """
    names = sorted(path.name for path in folder.glob("state*.safetensors"))
    wanted = [file_name(rank, len(names)) for rank in range(len(names))]
    if not names or names != wanted:
        raise InputError(
            f"{folder} has {', '.join(names) or 'no weights'} in place of {', '.join(wanted) or file_name()}; where "
            "each process wrote a part, the run folder must be on a disk that all of them share"
        )
    with contextlib.ExitStack() as stack:
        try:
            files = [stack.enter_context(safe_open(folder / name, "pt")) for name in names]
            yield Parts(folder, files)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{folder} does not hold whole safetensors files: {error}") from error


def read_parts(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, whole. Raises InputError."""
    with opened(folder) as parts:
        return dict(parts)
