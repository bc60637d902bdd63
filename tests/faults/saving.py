"""A process that does nothing but save, to be killed in it."""

import os
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from skipway.training.vault import Vault


def save_for_ever(folder: str, slow_s: float, first: int) -> None:
    """Checkpoints one after the other; the number of each stands in the file `done` once it is saved."""
    fsync, run = os.fsync, Path(folder)

    def slow(fd: int) -> None:
        time.sleep(slow_s)
        fsync(fd)

    os.fsync = slow  # pyrefly: ignore[bad-assignment]
    for number in range(first, 10**6):
        save(run, number)
        beside = run / ".done"
        beside.write_text(str(number))
        os.rename(beside, run / "done")


def save(run: Path, number: int) -> None:
    """One checkpoint, whose tensors say its number."""
    tensors = {"a": torch.full((5000,), float(number)), "b": torch.full((70, 3), number)}
    Vault(run).write(
        f"epoch-{number:05d}",
        {"state.safetensors": lambda p: save_file(tensors, p), "position.json": lambda p: p.write_text(str(number))},
        keep=2,
    )


if __name__ == "__main__":
    save(Path(sys.argv[1]), int(sys.argv[2]))
