"""From the CPU to where a network is."""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device.

    From the CPU to CUDA it goes by way of pinned memory, so that nothing waits: the next batch can be made meanwhile.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    if device.type == "mps" and tensor.dtype == torch.float64:  # which it does not have
        tensor = tensor.float()
    return tensor.to(device)
