"""Batch norm over the images of all processes: PyTorch's on accelerators, which it is made for, ours on the CPU."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from skipway.nn.kernels import move_statistics


class SyncNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d whose mean and variance are those of the whole batch, wherever its images are.

    As Ioffe and Szegedy 2015 (arXiv:1502.03167) on one large batch: sums, in fp32, over all processes, forward and
    backward; running statistics are the same in each.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape and dtype."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        output, mean, var, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        move_statistics(self, mean, var, count)
        return output


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        wide = x.float()
        rows = x.numel() // x.shape[1]
        sums = torch.cat([wide.sum((0, 2, 3)), wide.new_tensor([rows])])
        dist.all_reduce(sums)
        count = sums[-1]
        mean = sums[:-1] / count
        squares = (wide - mean[:, None, None]).square().sum((0, 2, 3))
        dist.all_reduce(squares)
        var = squares / count
        inverse = (var + eps).rsqrt()
        normal = (wide - mean[:, None, None]) * inverse[:, None, None]
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.mark_non_differentiable(mean, var, count)
        return (normal * weight[:, None, None] + bias[:, None, None]).to(x.dtype), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, *_):  # pyrefly: ignore[bad-override]
        x, weight, mean, inverse, count = ctx.saved_tensors
        wide = dy.float()
        normal = (x.float() - mean[:, None, None]) * inverse[:, None, None]
        own = torch.stack([wide.sum((0, 2, 3)), (wide * normal).sum((0, 2, 3))])
        sums = own.clone()
        dist.all_reduce(sums)
        shift, along = sums / count
        factor = (weight * inverse)[:, None, None]
        dx = factor * (wide - shift[:, None, None] - normal * along[:, None, None])
        return dx.to(x.dtype), own[1], own[0], None


def synchronised(network: nn.Module, device: torch.device) -> nn.Module:
    """The network whose batch norms see the whole batch; they keep their parameters, buffers and names."""
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                made = SyncNorm(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
                made.weight, made.bias = child.weight, child.bias
                for key, buffer in child.named_buffers(recurse=False):
                    setattr(made, key, buffer)
                made.train(child.training)
                setattr(parent, name, made)
    return network
