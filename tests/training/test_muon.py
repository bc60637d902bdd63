"""Muon against torch's, the singular value decomposition, and torch's SGD."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import skipway
from skipway.spec import TrainSpec
from skipway.training import muon
from skipway.training.machine import computes_bf16
from skipway.training.muon import COEFFICIENTS, STEPS, Muon, hidden_matrices, orthogonal, orthogonal_all
from skipway.training.optim import make_optimizer

SPEC = TrainSpec(optimizer="muon", lr=0.05, batch_size=8)
BF16_ERROR = 0.03  # three rounds of products with eight bits each


def scaled_by(values: Tensor, steps: int) -> Tensor:
    """What the iteration makes of singular values."""
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        values = a * values + b * values**3 + c * values**5
    return values


@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    num=st.integers(0, 3),
    steps=st.integers(1, 5),
    size=st.sampled_from([1e-4, 1.0, 1e4]),
    seed=st.integers(0, 999),
)
def test_the_iteration_changes_singular_values_alone(rows, columns, num, steps, size, seed):
    shape = (num, rows, columns) if num else (rows, columns)
    matrices = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    want = u * scaled_by(s / torch.linalg.vector_norm(s, dim=-1, keepdim=True), steps)[..., None, :] @ vh
    torch.testing.assert_close(orthogonal(matrices, steps, torch.float64), want)


def test_singular_values_come_near_one_and_zeros_stay():
    matrices = torch.randn(2, 32, 64)
    values = torch.linalg.svdvals(orthogonal(matrices, 5, torch.float32))
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert not orthogonal(torch.zeros(3, 4), 5, torch.float32).any()


def test_small_matrices_of_one_shape_go_together_and_nothing_else_changes(monkeypatch):
    shapes = [(1, 4, 9), (2, 4, 9), (1, 9, 4), (1, 300, 300), (2, 300, 300)]
    found = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    seen = []
    monkeypatch.setattr(muon, "orthogonal", lambda m, *rest: seen.append(tuple(m.shape)) or orthogonal(m, *rest))
    made = orthogonal_all(found, 3, torch.float64)
    assert seen == [(3, 4, 9), (1, 9, 4), (300, 300), (300, 300), (300, 300)]
    for one, want in zip(made, found, strict=True):
        torch.testing.assert_close(one, orthogonal(want, 3, torch.float64))


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (6, 6), (4, 3, 3, 3), (260, 30, 3, 3)])
def test_steps_are_torchs(shape, nesterov):
    """torch's Muon takes matrices alone: filters are flattened for it by hand."""
    ours = nn.Parameter(torch.randn(shape).contiguous(memory_format=layout(shape)))
    theirs = nn.Parameter(ours.detach().flatten(1).clone())
    settings = {"lr": 0.05, "weight_decay": 0.5}
    group = {"params": [ours], "kind": "matrix", "momentum": 0.8, "nesterov": nesterov, "weight_decay": 0.5}
    optimizer = Muon([group], lr=0.05)
    reference = torch.optim.Muon([theirs], momentum=0.8, nesterov=nesterov, ns_steps=STEPS, **settings)
    start = theirs.detach().clone()
    for _ in range(4):
        ours.grad = torch.randn(shape).contiguous(memory_format=layout(shape))
        theirs.grad = ours.grad.flatten(1).clone()
        optimizer.step()
        reference.step()
    error = (ours.detach().flatten(1) - theirs.detach()).norm() / (theirs.detach() - start).norm()
    assert error < BF16_ERROR


def layout(shape: tuple[int, ...]) -> torch.memory_format:
    return torch.channels_last if len(shape) == 4 else torch.contiguous_format


def test_a_grouped_convolution_is_a_matrix_a_group():
    conv = nn.Conv2d(12, 18, 3, groups=3)
    group = {"params": [conv.weight], "kind": "matrix", "blocks": 3, "momentum": 0.9}
    optimizer = Muon([group], lr=0.1)
    parts = [nn.Parameter(part.detach().flatten(1).clone()) for part in conv.weight.chunk(3)]
    reference = torch.optim.Muon(parts, lr=0.1, momentum=0.9, weight_decay=0.0, ns_steps=STEPS)
    start = conv.weight.detach().clone()
    for _ in range(3):
        conv.weight.grad = torch.randn_like(conv.weight)
        for part, gradient in zip(parts, conv.weight.grad.chunk(3), strict=True):
            part.grad = gradient.flatten(1).clone()
        optimizer.step()
        reference.step()
    want = torch.cat([part.detach() for part in parts]).view_as(start)
    assert (conv.weight.detach() - want).norm() / (want - start).norm() < BF16_ERROR


@pytest.mark.parametrize("nesterov", [True, False])
def test_what_is_no_hidden_matrix_steps_as_torchs_sgd(nesterov):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    twin = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    twin.load_state_dict(net.state_dict())
    spec = dataclasses.replace(SPEC, momentum=0.7, nesterov=nesterov, decay_norms=True, weight_decay=0.1)
    optimizer = make_optimizer(net, spec)
    reference = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.7, nesterov=nesterov, weight_decay=0.1)
    for _ in range(4):
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizer.step()
        reference.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))


def test_muon_takes_hidden_filters_and_matrices():
    network = skipway.build("resnet20")
    groups = make_optimizer(network, SPEC).param_groups
    taken = {id(p) for group in groups if group["kind"] == "matrix" for p in group["params"]}
    names = {name for name, p in network.named_parameters() if id(p) in taken}
    hidden = {name for name, p in network.named_parameters() if p.ndim == 4}
    assert names == hidden - {"stem.conv.weight"}
    assert {group["momentum"] for group in groups if group["kind"] == "matrix"} == {SPEC.muon_momentum}
    assert {group["momentum"] for group in groups if group["kind"] == "sgd"} == {SPEC.momentum}


def test_groups_of_convolutions_and_the_three_of_attention_are_counted():
    first, grouped, dense = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 8, 1)
    attention, linear, head = nn.MultiheadAttention(8, 2), nn.Linear(8, 8), nn.Linear(8, 2)
    network = nn.ModuleList([first, grouped, dense, attention, linear, nn.Embedding(4, 8), head])
    want = {grouped.weight: 4, dense.weight: 1, attention.in_proj_weight: 3, attention.out_proj.weight: 1}
    want = {id(p): n for p, n in (want | {linear.weight: 1}).items()}
    assert hidden_matrices(network, {id(head.weight)}) == want


def test_the_iteration_is_in_bf16_where_the_hardware_is(monkeypatch):
    matrix = nn.Parameter(torch.randn(4, 4))
    for has, want in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(muon, "computes_bf16", lambda device, has=has: has)
        optimizer = Muon([{"params": [matrix], "kind": "matrix"}], lr=0.1)
        seen = []
        monkeypatch.setattr(muon, "orthogonal", lambda m, s, dtype, seen=seen: seen.append(dtype) or m.to(dtype))
        matrix.grad = torch.randn(4, 4)
        optimizer.step()
        assert seen == [want]
    assert computes_bf16(torch.device("meta")) is False


def test_a_weight_without_a_gradient_rests():
    matrices = [nn.Parameter(torch.randn(4, 4)) for _ in range(2)]
    optimizer = Muon([{"params": matrices, "kind": "matrix", "weight_decay": 0.1}], lr=0.1)
    before = [m.detach().clone() for m in matrices]
    matrices[0].grad = torch.randn(4, 4)
    optimizer.step()
    assert not torch.equal(matrices[0], before[0])
    assert torch.equal(matrices[1], before[1])
