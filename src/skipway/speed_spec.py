"""How fast a run goes: what the machine is asked to do, and tricks that spend less arithmetic on an epoch."""

from dataclasses import dataclass
from typing import Literal

from skipway.fields import check, option


@dataclass(frozen=True)
class SpeedSpec:
    """The engine's choices (left open, by rules or by what `bench --keep` measured; it says what it took), then tricks.

    Each trick is off by default.
    """

    compile: Literal["auto", "on", "off"] = option(
        "auto", "compile the network; auto: on CUDA with a compiler, where the run is long enough to pay for it"
    )
    kernels: Literal["auto", "on", "off"] = option(
        "auto",
        "skipway's own kernels on the CPU, for batch norm, addition, activation, max-pools and, on a matrix unit, 3x3 "
        "convolutions; auto: where they can be made",
    )
    deterministic: bool = option(
        True, "on an accelerator, operators that give the same bits each time; on the CPU all of them do"
    )
    shard: bool = option(
        False, "several processes: weights, gradients and the optimizer's memory are shared out over them (FSDP2)"
    )
    micro_batch: int = option(0, "images that go through the network at a time; 0: as many as fit the memory", low=0)
    threads: int = option(0, "threads on the CPU; 0: one a core", low=0, high=4096)
    start_size: int = option(0, "pixels a side in the first epochs, growing to image_size; 0: full size at once", low=0)
    full_size: float = option(0.3, "start_size: share of the run, at its end, at full size", low=0, high=1)
    keep_hard: float = option(
        1.0, "share of a batch that is learnt from: the images with the largest loss", low=0.01, high=1
    )
    hard_by: Literal["last", "proxy"] = option(
        "last",
        "keep_hard: which loss says what is hard: the one that an image had when it was last learnt from, which takes "
        "no arithmetic, or that of a small network that learns beside it",
    )
    freeze_norms: float = option(
        1.0, "share of the run after which batch norms use their running statistics", low=0, high=1
    )
    rest_stem: float = option(
        1.0, "share of the run after which the stem learns no more, so that its gradients cost nothing", low=0, high=1
    )

    def __post_init__(self) -> None:
        check(self, "speed")
