"""How a run is kept from being lost: checkpoints, limits, bad numbers."""

from dataclasses import dataclass
from typing import Literal

from skipway.fields import check, option


@dataclass(frozen=True)
class SafetySpec:
    """When a run is saved, when it ends early, what becomes of bad numbers. A run may go on with other values."""

    save_minutes: float = option(
        5.0, "a checkpoint every so many minutes within an epoch, beside the one at its end; 0: none", low=0
    )
    save_steps: int = option(0, "a checkpoint every so many steps within an epoch; 0: by the clock alone", low=0)
    keep_checkpoints: int = option(2, "how many of the last checkpoints stay", low=1)
    max_minutes: float = option(
        0.0, "stop cleanly after so long, with exit code 75; the same command goes on; 0: no limit", low=0
    )

    timeout_s: float = option(
        300.0, "several processes: how long one waits for another until it gives it up", low=1, high=86400
    )
    bad_numbers: Literal["stop", "skip", "back"] = option(
        "stop",
        "when a loss or a gradient is no finite number: stop and say where; skip the batch; or go back to the last "
        "checkpoint with half the rate",
    )

    def __post_init__(self) -> None:
        check(self, "safety")
