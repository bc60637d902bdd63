"""How the machine computes a network: device, precision, memory format, compiled or not, how much at a time.

Nothing here changes what is computed but for rounding. What was left open is chosen once, from what `skipway bench
--keep` measured here or else by rules, and written into the run (engine.json), so that a run that goes on keeps its
bits.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from skipway.data.sending import sent
from skipway.errors import InputError
from skipway.network_spec import NetworkSpec
from skipway.nn import kernels
from skipway.nn.describe import describe
from skipway.training.loss import Objective
from skipway.training.machine import compiles, keep_freed_memory, memory_of
from skipway.training.plan import Plan
from skipway.training.ways import fastest

Judged = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]  # inputs, targets -> loss, how many right, logits


@dataclass(frozen=True)
class Engine:
    """What was chosen.

    Args:
        device: where the network is.
        bf16: autocast to bfloat16 over fp32 weights.
        channels_last: memory format of images and weights.
        compiled: whether the network goes through torch.compile.
        kernels: whether skipway's own kernels take norms, additions and activations.
        micro_batch: images at a time; 0: the whole batch.
        threads: on the CPU.
        deterministic: whether an accelerator is held to operators that give the same bits each time.
    """

    device: torch.device
    bf16: bool
    channels_last: bool
    compiled: bool = False
    kernels: bool = False
    micro_batch: int = 0
    threads: int = 0
    deterministic: bool = True

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
        else:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may not be
            torch.use_deterministic_algorithms(self.deterministic, warn_only=True)
            # a help in finding bugs, which writes all memory once more
            torch.utils.deterministic.fill_uninitialized_memory = False  # pyrefly: ignore[missing-attribute]
            torch.backends.cudnn.benchmark = not self.deterministic
        return network.to(self.device).to(memory_format=self.layout)

    def send(self, tensor: Tensor) -> Tensor:
        """A tensor on the device."""
        return sent(tensor, self.device)

    def forward(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        """How the network is called in training: itself, or its compiled form, which shares its weights."""
        return self._compiled(network, None) if self.compiled else network

    def replays(self, *, alone: bool) -> bool:
        """Whether a step is one graph of all kernels, replayed: on a CUDA device that has the whole batch at once.

        Launched one by one, the kernels of small images take longer to launch than to run.

        Args:
            alone: whether no other process has a part of the batch.
        """
        return self.compiled and self.device.type == "cuda" and alone and not self.micro_batch

    def replayed(self, network: nn.Module, objective: Objective) -> Judged:
        """Network and loss as such a graph. What it returns is overwritten at the next call."""

        def judged(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                logits = network(inputs)
            return objective.judged(logits, targets)

        return self._compiled(judged, "reduce-overhead")

    @staticmethod
    def _compiled(function: Callable, mode: str | None) -> Callable:
        import torch._dynamo

        torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
        return torch.compile(function, dynamic=False, mode=mode)

    def done(self) -> None:
        """Give back what compiled steps keep on a device: graphs, and the memory that they hold."""
        if self.compiled and self.device.type == "cuda":
            torch.compiler.reset()

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """The context of a forward pass: its precision, and whose kernels."""
        with kernels.used(self.kernels), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            yield

    def to_json(self) -> str:
        """The choices that a run keeps."""
        return json.dumps({name: getattr(self, name) for name in KEPT})


KEPT = ("compiled", "kernels", "micro_batch", "threads")
COMPILE_PAYS = 1e16  # FLOPs of a run on an accelerator from which compiling it, about a minute, is worth it
SHAPES = 64  # sizes and modes that a network is compiled for, before PyTorch goes on without (its own limit is 8)
FILLS = 0.6  # share of the memory that a step's activations may take
ITSELF = 700 << 20  # bytes of a process that has imported everything


def engine_of(text: str, plan: Plan) -> Engine:
    """The engine that a run began with, by its engine.json.

    Raises:
        InputError: that is damaged, or it began with kernels that cannot be had any more.
    """
    chosen, _ = choose_engine(plan)
    try:
        kept = json.loads(text)
        engine = replace(chosen, **{name: type(getattr(chosen, name))(kept[name]) for name in KEPT})
        if engine.micro_batch < 0 or not 0 <= engine.threads <= 4096:
            raise ValueError(f"micro_batch {engine.micro_batch}, threads {engine.threads}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"the run's engine.json is damaged: {error!r}") from error
    if engine.kernels and (why := kernels.load()):
        raise InputError(f"the run began with skipway's kernels, without which its bits would differ, and {why}")
    return engine


def choose_engine(plan: Plan, processes: int = 1) -> tuple[Engine, list[str]]:
    """What a new run is computed with, and a sentence for what was chosen.

    Args:
        plan: what to do.
        processes: how many share each batch.

    Raises:
        InputError: something was asked for that cannot be had.
    """
    train, speed, measured = plan.spec.train, plan.spec.speed, fastest(plan)
    on_cpu = plan.device.type == "cpu"
    threads = speed.threads or (torch.get_num_threads() if on_cpu else 0)
    flops, _ = _work(plan)
    if measured:
        compiled, own, said = measured[0].compiled, measured[0].kernels, [measured[1]]
    else:
        pays = flops > COMPILE_PAYS and compiles(plan.device) and not _recomputes(plan)
        compiled = speed.compile == "on" or (speed.compile == "auto" and pays)
        own, said = _choose_kernels(plan, compiled=compiled)
    share = -(-train.batch_size // processes)
    micro = speed.micro_batch or fitting(plan, share)
    micro = 0 if micro >= share else micro
    if micro and not speed.micro_batch:
        said.append(f"{micro} images at a time, which fit the memory; batch norm sees those")
    if compiled:
        said.append("the network is compiled: the first step takes longer")
        said += ["--checkpoint does nothing for it: the compiler decides what is kept"] if _recomputes(plan) else []
    engine = Engine(
        plan.device,
        bf16=train.precision == "bf16",
        channels_last=train.channels_last,
        compiled=compiled,
        kernels=own,
        micro_batch=micro,
        threads=threads,
        deterministic=speed.deterministic,
    )
    if not on_cpu and speed.deterministic:
        said.append("operators that give the same bits each time")
    return engine, said


def _choose_kernels(plan: Plan, *, compiled: bool) -> tuple[bool, list[str]]:
    asked = plan.spec.speed.kernels
    if asked == "off" or (asked == "auto" and (plan.device.type != "cpu" or compiled)):
        return False, []
    why = "they are for the CPU" if plan.device.type != "cpu" else kernels.load()
    if not why:
        unit = ", 3x3 convolutions on the matrix unit" if kernels.call("conv_ready") else ""
        return True, [f"norms, additions and activations by skipway's own kernels{unit}"]
    if asked == "on":
        raise InputError(f"speed.kernels on cannot be had: {why}")
    return False, [f"without skipway's own kernels, which are faster: {why}"]


def _recomputes(plan: Plan) -> bool:
    return isinstance(plan.spec.network, NetworkSpec) and plan.spec.network.checkpoint


def _work(plan: Plan) -> tuple[float, float]:
    """FLOPs of the run, and bytes that a training step keeps for one image; 0 where that is not known.

    In bfloat16 on an accelerator these are half of those in fp32. On a CPU fp32 counts always: there, more than fits
    ends the process.
    """
    if not isinstance(plan.spec.network, NetworkSpec):
        return 0.0, 0.0
    counted = describe(plan.spec.network, image_size=plan.spec.data.image_size)
    half = plan.device.type != "cpu" and plan.spec.train.precision == "bf16"
    flops = 3.0 * counted.flops * len(plan.splits.train) * plan.spec.train.epochs
    return flops, counted.activation_bytes / (2 if half else 1)


def fitting(plan: Plan, share: int) -> int:
    """Images of a step's share that may go through the network at a time: all, or the largest even part that fits."""
    room, bytes_an_image = memory_of(plan.device), _work(plan)[1]
    if plan.device.type == "cpu":  # where inputs, some of them on their way, and the process itself are too
        room -= ITSELF + 4 * 4 * share * plan.source.channels * plan.spec.data.image_size**2
    room, parts = FILLS * room, 1
    while share / parts > 1 and share / parts * bytes_an_image > room:
        parts += 1
    return -(-share // parts)
