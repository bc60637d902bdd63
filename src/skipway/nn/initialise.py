"""Initial weights: He's, Fixup's for networks without normalisation, and Dirac's."""

import torch
from torch import nn

from skipway.network_spec import NetworkSpec
from skipway.nn.block import Block
from skipway.nn.layers import Scale
from skipway.nn.stem import PatchConv


def initialise(network: nn.Module, spec: NetworkSpec, generator: torch.Generator) -> None:
    """Draw the weights on the CPU, from `generator`; a network and its plain twin get equal ones.

    Convolutions: normal with variance 2 / (k^2 * out channels) (He et al. 2015, arXiv:1502.01852, eq. 10, fan-out
    form; out channels of one group). Norms: weight 1, bias 0. Linear: uniform within 1 / sqrt(inputs), as torch
    does. With `zero_init_last` the last layer of every branch starts at weight 0. The whitening stem starts with the
    pixels of its patches, and draws nothing.

    Fixup (Zhang et al. 2019, arXiv:1901.09321, section 3.2): in each branch of m convolutions, one of L, the last
    starts at 0 and the others are multiplied by L^(-1 / (2m - 2)); the linear layer starts at 0.

    Dirac (Zagoruyko and Komodakis 2017, arXiv:1706.00388; Jordan 2024, arXiv:2404.00498, section 3.3): of each 3x3
    convolution of a branch the first filters, one for each input channel, hand that channel on.
    """
    named = list(network.named_modules())
    for in_shortcut in (False, True):  # shortcuts last: the twin, which has none, draws the same
        for name, module in named:
            if (".shortcut" in name) is in_shortcut:
                _start(module, generator)
    for _, module in named:
        if isinstance(module, Block):
            if spec.init == "fixup":
                _fixup(module, spec.depth)
            elif spec.init == "dirac":
                _dirac(module)
            last = module.last_layer.weight
            if spec.zero_init_last and isinstance(last, nn.Parameter):
                nn.init.zeros_(last)
        elif isinstance(module, nn.Linear) and spec.init == "fixup":
            nn.init.zeros_(module.weight)


def _start(module: nn.Module, generator: torch.Generator) -> None:
    if isinstance(module, PatchConv):
        module.reset_parameters()
    elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5, generator=generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        bound = module.in_features**-0.5
        nn.init.uniform_(module.weight, -bound, bound, generator=generator)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Scale):
        nn.init.constant_(module.weight, module.start)


def _dirac(block: Block) -> None:
    for i in range(block.num_convs):
        conv = block.get_submodule(f"conv{i + 1}")
        assert isinstance(conv, nn.Conv2d)
        if conv.kernel_size[0] > 1 and conv.groups == 1:
            nn.init.dirac_(conv.weight.detach()[: conv.in_channels])


def _fixup(block: Block, depth: int) -> None:
    convs = [block.get_submodule(f"conv{i + 1}") for i in range(block.num_convs)]
    factor = depth ** (-1 / (2 * len(convs) - 2))
    with torch.no_grad():
        for conv in convs[:-1]:
            assert isinstance(conv, nn.Conv2d)
            conv.weight *= factor
    last = convs[-1].weight
    assert isinstance(last, nn.Parameter)
    nn.init.zeros_(last)
