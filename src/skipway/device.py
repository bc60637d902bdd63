"""Where to compute."""

import torch

from skipway.errors import InputError


def choose_device(name: str, asked: str = "train.device") -> torch.device:
    """The device of that name; "auto" is the accelerator where there is one, else the CPU.

    Args:
        name: auto, cpu, cuda, cuda:1, mps.
        asked: what said so, for the error.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{asked} '{name}' is not to be had here ({reason}); try auto or cpu") from error
    return device
