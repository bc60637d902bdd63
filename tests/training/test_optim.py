import dataclasses
import math

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import skipway
from skipway.data_spec import DataSpec
from skipway.device import choose_device
from skipway.errors import InputError
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.spec import RunSpec, TrainSpec
from skipway.training.loss import cross_entropy, num_right
from skipway.training.machine import computes_bf16, keep_freed_memory
from skipway.training.optim import Average, _bare, _groups, from_zero, make_optimizer, schedule, set_lr
from skipway.training.plan import make_plan

SPEC = TrainSpec(lr=0.1, batch_size=8)


def curve(total: int, warmup: int, **fields) -> list[float]:
    factor = schedule(dataclasses.replace(SPEC, **fields), total, warmup)
    return [factor(step) for step in range(total)]


def test_cosine_follows_torchs():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    want = []
    for _ in range(50):
        want.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert curve(50, 0) == pytest.approx(want)


@pytest.mark.parametrize("total", [10, 101])
def test_onecycle_follows_torchs(total):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total, pct_start=0.3, cycle_momentum=False)
    want = []
    for step in range(total):
        want.append(theirs.get_last_lr()[0])
        optimizer.step()
        if step < total - 1:
            theirs.step()
    warmup = 0.3 * total
    if warmup == round(warmup):  # torch's peak lies between two steps otherwise
        assert curve(total, round(warmup), schedule="onecycle") == pytest.approx(want, abs=1e-6)
    ours = curve(total, round(warmup), schedule="onecycle")
    assert ours[0] == pytest.approx(1 / 25)
    assert max(ours) == 1
    assert ours[-1] == pytest.approx(1 / 250_000, rel=1e-3)


def test_multistep_drops_at_its_milestones():
    ours = curve(64, 0, schedule="multistep", milestones=(0.5, 0.75), gamma=0.1)
    assert ours == pytest.approx([1.0] * 32 + [0.1] * 16 + [0.01] * 16)


def test_linear_follows_torchs():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=50)
    want = []
    for _ in range(50):
        want.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert curve(50, 0, schedule="linear") == pytest.approx(want)


@given(total=st.integers(1, 200), warmup=st.integers(0, 200), cooldown=st.floats(0, 1))
def test_trapezoid_is_one_with_four_corners(total, warmup, cooldown):
    warmup = min(warmup, total)
    top = max(warmup, total - round(cooldown * total))
    ours = curve(total, warmup, schedule="trapezoid", cooldown=cooldown)
    if warmup:  # the rise reaches 1 in the step before `warmup`
        want = np.interp(np.arange(total), [-1, warmup - 1, top, total], [0, 1, 1, 0 if top < total else 1])
    else:
        want = np.interp(np.arange(total), [0, top, total], [1, 1, 0 if top < total else 1])
    assert ours == pytest.approx(want.tolist())


def test_trapezoid_that_only_cools_down_is_linear():
    assert curve(40, 4, schedule="trapezoid", cooldown=1) == curve(40, 4, schedule="linear")


@pytest.mark.parametrize("kind", ["cosine", "multistep", "constant", "linear", "trapezoid"])
def test_warmup_rises_linearly_to_the_peak(kind):
    ours = curve(100, 5, schedule=kind)
    assert ours[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(ours) == 1
    assert all(math.isfinite(v) and v >= 0 for v in curve(3, 5, schedule=kind))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("kind", ["sgd", "adamw", "adam", "lamb"])
def test_norms_and_biases_do_not_decay_unless_asked(kind):
    net = network()
    spec = dataclasses.replace(SPEC, optimizer=kind, weight_decay=0.01)
    groups = make_optimizer(net, spec).param_groups
    assert [g["weight_decay"] for g in groups] == [0.01, 0.0]
    assert {id(p) for p in groups[0]["params"]} == {id(net[0].weight), id(net[3].weight)}
    assert sum(len(g["params"]) for g in groups) == len(list(net.parameters()))
    everything = make_optimizer(net, dataclasses.replace(spec, decay_norms=True)).param_groups
    assert [g["weight_decay"] for g in everything] == [0.01]


@pytest.mark.parametrize("kind", ["sgd", "adamw", "adam", "lamb", "muon"])
@pytest.mark.parametrize("name", ["resnet20", "preact_resnet20", "timm"])
def test_biases_norms_and_head_have_rates_of_their_own(kind, name):
    made = timm.create_model("test_resnet", num_classes=3) if name == "timm" else skipway.build(name)
    head = "fc" if name == "timm" else "head.linear"
    spec = dataclasses.replace(SPEC, optimizer=kind, bias_lr=8.0, head_lr=0.5)
    optimizer = make_optimizer(made, spec)
    set_lr(optimizer, 0.2)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len([*made.parameters()])
    for key, p in made.named_parameters():
        factor = 8 if p.ndim == 1 else 0.5 if key.startswith(f"{head}.") else 1
        assert rates[id(p)] == pytest.approx(0.2 * factor), key


def test_what_is_frozen_is_left_out_of_every_group():
    for kind in ("sgd", "lamb", "muon"):
        net = network()
        net[0].requires_grad_(False)
        groups = make_optimizer(net, dataclasses.replace(SPEC, optimizer=kind)).param_groups
        held = {id(p) for group in groups for p in group["params"]}
        assert held == {id(p) for p in net.parameters() if p.requires_grad}
        net.requires_grad_(False)
        with pytest.raises(InputError, match="no parameters that could learn"):
            make_optimizer(net, dataclasses.replace(SPEC, optimizer=kind))


@pytest.mark.parametrize(("kind", "rate"), [("sgd", 0.1), ("lamb", 0.002), ("muon", 0.02)])
def test_an_open_rate_follows_the_batch_size_but_for_muons(kind, rate, photos):
    network_spec, rates, notes = NetworkSpec(stages=(StageSpec(1, 4),)), [], []
    for batch_size in (8, 16):
        train = TrainSpec(optimizer=kind, batch_size=batch_size)
        plan = make_plan(RunSpec(network=network_spec, data=DataSpec(path=str(photos)), train=train))
        rates.append(plan.spec.train.lr)
        notes += plan.notes
    scaled = [rate * size / 128 for size in (8, 16)]
    assert rates == pytest.approx([rate, rate] if kind == "muon" else scaled)
    why = "for any batch size" if kind == "muon" else "in proportion to the batch size"
    assert f"learning rate {rates[0]:g} ({kind}, {why})" in notes


def test_sgd_step_is_nesterovs():
    p = nn.Parameter(torch.tensor([[1.0]]))
    holder = nn.ParameterList([p])
    optimizer = make_optimizer(holder, dataclasses.replace(SPEC, weight_decay=0.0))
    value, velocity = 1.0, 0.0
    for _ in range(3):
        optimizer.zero_grad()
        (p**2).sum().backward()
        optimizer.step()
        gradient = 2 * value
        velocity = 0.9 * velocity + gradient
        value -= 0.1 * (gradient + 0.9 * velocity)
        assert p.item() == pytest.approx(value, rel=1e-6)


def test_average_follows_its_formula():
    net = network()
    average = Average(net, 0.9)
    state = net.state_dict()
    start = state["0.weight"].clone()
    state["0.weight"].add_(1)
    state["1.num_batches_tracked"].add_(7)
    state["1.running_mean"].add_(2)
    average.update(net, 0)  # decay min(0.9, 1 / 10)
    averaged = average.network.state_dict()
    torch.testing.assert_close(averaged["0.weight"], 0.1 * start + 0.9 * (start + 1))
    torch.testing.assert_close(averaged["1.running_mean"], torch.full((4,), 1.8))
    assert averaged["1.num_batches_tracked"] == 7
    before = averaged["0.weight"].clone()
    average.update(net, 1000)
    torch.testing.assert_close(average.network.state_dict()["0.weight"], 0.9 * before + 0.1 * (start + 1))
    assert not average.network.training


def test_cross_entropy_takes_labels_and_shares():
    logits = torch.randn(5, 3)
    labels = torch.tensor([0, 1, 2, 1, 0])
    log_p = logits - logits.logsumexp(1, keepdim=True)
    want = -log_p[torch.arange(5), labels].mean()
    torch.testing.assert_close(cross_entropy(logits, labels, 0.0), want)
    shares = nn.functional.one_hot(labels, 3).float()
    torch.testing.assert_close(cross_entropy(logits, shares, 0.0), want)
    torch.testing.assert_close(cross_entropy(logits, labels, 0.3), 0.7 * want - 0.3 * log_p.mean())
    assert cross_entropy(logits.bfloat16(), labels, 0.0).dtype == torch.float32


def test_num_right_counts_labels_and_largest_shares():
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    assert num_right(logits, torch.tensor([0, 1, 1])) == 2
    assert num_right(logits, torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3]])) == 2


def test_device_that_is_not_there_is_named():
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match=r"train\.device 'nonsense' is not to be had here"):
        choose_device("nonsense")


def test_bf16_is_asked_of_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    for flags, want in (({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags, raising=False)
        assert computes_bf16(cpu) is want
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert computes_bf16(cpu) in (True, False)
    assert computes_bf16(torch.device("meta")) is False


def test_keep_freed_memory_takes_effect_on_linux():
    import sys

    assert keep_freed_memory() is (sys.platform == "linux")


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_the_fused_form_takes_the_same_steps(kind):
    spec = dataclasses.replace(SPEC, optimizer=kind, lr=0.01, weight_decay=0.1)
    ways = []
    for fused in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 3))
        optimizer = _bare(_groups(network, spec), spec, fused=fused)
        for step in range(4):
            optimizer.zero_grad()
            own = network if step else network[2]  # what has learnt nothing yet comes later: frozen, or dropped
            own(torch.randn(4, 6 if step else 5)).square().sum().backward()
            optimizer.step()
        ways.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.allclose(*ways, rtol=1e-5, atol=1e-6)


def test_fused_momentum_that_is_there_in_part_begins_at_0():
    spec = dataclasses.replace(SPEC, lr=0.01)
    ways = []
    for fused in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
        before = _bare(_groups(network, spec), spec, fused=False)
        network[1](torch.randn(4, 5)).square().sum().backward()  # the head alone has learnt
        before.step()
        after = _bare(_groups(network, spec), spec, fused=fused)
        after.load_state_dict(after.state_dict() | {"state": before.state_dict()["state"]})
        from_zero(after)
        network(torch.randn(4, 6)).square().sum().backward()
        after.step()
        ways.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.allclose(*ways, rtol=1e-5, atol=1e-6)
