"""Weights, gradients and the optimizer's memory shared out over processes (PyTorch's FSDP2), for networks that are too
large for one device. A checkpoint holds the whole tensors, so a run may go on with another number of processes.

What it takes of PyTorch is imported once it is asked for: it takes as long as a tenth of everything else.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.nn.network import ResNet
from skipway.spec import RunSpec


def check_shardable(spec: RunSpec) -> None:
    """Refuse what looks at whole weights. Raises InputError."""
    train = spec.train
    wrong = [
        *([f"optimizer {train.optimizer}"] if train.optimizer not in ("sgd", "adamw", "adam") else []),
        *(name for name in ("ema_decay", "lookahead", "fixed_norm", "freeze") if getattr(train, name)),
        *(["keep_hard"] if spec.speed.keep_hard < 1 else []),
    ]
    if wrong:
        raise InputError(f"speed.shard does not go with {', '.join(wrong)}, which want whole weights; leave it out")


def sharded(network: nn.Module, device: torch.device, processes: int) -> nn.Module:
    """The network with each of its blocks, and the rest, shared out over the processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network = network.to(memory_format=torch.contiguous_format)  # a must of fully_shard
    mesh = init_device_mesh(device.type, (processes,))
    if isinstance(network, ResNet):
        for stage in network.stages.children():
            for block in stage.children():
                fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    return network


def is_sharded(network: nn.Module) -> bool:
    """Whether a network is."""
    return hasattr(network, "set_requires_gradient_sync")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; where it is shared out each process has to ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyrefly: ignore[not-callable]


def put_whole(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a network that is shared out."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(network, dict(state), options=StateDictOptions(full_state_dict=True))


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """A whole tensor in the memory layout, or the parts, of a parameter of its shape."""
    if hasattr(parameter, "placements"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return torch.empty_like(parameter).copy_(value)
