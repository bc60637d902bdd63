"""Other people's networks, made as their libraries make them: no wrapper, so their tensors keep their names.

timm and torchvision are imported here and in `download.py` alone, and only when a network of theirs is asked for.
"""

import copy
import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from skipway.errors import InputError, unknown
from skipway.foreign_spec import ForeignSpec
from skipway.network_spec import NetworkSpec
from skipway.nn.network import ResNet, build
from skipway.trust import code_place, find_code

_HEADS = "skipway_heads"  # where a network that was made here keeps the names of its classifiers


def build_foreign(spec: ForeignSpec, *, image_size: int = 0, seed: int = 0, pretrained: str = "") -> nn.Module:
    """A network of another's, with fresh weights.

    Args:
        spec: which.
        image_size: pixels a side, for networks that must know it (a ViT); 0: their own.
        seed: of the initial weights.
        pretrained: a timm name whose weights to fetch, as timm fits them to this network.

    Returns:
        The library's own module, fp32, on the CPU: (B, in_channels, H, W) float -> (B, num_classes).

    Raises:
        InputError: an unknown name, a missing library, or a network that cannot be made so.
    """
    make = {"timm": _timm, "torchvision": _torchvision, "python": _python}[spec.library]
    with torch.random.fork_rng(devices=[]):
        network = make(spec, image_size, pretrained, seed)
    if not isinstance(network, nn.Module):
        raise InputError(f"network {spec.name} must be a torch.nn.Module, got {type(network).__name__}")
    if any(isinstance(p, UninitializedParameter) for p in network.parameters()):
        raise InputError(f"network {spec.name} has lazy layers: give each its number of inputs")
    if not all(isinstance(value, Tensor) for value in network.state_dict().values()):
        raise InputError(
            f"network {spec.name} keeps more than tensors in its state dict, which no weights file can hold"
        )
    object.__setattr__(network, _HEADS, _find_heads(network, spec.num_classes))  # it travels with copies
    return network.train()


def build_any(spec: NetworkSpec | ForeignSpec, *, image_size: int = 0, seed: int = 0) -> nn.Module:
    """A network of ours or of another's with fresh weights, as in `build` and `build_foreign`."""
    if isinstance(spec, ForeignSpec):
        return build_foreign(spec, image_size=image_size, seed=seed)
    return build(spec, seed=seed)


def classifiers(network: nn.Module) -> tuple[str, ...]:
    """The names of the layers that give the logits (distilled transformers have two); () where none is known."""
    if isinstance(network, ResNet):
        return ("head.linear",) if network.head.linear is not None else ()
    found = getattr(network, _HEADS, None)
    return found if isinstance(found, tuple) else _find_heads(network, 0)


def _find_heads(network: nn.Module, num_classes: int) -> tuple[str, ...]:
    """Those that timm names; else the last linear layer or 1x1 convolution with so many outputs (0: any linear)."""
    named = (getattr(network, "pretrained_cfg", None) or {}).get("classifier")
    if named:
        names = (named,) if isinstance(named, str) else tuple(named)
        return tuple(name for name in names if name in dict(network.named_modules()))
    fitting = [
        name
        for name, module in network.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == (num_classes or module.out_features))
        or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.out_channels == num_classes)
    ]
    return tuple(fitting[-1:])


def need(library: str) -> ModuleType:
    """The library, or the one command that installs it."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise InputError(f"{library} is not installed: pip install 'skipway[timm]'") from error


def timm_options(spec: ForeignSpec, image_size: int) -> dict[str, Any]:
    """What timm is told of a network: classes, channels, and the image's size where it depends on it."""
    timm = need("timm")
    if not timm.is_model(spec.path):
        raise unknown("timm network", spec.path, timm.list_models())
    options: dict[str, Any] = {"num_classes": spec.num_classes, "in_chans": spec.in_channels}
    try:
        config = timm.get_pretrained_cfg(spec.path)
    except RuntimeError as error:  # a tag that it does not know
        raise unknown("timm network", spec.path, timm.list_pretrained()) from error
    if image_size and config is not None and config.fixed_input_size:
        options["img_size"] = image_size
    return options


def _timm(spec: ForeignSpec, image_size: int, pretrained: str, seed: int) -> nn.Module:
    options = timm_options(spec, image_size)
    torch.manual_seed(seed)
    if pretrained:
        return need("timm").create_model(pretrained, pretrained=True, **options)
    try:
        return need("timm").create_model(spec.path, **options)
    except Exception as error:  # whatever the library says of such a size
        raise _cannot(spec, image_size, error) from error


def _torchvision(spec: ForeignSpec, image_size: int, _: str, seed: int) -> nn.Module:
    """Their classifiers; the first convolution is drawn anew for other than three channels."""
    models = need("torchvision").models
    known = models.list_models(module=models)
    if spec.path not in known:
        raise unknown("torchvision network", spec.path, known)
    kind = models.get_model_builder(spec.path).__module__.rpartition(".")[2]
    options: dict[str, Any] = {"weights": None, "num_classes": spec.num_classes}
    if kind in ("googlenet", "inception"):
        options |= {"aux_logits": False, "init_weights": True}
    if image_size and kind == "vision_transformer":
        options["image_size"] = image_size
    if image_size and kind == "maxvit":
        options["input_size"] = (image_size, image_size)
    torch.manual_seed(seed)
    try:
        network = models.get_model(spec.path, **options)
    except Exception as error:  # whatever the library says of such a size
        raise _cannot(spec, image_size, error) from error
    if spec.in_channels != 3:
        _replace_first_conv(network, spec.in_channels)
    return network


def _replace_first_conv(network: nn.Module, in_channels: int) -> None:
    name, old = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    settings = (old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation)
    new = nn.Conv2d(in_channels, *settings, bias=old.bias is not None)  # pyrefly: ignore[bad-argument-type]
    nn.init.normal_(new.weight, std=old.weight.std().item())
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, new)


def _python(spec: ForeignSpec, image_size: int, _: str, seed: int) -> nn.Module:
    """The user's function, from the current folder or Python's path."""
    module_name, _, function_name = spec.path.partition(":")
    place = find_code(spec)
    offered = {"num_classes": spec.num_classes, "in_channels": spec.in_channels, "image_size": image_size}
    try:
        with _own_folder():
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the user's module does at import
        raise InputError(f"network {spec.name}: {module_name} cannot be imported: {_said(error)}") from error
    loaded = code_place(sys.modules[module_name.partition(".")[0]].__spec__)
    if loaded != place:
        raise InputError(
            f"network {spec.name}: another module of that name is loaded already ({loaded}); rename {place}"
        )
    make = getattr(module, function_name, None)
    if not callable(make):
        raise InputError(f"network {spec.name}: {place} has no function {function_name}")
    torch.manual_seed(seed)
    try:
        with _own_folder():
            taken = inspect.signature(make).parameters
            return make(**{name: value for name, value in offered.items() if name in taken})
    except (Exception, SystemExit) as error:
        raise InputError(f"network {spec.name} failed while it was made: {_said(error)}") from error


@contextmanager
def _own_folder() -> Iterator[None]:
    """With the current folder first on Python's path; what the user's code changes of torch's state is put back."""
    path, dtype, grad = [*sys.path], torch.get_default_dtype(), torch.is_grad_enabled()
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = path
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)


def check_logits(network: nn.Module, spec: ForeignSpec, image_size: int, *, batch_size: int = 2) -> None:
    """Try a copy of a network on images of zeros, in evaluation and in training.

    Raises:
        InputError: it cannot take such images, or so few at once, or gives something other than logits.
    """
    try:
        copied, images = copy.deepcopy(network), torch.zeros(batch_size, spec.in_channels, image_size, image_size)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            outputs = [copied.train(mode)(images) for mode in (False, True)]
    except Exception as error:  # whatever the network's own code does
        raise _cannot(spec, image_size, error) from error
    for output in outputs:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        wanted = (batch_size, spec.num_classes)
        if shape != wanted:
            raise InputError(
                f"network {spec.name} must give logits of shape {wanted} for {batch_size} images, got {shape}"
            )


def _cannot(spec: ForeignSpec, image_size: int, error: Exception) -> InputError:
    size = f"{image_size}x{image_size}" if image_size else "such"
    return InputError(
        f"network {spec.name} cannot take {spec.in_channels}x{size} images: {_said(error).rstrip('.')}. "
        "Another --image-size may suit it (a ViT wants a multiple of its patch)"
    )


def _said(error: BaseException) -> str:
    """The first line of what an error says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
