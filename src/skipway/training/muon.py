"""Muon: steps of filters and matrices whose singular values are all about alike; what is neither gets SGD.

    filters (out, in, k, k) -> a matrix (out, k * k * in); a grouped convolution's -> one matrix a group
    momentum -> Newton-Schulz -> a matrix with the same singular vectors and singular values about 1 -> the step

Small matrices of one shape go through the iteration together. It computes in bf16 where the hardware does.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from skipway.training.machine import computes_bf16

STEPS = 3  # of Newton-Schulz, as in Jordan's CIFAR-10 record; language models take 5, which costs 5/3 of the time
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan 2024: steepest at 0, so that small singular values grow fast
TOGETHER = 1 << 16  # numbers in a matrix up to which a batch of them beats one after another (measured on a CPU)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982).

    A step of a filter or matrix is lr * sqrt(max(1, rows / columns)) long in the spectral norm, as Jordan and
    torch.optim.Muon ("original") have it, whatever the gradient's length; the decay is decoupled (AdamW's). SGD's
    decay is added to the gradient, as in torch.optim.SGD. Both have Nesterov's momentum unless a group says not.

    Args:
        groups: parameter groups. `kind` "matrix": weights with two or four dimensions, each cut along its outputs
            into `blocks` matrices of equal height; `kind` "sgd": all others. Each has its own `momentum`.
        lr: learning rate.
        steps: of the Newton-Schulz iteration.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, steps: int = STEPS):
        defaults = {"lr": lr, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0, "kind": "sgd", "blocks": 1}
        super().__init__(groups, defaults)
        self.steps = steps
        bf16 = computes_bf16(self.param_groups[0]["params"][0].device)
        self.dtype = torch.bfloat16 if bf16 else torch.float32

    @torch.no_grad()
    def step(self) -> None:  # pyrefly: ignore[bad-override]
        """One step of all that have a gradient."""
        for group in self.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            if learning and group["kind"] == "matrix":
                self._step_matrices(group, learning)
            elif learning:
                self._step_sgd(group, learning)

    def _step_matrices(self, group: dict[str, Any], params: list[Tensor]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        moved = torch._foreach_lerp(grads, buffers, momentum) if group["nesterov"] else buffers
        updates = orthogonal_all([_matrices(m, group["blocks"]) for m in moved], self.steps, self.dtype)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        for p, update in zip(params, updates, strict=True):
            rows, columns = update.shape[-2:]
            turned = p.movedim(1, -1)
            turned.add_(update.reshape(turned.shape), alpha=-lr * math.sqrt(max(1.0, rows / columns)))

    def _step_sgd(self, group: dict[str, Any], params: list[Tensor]) -> None:
        buffers = [self.state[p].get("momentum_buffer") for p in params]
        settings = {name: group[name] for name in ("weight_decay", "momentum", "lr", "nesterov")}
        grads = [p.grad for p in params if p.grad is not None]
        sgd(params, grads, buffers, foreach=True, dampening=0.0, maximize=False, **settings)
        for p, buffer in zip(params, buffers, strict=True):
            if buffer is not None:
                self.state[p]["momentum_buffer"] = buffer


def _matrices(weight: Tensor, blocks: int) -> Tensor:
    """(out, in, ...) -> (blocks, out / blocks, ... * in): columns in the order of channels_last memory.

    Their order does not matter: an orthogonal matrix with its columns exchanged is the other's, exchanged alike.
    """
    return weight.movedim(1, -1).reshape(blocks, len(weight) // blocks, -1)


def orthogonal_all(found: list[Tensor], steps: int, dtype: torch.dtype) -> list[Tensor]:
    """`orthogonal` of each stack of matrices, those of one shape together where they are small.

    Args:
        found: (N, rows, columns) each.
        steps, dtype: of the iteration.
    """
    by_shape: dict[tuple[int, int], list[int]] = {}
    for i, stack in enumerate(found):
        by_shape.setdefault((stack.shape[1], stack.shape[2]), []).append(i)
    made: dict[int, Tensor] = {}
    for (rows, columns), places in by_shape.items():
        if rows * columns <= TOGETHER:
            together = orthogonal(torch.cat([found[i] for i in places]), steps, dtype)
            made |= dict(zip(places, together.split([len(found[i]) for i in places]), strict=True))
        else:
            made |= {i: torch.stack([orthogonal(one, steps, dtype) for one in found[i]]) for i in places}
    return [made[i] for i in range(len(found))]


def orthogonal(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """About U V^T of each U S V^T, by the quintic Newton-Schulz iteration x <- a x + b (x x^T) x + c (x x^T)^2 x.

    Args:
        matrices: (rows, columns) or (N, rows, columns), float.
        steps: the more, the smaller the singular values that reach about 1 (0.7 to 1.2).
        dtype: what it computes in.

    Returns:
        Same shape, in that dtype; zeros stay zeros.
    """
    a, b, c = COEFFICIENTS
    add_product = torch.addmm if matrices.ndim == 2 else torch.baddbmm
    length = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
    x = (matrices / length.clamp(min=1e-7)).to(dtype)  # no singular value above 1
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = add_product(x, add_product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def hidden_matrices(network: nn.Module, outside: set[int]) -> dict[int, int]:
    """id of a weight that Muon is for -> the number of matrices in it.

    These are the weights of convolutions but the first (its rows see colours, not features), of linear layers, and
    of attention, whose queries, keys and values are three matrices in one weight.

    Args:
        network: the whole network.
        outside: ids of weights that are to be left out: the head's.
    """
    modules = [*network.modules()]
    convs = [m for m in modules if isinstance(m, nn.Conv2d)]
    found = {id(m.weight): m.groups for m in convs}
    found |= {id(m.weight): 1 for m in modules if isinstance(m, nn.Linear)}
    found |= {id(m.in_proj_weight): 3 for m in modules if isinstance(m, nn.MultiheadAttention)}
    outside = outside | {id(m.weight) for m in convs[:1]}
    return {key: blocks for key, blocks in found.items() if key not in outside}
