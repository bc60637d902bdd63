"""Every part of a network exports and compiles: pairs of block, shortcut, norm and stem, the other axes rotated through.

All pairs of values instead of all combinations: a tracer trips over a layer or over two that meet, hardly over four.
"""

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from nn.test_block import ADMITTED, make, make_spec
from torch.utils._python_dispatch import TorchDispatchMode

from skipway.errors import InputError
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.nn.layers import Conv, FixupConv, StandardConv
from skipway.nn.network import ResNet

Choice = tuple[str, str, str, str]

# Values of the other axes. Case i has value i // n % k of an axis of k, n as given: no two axes go hand in hand.
AXES: dict[str, tuple[int, tuple[Any, ...]]] = {
    "act": (1, ("relu", "gelu", "silu")),
    "attention": (3, ("none", "se", "eca")),
    "blur": (2, ("none", "blur", "avg", "max")),
    "branch_scale": (5, ("none", "skipinit", "layer_scale")),
    "drop_path": (1, (0.0, 0.3)),
    "drop_path_by": (2, ("sample", "batch")),
    "norm_scale": (3, (True, False)),
    "head_pool": (1, ("average", "max")),
    "head_scale": (4, (1.0, 0.1)),
    "block_dropout": (2, (0.2, 0.0)),
    "checkpoint": (3, (False, True)),
    "weight_standardisation": (2, (False, True)),
    "last_act": (4, (True, False)),
    "head": (5, ("linear", "features")),
    "dilation": (3, (2, 1)),
}


def pairs(choice: Choice) -> set[tuple[tuple[int, str], tuple[int, str]]]:
    """What of two axes meets in a choice."""
    first, *others = itertools.combinations(enumerate(choice), 2)
    return {first, *others}


def pairwise(choices: list[Choice]) -> list[Choice]:
    """Few of the choices that together have every pair of values that any of them has: each time the one with most."""
    missing = set().union(*map(pairs, choices))
    found = []
    while missing:
        best = max(choices, key=lambda choice: len(missing & pairs(choice)))  # the first of equals: deterministic
        found.append(best)
        missing -= pairs(best)
    return found


def rotated(choice: Choice, number: int) -> NetworkSpec:
    """The spec of case `number`: tiny, with the other axes' values as far as they go with the choice."""
    width = make_spec(*choice).stages[0].width
    spec = replace(make_spec(*choice), stages=(StageSpec(1, width), StageSpec(1, width, 2)))
    for name, (step, values) in AXES.items():
        value = values[number // step % len(values)]
        try:
            if name == "dilation":
                spec = replace(spec, stages=(spec.stages[0], StageSpec(1, width, 2, value)))
            elif name != "branch_scale" or choice[2] != "skipinit":
                spec = replace(spec, **{name: value})
        except InputError:
            continue
    return spec


COVER = pairwise(ADMITTED)
SPECS = {"-".join(choice): rotated(choice, number) for number, choice in enumerate(COVER)}
NUM_GROUPS = 8  # tests that share the cases between them
GROUPS = [[*SPECS][first::NUM_GROUPS] for first in range(NUM_GROUPS)]


def test_cover_has_every_admitted_pair():
    values = [{choice[axis] for choice in ADMITTED} for axis in range(4)]
    possible = {
        ((i, a), (j, b))
        for i, j in itertools.combinations(range(4), 2)
        for a, b in itertools.product(values[i], values[j])
    }
    refused = {((1, "none"), (2, norm)) for norm in ("fixup", "skipinit")}
    covered = {pair for choice in COVER for pair in pairs(choice)}
    assert covered == possible - refused
    assert set(COVER) <= set(ADMITTED)
    assert len(COVER) == len(set(COVER)) < len(ADMITTED) / 15


def test_cover_has_each_value_of_the_other_axes_several_times():
    for name, (_, values) in AXES.items():
        seen = Counter(s.stages[1].dilation if name == "dilation" else getattr(s, name) for s in SPECS.values())
        assert set(seen) == set(values)
        assert min(seen.values()) >= 4, (name, seen)


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 2, 16, 16)


@pytest.mark.parametrize("names", GROUPS, ids=[f"group{i}" for i in range(NUM_GROUPS)])
def test_network_exports_with_one_and_with_any_batch_size(names):
    for name in names:
        network = make(SPECS[name]).eval()
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(network, (images(2),), dynamic_shapes=({0: batch},)).module()
        fixed = torch.export.export(network, (images(1),)).module()
        with torch.no_grad():
            for x in (images(1), images(2), images(5)):
                assert torch.equal(program(x), network(x)), name
            x = images(1)
            assert torch.equal(fixed(x), network(x)), name


@pytest.mark.parametrize("names", GROUPS, ids=[f"group{i}" for i in range(NUM_GROUPS)])
def test_network_compiles_to_one_graph(names):
    for name in names:
        network, x = make(SPECS[name]), images(3)
        for training in (True, False):
            torch._dynamo.reset()
            compiled = torch.compile(network.train(training), fullgraph=True, backend="eager")
            torch.manual_seed(1)
            y = compiled(x)
            torch.manual_seed(1)
            assert torch.equal(y, network(x)), (name, training)


def test_network_compiles_to_one_graph_with_its_backward_pass():
    for name in GROUPS[1]:
        torch._dynamo.reset()
        network, x = make(SPECS[name]), images(3)
        loss = torch.compile(network, fullgraph=True, backend="aot_eager")(x).square().sum()
        loss.backward()
        check_gradients(network, name)


def check_gradients(network: ResNet, name: str) -> None:
    for parameter, p in network.named_parameters():
        if not p.requires_grad:
            continue
        assert p.grad is not None, (name, parameter)
        assert p.grad.isfinite().all(), (name, parameter)
        assert p.grad.abs().sum() > 0, (name, parameter)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_network_compiles_with_inductor(name):
    spec = replace(SPECS[name], block_dropout=0.0, drop_path=0.0)  # its random numbers are not those of eager mode
    network, x = make(spec), images(3)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True)
    y = compiled(x)
    torch.testing.assert_close(y, network(x), rtol=1e-3, atol=1e-3)
    y.square().sum().backward()
    check_gradients(network, name)
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [Conv, StandardConv, FixupConv])
def test_narrow_strided_convolution_takes_its_pixels_before(kind):
    """Its weight gradient with a stride inside writes past oneDNN's memory; the output's bits are those of Conv2d."""
    conv = kind(8, 12, 1, stride=2, bias=False)
    conv.input_bias = torch.nn.Parameter(torch.zeros(1))
    x = images(3).repeat(1, 4, 1, 1).to(memory_format=torch.channels_last)
    with Strides() as seen:
        y = conv(x)
    assert seen.strides == {1}
    with seen:
        y.sum().backward()
    assert seen.strides == {1}
    weight = conv.weight
    if kind is StandardConv:
        weight = torch.nn.functional.batch_norm(weight.view(1, 12, -1), None, None, training=True, eps=1e-8)
    assert torch.equal(y, torch.nn.functional.conv2d(x, weight.view(12, 8, 1, 1), stride=2))


def test_wide_strided_convolution_is_one_operator():
    with Strides() as seen:
        Conv(16, 12, 1, stride=2)(torch.randn(1, 16, 4, 4)).sum().backward()
    assert seen.strides == {2}


class Strides(TorchDispatchMode):
    """Which strides convolutions have, forwards and backwards."""

    def __init__(self):
        super().__init__()
        self.strides: set[int] = set()

    def __torch_dispatch__(self, func, types, args: Any = (), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.strides.add(args[3][0])
        if func is torch.ops.aten.convolution_backward.default:
            self.strides.add(args[4][0])
        return func(*args, **kwargs or {})
