"""Weights into a network and out of it, under our names or others'; change of input channels and of classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from skipway.errors import InputError, unknown
from skipway.network_spec import NetworkSpec
from skipway.nn.foreign import classifiers
from skipway.nn.layouts import LAYOUTS
from skipway.nn.network import ResNet, skeleton
from skipway.nn.weight_files import read_weights

State = Mapping[str, Tensor]
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")  # that wrappers put before names
_BESIDE = ("n_averaged",)  # tensors that torch's AveragedModel keeps beside the weights
_COUNTER = "num_batches_tracked"  # absent in files of torch before 0.4; it only counts


@dataclass(frozen=True)
class Loaded:
    """What happened to the weights of a file.

    Args:
        layout: whose names the file had: "skipway", "torchvision", "timm", "cifar", ...
        changed: what was adapted, a sentence each.
    """

    layout: str
    changed: tuple[str, ...]


def to_layout(state: State, spec: NetworkSpec, layout: str) -> dict[str, Tensor]:
    """Our state dict under another's names.

    Args:
        state: of a network of `spec`.
        spec: the network.
        layout: one of LAYOUTS.

    Returns:
        Name -> tensor; it loads in the other library with strict=True.

    Raises:
        InputError: an unknown layout.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    renamed = {LAYOUTS[layout](name, spec): value for name, value in state.items()}
    if layout == "timm" and spec.preact and "head.fc.weight" in renamed:
        renamed["head.fc.weight"] = renamed["head.fc.weight"][:, :, None, None]  # a 1x1 convolution there
    return renamed


def save_weights(network: ResNet, path: str | Path, *, layout: str = "skipway") -> None:
    """Write a network's weights as safetensors, under our names or another's.

    Args:
        network: ours.
        path: the file, which must not exist.
        layout: one of LAYOUTS.

    Raises:
        InputError: the file exists or cannot be written, or an unknown layout.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"weights are written as safetensors: name a file that ends in .safetensors, not {path}")
    if path.exists():
        raise InputError(f"{path} exists; name a new file")
    state = to_layout(network.state_dict(), network.spec, layout)
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be written: {error}") from error


def load_weights(
    network: nn.Module,
    weights: str | Path | State,
    *,
    channels: Literal["sum", "average"] = "sum",
    new_head: bool = False,
    source: str = "",
) -> Loaded:
    """Put weights into a network, whoever named them.

    Args:
        network: ours, or another's under its own names; it is changed only if everything fits.
        weights: a file, or a state dict.
        channels: where the images have another number of channels, filters are summed over the file's (so that a
            grey image excites what a colour one did) or averaged, then spread evenly over the network's.
        new_head: where the number of classes differs, leave the layer that gives the logits as it is.
        source: what messages call the weights; default: the file.

    Returns:
        A Loaded: the layout found, and what was adapted.

    Raises:
        InputError: names or shapes that do not fit, each listed under the file's own names.

    Example:
        >>> from skipway.nn.network import build
        >>> a, b = build("tutorial", seed=1), build("tutorial")
        >>> load_weights(b, to_layout(a.state_dict(), a.spec, "torchvision")).layout
        'torchvision'
    """
    source = source or ("the state dict" if isinstance(weights, Mapping) else str(weights))
    given = dict(weights) if isinstance(weights, Mapping) else read_weights(weights)
    own = network.state_dict()
    given, layout, theirs = _names_in(given, network)
    if not any(name in given for name in theirs.values()):
        shown = ", ".join([*given][:3])
        raise InputError(
            f"{source} has none of the network's tensors, under its own names or those of "
            f"{', '.join(LAYOUTS)}; it has {shown}, ... ({len(given)} in all)"
        )
    state: dict[str, Tensor] = {}
    changed: list[str] = []
    for key, name in theirs.items():
        if name in given:
            state[key] = _flat_classifier(given[name], own[key])
        elif key.endswith(_COUNTER):
            state[key] = own[key]
    if isinstance(network, ResNet) and network.spec.head == "features":  # a file's classifier has no use here
        unused = {LAYOUTS[layout](key, network.spec) for key in ("head.linear.weight", "head.linear.bias")}
        given = {name: value for name, value in given.items() if name not in unused}
    _fit_channels(state, own, channels, changed)
    if new_head:
        for head in classifiers(network):
            _fit_classes(state, own, head, changed)
    check_fit(state, own, given, theirs, source)
    network.load_state_dict(state)
    return Loaded(layout, tuple(changed))


def _names_in(given: State, network: nn.Module) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    """The state dict without what wrappers put before its names, the layout that it is in, and our name -> its.

    Of all ways to read it, that which names most of the network's tensors.
    """
    own = network.state_dict()
    layouts: dict[str, dict[str, str]] = {"own": {key: key for key in own}}
    if isinstance(network, ResNet):
        layouts = {name: {key: rename(key, network.spec) for key in own} for name, rename in LAYOUTS.items()}
    variants = [{name: value for name, value in given.items() if name not in _BESIDE}]
    for state in variants:  # which grows: prefixes come in rows
        for prefix in _PREFIXES:
            if len(variants) < 32 and all(name.startswith(prefix) for name in state):
                variants.append({name.removeprefix(prefix): value for name, value in state.items()})
    ways = [(state, name, theirs) for state in variants for name, theirs in layouts.items()]
    return max(ways, key=lambda way: sum(name in way[0] for name in way[2].values()))


def fitting_stem(given: State, spec: NetworkSpec, stems: Sequence[str]) -> str:
    """The first of `stems` whose filters have the sizes of those in a state dict, or "" where none has."""
    for stem in stems:
        network = skeleton(replace(spec, stem=stem))  # pyrefly: ignore[bad-argument-type]
        state, _, theirs = _names_in(given, network)
        convs = {key: value for key, value in network.stem.state_dict(prefix="stem.").items() if value.ndim == 4}
        if convs and all(
            theirs[key] in state and state[theirs[key]].shape[2:] == value.shape[2:] for key, value in convs.items()
        ):
            return stem
    return ""


def _flat_classifier(value: Tensor, own: Tensor) -> Tensor:
    """A classifier that is a 1x1 convolution, as a linear layer's matrix."""
    return value[:, :, 0, 0] if value.ndim == 4 and own.ndim == 2 and value.shape[2:] == (1, 1) else value


def _fit_channels(state: dict[str, Tensor], own: State, how: str, changed: list[str]) -> None:
    """Other input channels: sum or average the file's filters over theirs, then spread them over ours."""
    key = next((name for name, value in own.items() if value.ndim == 4), "")  # the first convolution
    given = state.get(key)
    if given is None or given.ndim != 4 or given.shape[1] == own[key].shape[1]:
        return
    theirs, ours = given.shape[1], own[key].shape[1]
    if given.shape[0] != own[key].shape[0] or given.shape[2:] != own[key].shape[2:]:
        return  # it does not fit for another reason, which the check names
    total = given.sum(1, keepdim=True) / (theirs if how == "average" else 1)
    state[key] = (total / (ours if how == "sum" else 1)).expand(-1, ours, -1, -1).contiguous()
    changed.append(f"input channels {theirs} -> {ours}: filters {'averaged' if how == 'average' else 'summed'}")


def _fit_classes(state: dict[str, Tensor], own: State, head: str, changed: list[str]) -> None:
    """Other classes: the layer that gives the logits stays as it was made."""
    weight = state.get(f"{head}.weight")
    if weight is None or not weight.ndim or weight.shape[0] == own[f"{head}.weight"].shape[0]:
        return
    changed.append(f"a new head for {len(own[f'{head}.weight'])} classes, in place of {len(weight)}")
    for key in own:
        if key.startswith(f"{head}."):
            state[key] = own[key]


def check_fit(state: State, own: State, given: State, theirs: Mapping[str, str], source: str) -> None:
    """Refuse weights that do not fit.

    Args:
        state: what was found for us, under our names.
        own: what the network has.
        given: all that the file has.
        theirs: our name -> the file's.
        source: what the message calls the file.

    Raises:
        InputError: with what is mis-shaped, missing and unexpected, under the file's names.
    """
    wrong = [
        f"{theirs[key]} is {list(state[key].shape)}, the network's is {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    wrong += [f"{theirs[key]} {why}" for key, value in state.items() if (why := _no_weight(value))]
    used = set(theirs.values())
    wrong += [f"{theirs[key]} is missing" for key in own if key not in state]
    wrong += [f"{name} has no place" for name in given if name not in used and not name.endswith(_COUNTER)]
    if wrong:
        shown = "; ".join(wrong[:6]) + (f"; and {len(wrong) - 6} more" if len(wrong) > 6 else "")
        raise InputError(f"the weights in {source} do not fit the network: {shown}")


def _no_weight(value: Tensor) -> str:
    """What keeps a tensor from being a weight, or ""."""
    if value.is_meta or value.layout != torch.strided or value.is_quantized:
        return "is no plain tensor in memory"
    if value.is_complex():
        return "is complex"
    return "holds numbers that are none (NaN)" if bool(value.isnan().any()) else ""  # masks may be infinite


def load_state(network: nn.Module, state: State, name: str) -> None:
    """Put a state dict under the network's own names into it, or say which tensors do not fit.

    Raises:
        InputError: tensors are missing, left over, or of other shapes.
    """
    own = network.state_dict()
    check_fit(state, own, state, {key: key for key in own}, name)
    network.load_state_dict(dict(state))
