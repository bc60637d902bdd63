"""What happens to the weights after each step of any optimizer: slow weights, filters held at their norm.

It hangs on the optimizer's own hooks and keeps what it must remember in the optimizer's state, tensor by tensor, so
that a checkpoint of the optimizer holds it too.
"""

from typing import Any

import torch
from torch import Tensor

SLOW_SHARE = 0.5  # of the way to the fast weights (Zhang et al. 2019, section 3.1 and table 1)


class AfterStep:
    """Lookahead (Zhang et al. 2019, arXiv:1907.08610) and fixed norms, around every step of an optimizer.

    Every `lookahead` steps the slow weights go half of the way to the fast ones, and the fast ones begin again from
    there. Then each filter bank (a weight with four dimensions) is scaled to the norm it had before its first step;
    one that began with zeros is left free.

    Args:
        optimizer: its steps are followed from now on.
        lookahead: fast steps to one slow step; 0: none.
        fixed_norm: whether filters keep their norm.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, lookahead: int, fixed_norm: bool):
        self.lookahead, self.fixed_norm = lookahead, fixed_norm
        self.steps = 0
        self.new: dict[Tensor, dict[str, Tensor]] = {}
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)
        optimizer.register_load_state_dict_post_hook(self._loaded)

    @torch.no_grad()
    def _before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """See where each parameter begins. It is noted after the step: optimizers fill an empty state only."""
        self.new = {}
        for p in _learning(optimizer):
            known = optimizer.state.get(p, {})
            start: dict[str, Tensor] = {}
            if self.lookahead and "slow" not in known:
                start["slow"] = p.clone()
            if self.fixed_norm and p.ndim == 4 and "start_norm" not in known:
                start["start_norm"] = torch.linalg.vector_norm(p)
            self.new[p] = start

    @torch.no_grad()
    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.steps += 1
        count = torch.tensor(float(self.steps))
        for p, start in self.new.items():
            optimizer.state[p] |= start
            if self.lookahead:
                optimizer.state[p]["fast_steps"] = count
        slow = {p: state["slow"] for p, state in optimizer.state.items() if "slow" in state}
        due = bool(slow) and self.steps % self.lookahead == 0
        if due:
            torch._foreach_lerp_([*slow], [*slow.values()], 1 - SLOW_SHARE)
        norms = {p: state["start_norm"] for p, state in optimizer.state.items() if "start_norm" in state}
        if norms:
            _scale_to([*norms], torch.stack([*norms.values()]))
        if due:
            torch._foreach_copy_([*slow.values()], [*slow])

    def _loaded(self, optimizer: torch.optim.Optimizer) -> None:
        """Go on counting where the checkpoint stands."""
        self.steps = max(
            (int(state["fast_steps"]) for state in optimizer.state.values() if "fast_steps" in state), default=0
        )


def _learning(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters that this step changes."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _scale_to(params: list[Tensor], wanted: Tensor) -> None:
    """Scale tensors to norms, without waiting for the device; where one or the other is zero, not at all."""
    now = torch.stack(torch._foreach_norm(params))
    factors = torch.where((wanted > 0) & (now > 0), wanted / now, 1.0)
    torch._foreach_mul_(params, factors.unbind())
