"""Names -> NetworkSpec: the networks of the papers, as data.

CIFAR networks of depth 6n+2 (He et al. 2015, section 4.2) have n basic blocks at 16, 32 and 64 channels.
"""

import fnmatch
from dataclasses import dataclass, replace
from typing import Literal

from skipway.errors import unknown
from skipway.spec import NetworkSpec, StageSpec

_HE = "He et al. 2015, arXiv:1512.03385"


@dataclass(frozen=True)
class ZooEntry:
    """A named network and where it comes from."""

    spec: NetworkSpec
    source: str


def _cifar(name: str, depth: int, shortcut: Literal["zero_pad", "projection", "none"]) -> NetworkSpec:
    n = (depth - 2) // 6
    stages = (StageSpec(n, 16), StageSpec(n, 32, 2), StageSpec(n, 64, 2))
    return NetworkSpec(stages, name, shortcut=shortcut, stem="cifar", stem_width=16)


def _imagenet(name: str, depths: tuple[int, ...], block: Literal["basic", "bottleneck"]) -> NetworkSpec:
    stages = tuple(StageSpec(d, 64 * 2**i, 1 if i == 0 else 2) for i, d in enumerate(depths))
    return NetworkSpec(stages, name, block=block, stem="imagenet", stem_width=64, num_classes=1000)


def _zoo() -> dict[str, ZooEntry]:
    tutorial = NetworkSpec((StageSpec(2, 16), StageSpec(2, 32, 2)), "tutorial", stem="cifar", stem_bias=True)
    zoo = {"tutorial": ZooEntry(tutorial, "the from-scratch path: the smallest one, 43,242 parameters")}
    for depth in (20, 32, 44, 56, 110, 1202):
        a, b, plain = f"resnet{depth}", f"resnet{depth}_b", f"plain{depth}"
        zoo[a] = ZooEntry(_cifar(a, depth, "zero_pad"), f"{_HE}, section 4.2, shortcut A")
        zoo[b] = ZooEntry(_cifar(b, depth, "projection"), f"{_HE}, section 4.2, with shortcut B")
        zoo[plain] = ZooEntry(_cifar(plain, depth, "none"), f"{_HE}, section 4.2, plain")
    for depth, depths in {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}.items():
        name, plain = f"resnet{depth}", f"plain{depth}"
        zoo[name] = ZooEntry(_imagenet(name, depths, "basic"), f"{_HE}, table 1")
        twin = replace(_imagenet(plain, depths, "basic"), shortcut="none")
        zoo[plain] = ZooEntry(twin, f"{_HE}, section 4.1, plain")
    for depth, depths in {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}.items():
        name = f"resnet{depth}"
        zoo[name] = ZooEntry(_imagenet(name, depths, "bottleneck"), f"{_HE}, table 1, stride on the 3x3 (v1.5)")
    return zoo


ZOO = _zoo()


def find(name: str) -> NetworkSpec:
    """The spec of a named network.

    Raises:
        InputError: no such name; the nearest is suggested.
    """
    if name not in ZOO:
        raise unknown("network", name, ZOO)
    return ZOO[name].spec


def matching(pattern: str = "*") -> dict[str, ZooEntry]:
    """The entries whose names fit a pattern: "*50*"; a bare word matches anywhere in the name."""
    wanted = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    return {name: entry for name, entry in ZOO.items() if fnmatch.fnmatchcase(name, wanted)}
