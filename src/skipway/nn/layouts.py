"""How others name the tensors of the same network: torchvision, timm, and the common CIFAR repositories.

A layout is a function from our name to theirs. Nothing but names differs, except that a classifier may be a 1x1
convolution.
"""

import re
from collections.abc import Callable

from skipway.network_spec import NetworkSpec

Rename = Callable[[str, NetworkSpec], str]


def _torchvision(name: str, spec: NetworkSpec) -> str:
    """torchvision's, and timm's for its ResNet class: conv1, bn1, layer1.0.conv1, layer2.0.downsample.0, fc."""
    part, _, rest = name.partition(".")
    if part == "stem":
        return _torchvision_stem(rest, spec)
    if part == "head":
        return rest.replace("linear.", "fc.").replace("norm.", "bn.")
    stage, block, rest = rest.split(".", 2)
    first = 1 if spec.shortcut == "avg_pool" else 0
    rest = rest.replace("shortcut.conv", f"downsample.{first}").replace("shortcut.norm", f"downsample.{first + 1}")
    rest = re.sub(r"attention\.conv(\d)", r"se.fc\1", rest).replace("attention.", "se.")
    return f"layer{int(stage) + 1}.{block}.{rest.replace('norm', 'bn')}"


def _torchvision_stem(rest: str, spec: NetworkSpec) -> str:
    layer, _, tensor = rest.rpartition(".")
    deep = {"conv1": "conv1.0", "norm1": "conv1.1", "conv2": "conv1.3", "norm2": "conv1.4", "conv": "conv1.6"}
    names = {"conv": "conv1", "norm": "bn1", "pool.conv": "maxpool.0"}
    names["pool.norm"] = "maxpool.1" if spec.blur == "none" else "maxpool.2"
    if spec.stem in ("deep", "tiered"):
        names |= deep
    return f"{names[layer]}.{tensor}"


def _timm_v2(name: str, spec: NetworkSpec) -> str:
    """timm's ResNetV2 class: stem.conv, stages.0.blocks.0.norm1, stages.0.blocks.0.downsample.conv, norm, head.fc."""
    if name.startswith("stages."):
        _, stage, block, rest = name.split(".", 3)
        return f"stages.{stage}.blocks.{block}.{rest.replace('shortcut.', 'downsample.')}"
    if spec.stem in ("deep", "tiered"):
        name = name.replace("stem.conv.", "stem.conv3.").replace("stem.norm.", "stem.norm3.")
    return name.replace("head.norm.", "norm.").replace("head.linear.", "head.fc.")


def _cifar(name: str, spec: NetworkSpec) -> str:
    """The CIFAR repositories' (Idelbayev's and others): as torchvision's, with linear and layer2.0.shortcut.0."""
    return _torchvision(name, spec).replace("fc.", "linear.").replace(".downsample.", ".shortcut.")


def _cifar_fc(name: str, spec: NetworkSpec) -> str:
    """The same with fc."""
    return _cifar(name, spec).replace("linear.", "fc.")


def _wide(name: str, spec: NetworkSpec) -> str:
    """The common Wide ResNet repositories': block1.layer.0.bn1, convShortcut, bn1, fc."""
    theirs = _torchvision(name, spec).replace(".downsample.0.", ".convShortcut.")
    theirs = re.sub(r"^layer(\d+)\.", r"block\1.layer.", theirs)
    return re.sub(r"^bn\.", "bn1.", theirs)


LAYOUTS: dict[str, Rename] = {
    "skipway": lambda name, spec: name,
    "torchvision": _torchvision,
    "timm": lambda name, spec: (_timm_v2 if spec.preact else _torchvision)(name, spec),
    "cifar": _cifar,
    "cifar_fc": _cifar_fc,
    "wide": _wide,
}
