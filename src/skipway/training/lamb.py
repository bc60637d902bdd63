"""LAMB: Adam's step, made as long as a share of the weights that it changes, for large batches."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al. 2019, arXiv:1904.00962, algorithm 2), a foreach form.

    Filters and matrices step in proportion to their own norm (the trust ratio, unbounded); norms and biases step as
    Adam's, as the authors' code has them. The decay is added to the step before its norm is taken. Nothing is clipped.

    Args:
        groups: parameter groups.
        lr: learning rate.
        betas: of the averages of the gradient and of its square.
        eps: added to the root of the latter.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
    ):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self) -> None:  # pyrefly: ignore[bad-override]
        """One step of all that have a gradient."""
        for group in self.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            if learning:
                self._step_group(group, learning)

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                zeros = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                self.state[p].update(step=torch.zeros(()), **zeros)
        states = [self.state[p] for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        firsts, seconds = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        beta1, beta2 = group["betas"]
        torch._foreach_add_([s["step"] for s in states], 1)  # on the CPU: reading them waits for no device
        counts = [s["step"].item() for s in states]
        torch._foreach_lerp_(firsts, grads, 1 - beta1)
        torch._foreach_mul_(seconds, beta2)
        torch._foreach_addcmul_(seconds, grads, grads, value=1 - beta2)
        roots = torch._foreach_sqrt(seconds)
        torch._foreach_div_(roots, [(1 - beta2**t) ** 0.5 for t in counts])
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(firsts, [1 - beta1**t for t in counts])
        torch._foreach_div_(updates, roots)
        if group["weight_decay"]:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        adapted = [i for i, p in enumerate(params) if p.ndim > 1]
        if adapted:
            _scale_by_trust([params[i] for i in adapted], [updates[i] for i in adapted])
        torch._foreach_add_(params, updates, alpha=-group["lr"])


def _scale_by_trust(params: list[Tensor], updates: list[Tensor]) -> None:
    """Give each update the norm of its weights; where either is zero, leave it."""
    weights, steps = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(updates))
    ratios = torch.where((weights > 0) & (steps > 0), weights / steps, 1.0)
    torch._foreach_mul_(updates, ratios.unbind())
