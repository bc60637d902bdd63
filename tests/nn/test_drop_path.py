"""Stochastic depth by batch: what is added, what is left out of the arithmetic, and that evaluation knows nothing of it."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import skipway
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.nn.block import Block, BlockShape
from skipway.nn.layers import BatchDropPath
from skipway.nn.shortcut import Projection

SPEC = NetworkSpec(
    (StageSpec(1, 8), StageSpec(2, 8, 2)), stem="cifar", stem_width=8, drop_path=0.5, drop_path_by="batch"
)
KINDS = [
    (block, last, width)
    for block in ("basic", "bottleneck", "preact", "preact_bottleneck")
    for last in (True, False)
    for width in (8, 32)
]


def make_block(spec: NetworkSpec, in_width: int) -> Block:
    torch.manual_seed(1)
    return Block(spec, BlockShape(in_width, 8, drop_path=0.5)).train()


def by_hand(block: Block, x: Tensor, kept: Tensor) -> Tensor:
    """S(x) + F of the kept samples alone, twice as large as half of them are kept; no indices added anywhere."""
    if block.preact and isinstance(block.shortcut, Projection):
        x = block.act(block.norm1(x))
        some = block._preact_branch(x[kept])
    else:
        some = block.branch(x[kept])
    assert block.shortcut is not None
    place = nn.functional.one_hot(kept, len(x)).to(x.dtype)  # (K, B)
    y = block.shortcut(x) + 2 * torch.einsum("kb,kchw->bchw", place, some)
    return y.relu() if block.last_act else y


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
@pytest.mark.parametrize(("kind", "last_act", "in_width"), KINDS)
def test_block_is_its_shortcut_plus_the_branch_of_half_the_samples(kind, last_act, in_width, layout):
    block = make_block(replace(SPEC, block=kind, last_act=last_act), in_width)
    other = copy.deepcopy(block)
    x = torch.randn(6, in_width, 5, 5).contiguous(memory_format=layout).requires_grad_()
    z = x.detach().clone().requires_grad_()
    torch.manual_seed(2)
    y = block(x)
    torch.manual_seed(2)
    expected = by_hand(other, z, torch.randperm(6)[:3])
    torch.testing.assert_close(y, expected)
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    assert x.grad is not None
    assert y.is_contiguous(memory_format=layout)
    assert x.grad.is_contiguous(memory_format=layout)
    torch.testing.assert_close(x.grad, z.grad, rtol=1e-4, atol=1e-5)
    for (name, p), q in zip(block.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4, msg=name)
    for p, q in zip(block.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(p, q)


def test_mean_over_all_draws_is_the_block_in_evaluation(monkeypatch):
    """Without batch statistics: of 5 samples at rate 0.5, whose half is no whole number, too."""
    spec = replace(SPEC, norm="none", branch_scale="layer_scale", last_act=False)
    block = make_block(spec, 8)
    draws = [torch.tensor(kept) for kept in itertools.combinations(range(5), 3)]
    x, found = torch.randn(5, 8, 4, 4), []
    for kept in draws:
        monkeypatch.setattr(BatchDropPath, "draw", lambda self, x, kept=kept: kept)
        found.append(block(x))
    assert BatchDropPath(0.5).num_kept(5) == 3
    torch.testing.assert_close(torch.stack(found).mean(0), block.eval()(x))
    assert not torch.allclose(found[0], found[1], rtol=1e-7, atol=1e-7)


def test_two_samples_at_least_have_the_branch():
    kept = BatchDropPath(0.9).num_kept
    assert [kept(size) for size in (1, 2, 3, 10, 30, 100)] == [1, 2, 2, 2, 3, 10]
    assert [BatchDropPath(0.25).num_kept(size) for size in (1, 2, 4, 8, 128)] == [1, 2, 3, 6, 96]
    network = skipway.build(replace(SPEC, drop_path=0.99, stages=(StageSpec(1, 8), StageSpec(1, 8, 2))))
    assert network(torch.randn(2, 3, 2, 2)).isfinite().all()  # whose last map has one pixel, for batch norm


def test_each_draw_is_another_and_follows_the_seed():
    drop, x = BatchDropPath(0.5), torch.zeros(8, 1)
    torch.manual_seed(3)
    first, second = drop.draw(x), drop.draw(x)
    torch.manual_seed(3)
    assert torch.equal(drop.draw(x), first)
    assert not torch.equal(first, second)
    assert len(first.unique()) == 4


@pytest.mark.parametrize("checkpoint", [False, True])
def test_what_is_dropped_is_not_computed(checkpoint):
    """The FLOPs of a training step, to the last one: forward, twice as many backward (but to the image), and again."""
    batch, size = 6, 8
    rates = [0.5 / 3, 1.0 / 3, 0.5]
    description = skipway.describe(SPEC, image_size=size)
    macs = dict.fromkeys(description.skips, 0)
    for row in description.layers:
        if row.part in macs and "shortcut" not in row.layer:
            macs[row.part] += row.macs
    spared = 2 * sum(round(batch * rate) * count for rate, count in zip(rates, macs.values(), strict=True))
    assert spared > 0.2 * batch * description.flops
    counts = []
    for spec in (replace(SPEC, drop_path=0.0), replace(SPEC, drop_path_by="sample"), SPEC):
        network = skipway.build(replace(spec, checkpoint=checkpoint))
        with FlopCounterMode(display=False) as counter:
            network(torch.randn(batch, 3, size, size)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]
    assert counts[1] - counts[2] == spared * (4 if checkpoint else 3)


def test_evaluation_is_that_of_every_other_network():
    x = torch.randn(5, 3, 8, 8)
    networks = [
        skipway.build(replace(SPEC, drop_path=rate, drop_path_by=by)).eval()
        for rate, by in ((0, "batch"), (0.5, "sample"), (0.5, "batch"))
    ]
    first, second, third = (network(x) for network in networks)
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_network_compiles_for_any_batch():
    network = skipway.build(replace(SPEC, block="preact"))
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager", dynamic=True)
    for batch in (4, 7, 16):
        x = torch.randn(batch, 3, 8, 8).contiguous(memory_format=torch.channels_last)
        torch.manual_seed(1)
        y = compiled(x)
        torch.manual_seed(1)
        assert torch.equal(y, network(x))


def test_description_counts_what_is_kept_for_the_samples_that_have_the_branch():
    spec = replace(SPEC, drop_path=0.9)
    plain, by_sample, by_batch = (
        skipway.describe(s, image_size=8, batch_size=32)
        for s in (replace(spec, drop_path=0.0), replace(spec, drop_path_by="sample"), spec)
    )
    assert by_batch.activation_bytes < plain.activation_bytes < by_sample.activation_bytes
    assert [row.kind for row in by_batch.layers].count("drop path") == 3
