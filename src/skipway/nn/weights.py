"""Weights from files and to files, under our names or others'; change of input channels and of classes.

safetensors first. A .pth or .th file is a pickle: it is opened by torch's weights-only reader, which refuses
anything but tensors.
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from skipway.errors import InputError, unknown
from skipway.network_spec import NetworkSpec
from skipway.nn.foreign import classifier
from skipway.nn.layouts import LAYOUTS
from skipway.nn.network import ResNet, skeleton

State = Mapping[str, Tensor]
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")  # under which checkpoints keep their weights
_PREFIXES = ("module.", "_orig_mod.", "model.")
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


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file. Raises InputError."""
    if not path.is_file():
        raise InputError(f"no such weights file or run folder: {path}")
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}") from error


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth, .pt or .th file, with wrappers and prefixes taken off.

    Args:
        path: the file.

    Returns:
        Name -> tensor, on the CPU.

    Raises:
        InputError: no such file, damaged, no tensors in it, or a pickle that holds more than tensors.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        found: Any = read_safetensors(path)[0]
    else:
        if not path.is_file():
            raise InputError(f"no such weights file: {path}")
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if path.read_bytes()[:1] not in (b"\x80", b"P"):  # of a pickle, of a zip file
                raise InputError(f"{path} is no weights file (.safetensors, .pth, .pt, .th)") from error
            raise InputError(
                f"{path} is refused: it is a pickle that holds more than tensors, and opening it could run code. "
                "Save its state dict alone as safetensors"
            ) from error
        except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{path} cannot be read as weights: it is empty, cut off or no weights file ({error!r:.80})"
            ) from error
    return _unwrap(found, path)


def _unwrap(found: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside a checkpoint."""
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    state = {str(k): v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not state:
        raise InputError(f"{path} holds no weights: there must be a state dict, alone or under 'state_dict'")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


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
    layout, theirs = _names_in(given, network) if isinstance(network, ResNet) else ("own", {key: key for key in own})
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
        _fit_classes(state, own, classifier(network), changed)
    check_fit(state, own, given, theirs, source)
    network.load_state_dict(state)
    return Loaded(layout, tuple(changed))


def _names_in(given: State, network: ResNet) -> tuple[str, dict[str, str]]:
    """The layout that a state dict is in, and our name -> its."""
    spec, own = network.spec, network.state_dict()
    hits = {name: sum(rename(key, spec) in given for key in own) for name, rename in LAYOUTS.items()}
    layout = max(hits, key=hits.__getitem__)
    return layout, {key: LAYOUTS[layout](key, spec) for key in own}


def fitting_stem(given: State, spec: NetworkSpec, stems: Sequence[str]) -> str:
    """The first of `stems` whose filters have the sizes of those in a state dict, or "" where none has."""
    for stem in stems:
        network = skeleton(replace(spec, stem=stem))  # pyrefly: ignore[bad-argument-type]
        _, theirs = _names_in(given, network)
        convs = {key: value for key, value in network.stem.state_dict(prefix="stem.").items() if value.ndim == 4}
        if convs and all(
            theirs[key] in given and given[theirs[key]].shape[2:] == value.shape[2:] for key, value in convs.items()
        ):
            return stem
    return ""


def _flat_classifier(value: Tensor, own: Tensor) -> Tensor:
    """A classifier that is a 1x1 convolution, as a linear layer's matrix."""
    return value[:, :, 0, 0] if value.ndim == 4 and own.ndim == 2 and value.shape[2:] == (1, 1) else value


def _fit_channels(state: dict[str, Tensor], own: State, how: str, changed: list[str]) -> None:
    """Other input channels: sum or average the file's filters over theirs, then spread them over ours."""
    key = next(name for name, value in own.items() if value.ndim == 4)  # the first convolution
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
    if weight is None or weight.shape[:1] == own[f"{head}.weight"].shape[:1]:
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
    used = set(theirs.values())
    wrong += [f"{theirs[key]} is missing" for key in own if key not in state]
    wrong += [f"{name} has no place" for name in given if name not in used and not name.endswith(_COUNTER)]
    if wrong:
        shown = "; ".join(wrong[:6]) + (f"; and {len(wrong) - 6} more" if len(wrong) > 6 else "")
        raise InputError(f"the weights in {source} do not fit the network: {shown}")


def load_state(network: nn.Module, state: State, name: str) -> None:
    """Put a state dict under the network's own names into it, or say which tensors do not fit.

    Raises:
        InputError: tensors are missing, left over, or of other shapes.
    """
    own = network.state_dict()
    check_fit(state, own, state, {key: key for key in own}, name)
    network.load_state_dict(dict(state))
