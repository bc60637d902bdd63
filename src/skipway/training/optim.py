"""Optimizers whose groups have their own rate and decay, learning-rate schedules, averaged weights."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from skipway.errors import InputError
from skipway.nn.foreign import classifiers
from skipway.spec import TrainSpec
from skipway.training.after_step import AfterStep
from skipway.training.finetune import rate_shares
from skipway.training.lamb import Lamb
from skipway.training.muon import Muon, hidden_matrices
from skipway.training.sharding import is_sharded


def make_optimizer(network: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    """The optimizer of a spec, over the parameters that want a gradient, in its foreach form; on CUDA fused.

    Its state, all tensors by parameter, holds everything that it remembers, slow weights and norms too.

    Returns:
        SGD, AdamW, Adam (whose decay is added to the gradient, as L2), Lamb or Muon.
    """
    groups = _groups(network, spec)
    if not groups:
        raise InputError("the network has no parameters that could learn")
    fused = not is_sharded(network) and all(p.device.type == "cuda" for group in groups for p in group["params"])
    optimizer = _bare(groups, spec, fused=fused)
    if spec.lookahead or spec.fixed_norm:
        AfterStep(optimizer, lookahead=spec.lookahead, fixed_norm=spec.fixed_norm)
    return optimizer


def _bare(groups: list[dict[str, Any]], spec: TrainSpec, *, fused: bool) -> torch.optim.Optimizer:
    """Fused is a single kernel for all of a group."""
    if spec.optimizer == "sgd":
        nesterov = spec.nesterov and spec.momentum > 0
        sgd = torch.optim.SGD(
            groups, lr=spec.lr, momentum=spec.momentum, nesterov=nesterov, foreach=not fused, fused=fused
        )
        from_zero(sgd)
        return sgd
    if spec.optimizer == "muon":
        return Muon(groups, lr=spec.lr)
    if spec.optimizer == "lamb":
        return Lamb(groups, lr=spec.lr)
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    return kinds[spec.optimizer](groups, lr=spec.lr, foreach=not fused, fused=fused)


def from_zero(optimizer: torch.optim.Optimizer) -> None:
    """Momentum of fused SGD begins at 0 where there is none: it wants one of all or of none. The steps are the same."""
    for group in optimizer.param_groups:
        if isinstance(optimizer, torch.optim.SGD) and group["fused"] and group["momentum"]:
            for p in group["params"]:
                if "momentum_buffer" not in optimizer.state[p]:
                    optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def _groups(network: nn.Module, spec: TrainSpec) -> list[dict[str, Any]]:
    """Parameters with the same rate, decay and treatment together.

    Biases and norms (one-dimensional parameters) have `bias_lr` times the rate and do not decay unless asked. The
    weight of the layer that gives the logits has `head_lr` times the rate. Each part of the network has its share by
    `layer_decay`.
    """
    shares = rate_shares(network, spec.layer_decay)
    head = {id(p) for name in classifiers(network) for p in network.get_submodule(name).parameters()}
    blocks = hidden_matrices(network, head) if spec.optimizer == "muon" else {}
    by_kind: dict[tuple[float, bool, int], list[nn.Parameter]] = {}
    for p in network.parameters():
        if p.requires_grad:
            share = shares[id(p)] * (spec.bias_lr if p.ndim <= 1 else spec.head_lr if id(p) in head else 1.0)
            kind = (share, p.ndim > 1 or spec.decay_norms, blocks.get(id(p), 0))
            by_kind.setdefault(kind, []).append(p)
    groups: list[dict[str, Any]] = []
    for (share, decays, matrices), params in sorted(by_kind.items(), key=lambda item: item[0], reverse=True):
        group = {"params": params, "weight_decay": spec.weight_decay if decays else 0.0, "lr_share": share}
        if spec.optimizer == "muon":
            group |= {"kind": "matrix", "blocks": matrices} if matrices else {"kind": "sgd"}
            group |= {"momentum": spec.muon_momentum if matrices else spec.momentum, "nesterov": spec.nesterov}
        groups.append(group)
    return groups


def schedule(spec: TrainSpec, total_steps: int, warmup_steps: int) -> Callable[[int], float]:
    """The learning rate as a function of the step (0 ... total_steps - 1), in units of the peak.

    All rise linearly over the warm-up, reaching 1 at its end. Then: "cosine" falls to 0 (Loshchilov and Hutter
    2016, arXiv:1608.03983, eq. 5, one period); "linear" falls to 0 along a line; "trapezoid" stays, then falls to 0
    along a line over the last `cooldown` of the run (Hägele et al. 2024, arXiv:2405.18392); "multistep" is multiplied
    by gamma at each milestone; "constant" stays. "onecycle" rises from 1/25 and falls to 1/250,000, both along a
    cosine (Smith and Topin 2017, arXiv:1708.07120, as torch has it, without its cycle of the momentum).
    """

    falling = total_steps - warmup_steps
    if spec.schedule == "trapezoid":
        falling = min(falling, round(spec.cooldown * total_steps))

    def cosine(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2

    def onecycle(step: int) -> float:
        peak = max(warmup_steps - 1, 0)
        if step <= peak and peak > 0:
            return cosine(1 / 25, 1, step / peak)
        return cosine(1, 1 / 250_000, (step - peak) / max(total_steps - 1 - peak, 1))

    def factor(step: int) -> float:
        if spec.schedule == "onecycle":
            return onecycle(step)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if spec.schedule == "cosine":
            return cosine(1, 0, (step - warmup_steps) / max(total_steps - warmup_steps, 1))
        if spec.schedule in ("linear", "trapezoid"):
            return min((total_steps - step) / max(falling, 1), 1.0)
        if spec.schedule == "multistep":
            return spec.gamma ** sum(step >= round(m * total_steps) for m in spec.milestones)
        return 1.0

    return factor


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate; each group takes its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_share"]


class Average:
    """Exponential moving average of weights and buffers (Polyak and Juditsky 1992 in its running form).

    The decay at step t is min(decay, (1 + t) / (10 + t)), so that early weights are soon forgotten.

    Attributes:
        network: the averaged copy, in evaluation mode.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move the average towards the network's present weights. Whole-number buffers are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        own, new = self.network.state_dict(), network.state_dict()
        floats = [key for key, value in own.items() if value.is_floating_point()]
        torch._foreach_lerp_([own[k] for k in floats], [new[k] for k in floats], 1 - decay)
        if counts := [key for key, value in own.items() if not value.is_floating_point()]:
            torch._foreach_copy_([own[k] for k in counts], [new[k] for k in counts])
