"""How the machine computes a network: device, precision, memory format, compiled or not, how much at a time.

Nothing here changes what is computed but for rounding. What was left open is chosen once, by rules that give the same
answer on the same machine, and written into the run (engine.json), so that a run that goes on keeps its bits.
"""

import contextlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.run import Run
from skipway.training.machine import keep_freed_memory
from skipway.training.plan import Plan


@dataclass(frozen=True)
class Engine:
    """What was chosen.

    Args:
        device: where the network is.
        bf16: autocast to bfloat16 over fp32 weights.
        channels_last: memory format of images and weights.
        compiled: whether the network goes through torch.compile.
        micro_batch: images at a time; 0: the whole batch.
        threads: on the CPU.
    """

    device: torch.device
    bf16: bool
    channels_last: bool
    compiled: bool = False
    micro_batch: int = 0
    threads: int = 0

    @property
    def layout(self) -> torch.memory_format:
        """The memory format."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def place(self, network: nn.Module) -> nn.Module:
        """The network on the device, in its memory format; the process set up for it."""
        if self.threads:
            torch.set_num_threads(self.threads)
        if self.device.type == "cpu":
            keep_freed_memory()
        return network.to(self.device).to(memory_format=self.layout)

    def forward(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        """How the network is called in training: itself, or its compiled form, which shares its weights."""
        return torch.compile(network, dynamic=False) if self.compiled else network

    def precision(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        if not self.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def to_json(self) -> str:
        """The choices that a run keeps."""
        return json.dumps({name: getattr(self, name) for name in KEPT})


KEPT = ("compiled", "micro_batch", "threads")


def engine_of(run: Run, plan: Plan) -> tuple[Engine, list[str]]:
    """The engine that a run began with.

    Raises:
        InputError: its engine.json is damaged.
    """
    chosen, _ = choose_engine(plan)
    path = run.folder / "engine.json"
    try:
        kept = json.loads(run.read_text(path.name))
        return replace(chosen, **{name: type(getattr(chosen, name))(kept[name]) for name in KEPT}), []
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error!r}") from error


def choose_engine(plan: Plan) -> tuple[Engine, list[str]]:
    """What a new run is computed with, and a sentence for what was chosen."""
    train, speed = plan.spec.train, plan.spec.speed
    compiled, why = _choose_compile(plan)
    threads = speed.threads or (torch.get_num_threads() if plan.device.type == "cpu" else 0)
    engine = Engine(plan.device, train.precision == "bf16", train.channels_last, compiled, speed.micro_batch, threads)
    return engine, [why] if why else []


def _choose_compile(plan: Plan) -> tuple[bool, str]:
    """Whether to compile, and why."""
    speed = plan.spec.speed
    if speed.compile != "auto":
        return speed.compile == "on", ""
    return False, ""
