"""Weights, gradients and the optimizer's memory shared out over processes (PyTorch's FSDP2), for networks that are too
large for one device. Each process saves its own rows (parts.py), and a run may go on with another number of processes.

What it takes of PyTorch is imported once it is asked for: it takes as long as a tenth of everything else.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.nn.network import ResNet
from skipway.spec import RunSpec
from skipway.training.parts import Parts
from skipway.training.world import World


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


def is_part(tensor: Tensor) -> bool:
    """Whether a tensor is shared out."""
    return hasattr(tensor, "placements")


def own_part(tensor: Tensor) -> Tensor:
    """This process's rows of a tensor that is shared out; another one as it is."""
    return tensor.to_local() if is_part(tensor) else tensor  # pyrefly: ignore[missing-attribute]


def whole_on_first(state: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Whole tensors on the CPU of the first process, nothing on others; one after the other, so that each fits."""
    found = {}
    for key, value in state.items():
        tensor = whole(value)
        if world.is_first:
            found[key] = tensor.detach().cpu()
    return found


def own_rows(parts: Parts, key: str, tensor: Tensor) -> Tensor:
    """What a checkpoint holds of a tensor: this process's rows where it is shared out, else all of it.

    Raises:
        InputError: it holds none of that name, or of another shape or type.
    """
    if key not in parts or parts.shape(key) != tuple(tensor.shape):
        came = f"has {list(parts.shape(key))}" if key in parts else "is not there"
        raise InputError(f"{parts.folder}: {key} {came}; {list(tensor.shape)} is wanted")
    if not is_part(tensor):
        return parts[key]
    mesh = tensor.device_mesh  # pyrefly: ignore[missing-attribute]
    each = -(-tensor.shape[0] // mesh.size())  # as torch.chunk shares out
    first = min(each * mesh.get_local_rank(), tensor.shape[0])
    return parts.rows(key, first, min(first + each, tensor.shape[0]))


@torch.no_grad()
def put_parts(network: nn.Module, parts: Parts, prefix: str) -> None:
    """Read a checkpoint's weights into a network that is shared out. Raises InputError."""
    for name, tensor in network.state_dict().items():
        own_part(tensor).copy_(own_rows(parts, prefix + name, tensor))


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """A tensor in the memory layout of a parameter of its shape; rows of a shared one become a part as it is."""
    if is_part(parameter):
        from torch.distributed.tensor import DTensor

        assert isinstance(parameter, DTensor)
        rows, shape, stride = value.to(parameter.device), parameter.shape, parameter.stride()
        return DTensor.from_local(rows, parameter.device_mesh, parameter.placements, shape=shape, stride=stride)
    return torch.empty_like(parameter).copy_(value)
