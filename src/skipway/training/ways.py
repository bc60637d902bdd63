"""Ways to compute the same run, and which is the fastest here: measured by `skipway bench --keep`, kept in the cache.

A later run of that network, size, batch and precision, with the same versions on the same machine, takes the way that
comes to its end first. Compilation counts, so that a short run may take another one than a long run.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from skipway.cache import cache_folder, sweep, written_beside
from skipway.errors import InputError
from skipway.network_spec import NetworkSpec
from skipway.nn import kernels
from skipway.training.machine import device_name
from skipway.training.plan import Plan


@dataclass(frozen=True)
class Way:
    """A way to compute, and what it took.

    Args:
        compiled: whether the network goes through torch.compile.
        kernels: whether skipway's own kernels take part.
        step_s: the median of a training step, seconds.
        warm_up_s: the first steps together, which compile.
    """

    compiled: bool
    kernels: bool
    step_s: float
    warm_up_s: float

    @property
    def name(self) -> str:
        """In words."""
        return way_name(compiled=self.compiled, kernels=self.kernels)

    def takes(self, steps: int) -> float:
        """Seconds of a run of so many steps."""
        return self.warm_up_s + steps * self.step_s


def way_name(*, compiled: bool, kernels: bool) -> str:
    """A way in words."""
    whose = "skipway's own kernels" if kernels else "PyTorch's operators"
    return f"{whose}, {'compiled' if compiled else 'not compiled'}"


def ways_of(device: torch.device) -> list[dict[str, str]]:
    """Settings of `speed` for each way that a device has."""
    plain = [{"kernels": "off", "compile": "off"}, {"kernels": "off", "compile": "on"}]
    return [{"kernels": "on", "compile": "off"}, *plain] if device.type == "cpu" and not kernels.load() else plain


def keep(plan: Plan, ways: Sequence[Way]) -> Path:
    """Keep what was measured for runs like the plan's.

    Raises:
        InputError: the cache cannot be written.
    """
    place = _place(plan)
    kept = {"of": _same(plan), "on": datetime.date.today().isoformat(), "ways": [asdict(way) for way in ways]}
    try:
        sweep(place.parent)
        with written_beside(place) as beside:
            beside.write_text(json.dumps(kept, indent=1))
    except OSError as error:
        raise InputError(f"{place} cannot be written: {error.strerror}; $SKIPWAY_CACHE names another folder") from error
    return place


def fastest(plan: Plan) -> tuple[Way, str] | None:
    """The way that comes to the plan's end first among those that its settings leave open, and a sentence.

    None where nothing was kept for such a run, or what was is damaged.
    """
    ways, on = [], ""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(_place(plan).read_text())
        ways, on = [Way(**way) for way in kept["ways"]], kept["on"]
    speed = plan.spec.speed
    wanted = {"on": (True,), "off": (False,), "auto": (True, False)}
    open_ways = [w for w in ways if w.compiled in wanted[speed.compile] and w.kernels in wanted[speed.kernels]]
    if plan.device.type != "cpu" or kernels.load():
        open_ways = [way for way in open_ways if not way.kernels]
    if not open_ways:
        return None
    steps = plan.steps_per_epoch * plan.spec.train.epochs
    best = min(open_ways, key=lambda way: way.takes(steps))
    return best, f"{best.name}: the fastest of {len(open_ways)} for {steps:,} steps, measured here on {on}"


def _place(plan: Plan) -> Path:
    text = json.dumps(_same(plan), sort_keys=True, default=str)
    return cache_folder() / "ways" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def _same(plan: Plan) -> dict[str, Any]:
    """What must be the same for a measurement to hold."""
    spec = plan.spec
    network = dataclasses.replace(spec.network, num_classes=2)
    if isinstance(network, NetworkSpec):
        network = dataclasses.replace(network, name="custom")  # its other fields say all
    return {
        "network": dataclasses.asdict(network),
        "image_size": spec.data.image_size,
        "batch_size": spec.train.batch_size,
        "micro_batch": spec.speed.micro_batch,
        "precision": spec.train.precision,
        "channels_last": spec.train.channels_last,
        "device": device_name(plan.device),
        "cores": os.cpu_count(),
        "threads": spec.speed.threads,
        "torch": str(torch.__version__),
        "skipway": importlib.metadata.version("skipway"),
    }
