"""Which parts of a network learn, and how fast: freezing, and learning rates that fall off towards the image."""

from dataclasses import dataclass, replace

from torch import nn

from skipway.errors import InputError, unknown
from skipway.nn.foreign import classifiers
from skipway.nn.network import ResNet


@dataclass(frozen=True)
class Part:
    """A piece of a network between two of its cuts; `parameters` are its own and no other part's."""

    name: str
    modules: tuple[nn.Module, ...]
    parameters: tuple[nn.Parameter, ...]


def parts(network: nn.Module) -> list[Part]:
    """A network's parts from the image to the logits.

    Ours: stem, stage1.block1, ..., head. Another's: its children, rows of blocks one by one, in the order in which
    they are written, the layer that gives the logits last; what lies beside them (a class token) goes to the first,
    and what has no parameters to the part before it.
    """
    found = _cut(network) or [("network", [network])]
    inside = {id(p) for _, modules in found for module in modules for p in module.parameters()}
    beside = [p for p in network.parameters() if id(p) not in inside]
    taken: set[int] = set()
    made: list[Part] = []
    for name, modules in found:
        own = [*([] if made else beside), *(p for module in modules for p in module.parameters())]
        new = {id(p): p for p in own if id(p) not in taken}
        taken |= new.keys()
        if new or not made:
            made.append(Part(name, tuple(modules), tuple(new.values())))
        else:
            made[-1] = replace(made[-1], modules=(*made[-1].modules, *modules))
    return made


def _cut(network: nn.Module) -> list[tuple[str, list[nn.Module]]]:
    """Where a network is cut into parts, and what is between the cuts; two heads are one part."""
    if isinstance(network, ResNet):
        own: list[tuple[str, nn.Module]] = [("stem", network.stem), *network.blocks(), ("head", network.head)]
        return [(name, [module]) for name, module in own]
    top = _widest(network)
    rows: list[tuple[str, nn.Module]] = []
    for name, child in top.named_children():
        is_row = isinstance(child, (nn.Sequential, nn.ModuleList)) and len(child) > 0
        rows += [(f"{name}.{k}", m) for k, m in child.named_children()] if is_row else [(name, child)]
    logits = {id(network.get_submodule(name)) for name in classifiers(network)}
    head = [(name, module) for name, module in rows if any(id(m) in logits for m in module.modules())]
    body: list[tuple[str, list[nn.Module]]] = [(name, [m]) for name, m in rows if (name, m) not in head]
    return [*body, (head[0][0], [module for _, module in head])] if head else body


def _widest(network: nn.Module) -> nn.Module:
    """What is inside wrappers: where there is one child alone, that child, and so on."""
    while len(children := [*network.children()]) == 1 and any(True for _ in children[0].children()):
        network = children[0]
    return network


def freeze(network: nn.Module, upto: str) -> list[Part]:
    """Take the first parts of a network out of training.

    Args:
        network: changed in place: their parameters want no gradient any more.
        upto: "backbone" (all but the head), or the last part to freeze: stem, stage2, stage3.block1; "" freezes none.

    Returns:
        The frozen parts; they must be kept in evaluation mode, so that batch statistics stay too.

    Raises:
        InputError: no such part, or nothing would be left to learn.
    """
    if not upto:
        return []
    found = parts(network)
    if upto == "backbone":
        last = len(found) - 2
    else:
        named = [i for i, part in enumerate(found) if part.name == upto or part.name.startswith(f"{upto}.")]
        if not named:
            names = [name for part in found[:-1] for name in (part.name.split(".")[0], part.name)]
            raise unknown("part to freeze (train.freeze)", upto, ["backbone", *dict.fromkeys(names)])
        last = named[-1]
    if last < 0:
        raise InputError(f"train.freeze {upto}: the network has no parts before its head that could be frozen")
    if last >= len(found) - 1:
        raise InputError(f"train.freeze {upto} leaves nothing to learn; freeze 'backbone' at most")
    for part in found[: last + 1]:
        for p in part.parameters:
            p.requires_grad_(False)
    return found[: last + 1]


def frozen_note(network: nn.Module, frozen: list[Part], *, fresh: bool, epochs: int = 0) -> list[str]:
    """One sentence for what does not learn, for so many epochs (0: ever); nothing where all does.

    `fresh`: no weights were given.
    """
    if not frozen:
        return []
    total = sum(p.numel() for p in network.parameters())
    learning = sum(p.numel() for p in network.parameters() if p.requires_grad)
    shown = f" for {epochs} epoch{'s' if epochs > 1 else ''}" if epochs else ""
    warning = "; warning: what is frozen has fresh weights, --weights would give it others" if fresh else ""
    return [f"frozen up to {frozen[-1].name}{shown}: {learning:,} of {total:,} parameters learn{warning}"]


def rate_shares(network: nn.Module, layer_decay: float) -> dict[int, float]:
    """id of a parameter -> its learning rate as a share of the head's: layer_decay to the power of its distance.

    Parts are counted as in `parts` (Clark et al. 2020, arXiv:2003.10555, appendix B, has the same by layer).
    """
    found = parts(network)
    return {id(p): layer_decay ** (len(found) - 1 - i) for i, part in enumerate(found) for p in part.parameters}
