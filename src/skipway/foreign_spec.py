"""A network that someone else wrote: timm's, torchvision's, or a function of the user's."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from skipway.errors import InputError
from skipway.fields import check, option

LIBRARIES = ("timm", "torchvision", "python")
_PYTHON = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class ForeignSpec:
    """A network by the name that another library, or a module of the user's, has for it.

    `timm:vit_tiny_patch16_224`, `torchvision:densenet121`, or `python:nets:make`: the function `make` in nets.py,
    called with those of num_classes, in_channels and image_size that it takes.
    """

    name: str = option("", "timm:NAME, torchvision:NAME or python:module:function")
    in_channels: int = option(3, "channels of an image; training takes the data's", low=1, high=65536)
    num_classes: int = option(10, "number of logits; training takes the data's", low=1, high=10**7)

    def __post_init__(self) -> None:
        check(self, "network")
        if not is_foreign(self.name) or not self.path:
            raise InputError(
                f"network.name must be timm:NAME, torchvision:NAME or python:module:function, got {self.name!r}"
            )
        if self.library == "python" and not _PYTHON.fullmatch(self.path):
            raise InputError(f"network.name must look like python:module:function, got {self.name!r}")

    @property
    def library(self) -> str:
        """Who wrote it: "timm", "torchvision" or "python" (the user)."""
        return self.name.partition(":")[0]

    @property
    def path(self) -> str:
        """What it is called there."""
        return self.name.partition(":")[2]


def cannot_change(name: str, fields: Iterable[str]) -> InputError:
    """The error for settings that only the library which makes a network can change."""
    return InputError(
        f"network {name} is made by its own library: {', '.join(sorted(fields))} cannot be changed; "
        "a network of skipway's has it (`skipway networks`)"
    )


def is_foreign(name: object) -> bool:
    """Whether a network's name begins with a library's."""
    return isinstance(name, str) and name.partition(":")[0] in LIBRARIES and ":" in name
