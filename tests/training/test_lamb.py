"""LAMB against timm's, and the paper's formula."""

import pytest
import timm.optim
import torch
from torch import nn

from skipway.training.lamb import Lamb

SHAPES = [(4, 3, 3, 3), (5, 7), (6,), (3, 1, 1)]


def both(decay: float, shapes: list[tuple[int, ...]], *, adapt: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters after five steps of ours and of timm's."""
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    optimizer = Lamb([{"params": ours, "weight_decay": decay}], lr=0.03)
    reference = timm.optim.Lamb(theirs, lr=0.03, weight_decay=decay, max_grad_norm=None, always_adapt=adapt)
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        optimizer.step()
        reference.step()
    return ours, theirs


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_filters_and_matrices_follow_timms(decay):
    ours, theirs = both(decay, [shape for shape in SHAPES if len(shape) > 1], adapt=True)
    torch.testing.assert_close(ours, theirs)


def test_norms_and_biases_step_as_adams():
    ours, theirs = both(0.0, [(6,), (1,)], adapt=False)
    torch.testing.assert_close(ours, theirs)


def test_the_first_step_is_a_share_of_the_weights():
    """Without decay Adam's first step is the gradient's sign, and LAMB's is lr times the weights' norm long."""
    weight = nn.Parameter(torch.randn(8, 8))
    before = weight.detach().clone()
    weight.grad = torch.randn(8, 8)
    Lamb([{"params": [weight]}], lr=0.1).step()
    step = weight.detach() - before
    assert step.norm().item() == pytest.approx(0.1 * before.norm().item(), rel=1e-4)
    torch.testing.assert_close(step, -0.1 * before.norm() / 8 * weight.grad.sign(), atol=1e-4, rtol=1e-3)


def test_zero_weights_leave_their_place():
    weight, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.randn(2, 2))
    before = still.detach().clone()
    weight.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    Lamb([{"params": [weight, still]}], lr=0.1).step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), -0.1))
    assert torch.equal(still, before)


def test_a_weight_that_skips_a_step_keeps_its_own_count():
    late, alone, other = (nn.Parameter(torch.ones(4)) for _ in range(3))  # no trust ratio that would hide a factor
    optimizer = Lamb([{"params": [other, late]}], lr=0.1)
    other.grad = torch.randn(4)
    optimizer.step()
    late.grad, alone.grad = torch.tensor([1.0, 2.0, -3.0, 0.5]), torch.tensor([1.0, 2.0, -3.0, 0.5])
    optimizer.step()
    Lamb([{"params": [alone]}], lr=0.1).step()
    torch.testing.assert_close(late, alone)
