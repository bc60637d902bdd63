"""The processes that train one network together, as torchrun starts them; alone, a world of one.

Each takes its share of every batch, PyTorch's DistributedDataParallel averages the gradients, and the first one alone
writes. A second group, over gloo, carries what they must agree on: whether to stop, to save, where to write.
"""

import contextlib
import datetime
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from skipway.errors import InputError

T = TypeVar("T")
BEAT_S = 1.0


class WorldError(InputError):
    """Another process of the run is gone, hangs, or has failed; the run can go on."""

    code = 75  # of the command


@dataclass
class World:
    """This process among those that train together.

    Args:
        rank: from 0.
        size: how many there are.
        control: the group that carries what they agree on.
        pulse: says that this process lives, and knows of the others.
        timeout: how long one process waits for another.
    """

    rank: int = 0
    size: int = 1
    control: Any = field(default=None, repr=False)
    pulse: "Pulse | None" = field(default=None, repr=False)
    timeout: datetime.timedelta = datetime.timedelta(seconds=300)

    @property
    def is_first(self) -> bool:
        """Whether this process writes, and talks to the user."""
        return self.rank == 0

    def part(self, items: Tensor) -> Tensor:
        """This process's part of some items: sizes differ by one at most, and together they are all, in their order."""
        return items.tensor_split(self.size)[self.rank]

    def part_of_evaluation(self, items: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """This process's part, and what brings the answers to all parts together; where there are few, all of them."""
        if self.size == 1 or len(items) < 2 * self.size:
            return items, lambda rows: rows
        return self.part(items), self.gathered

    def agreed(self, flag: int) -> int:
        """The largest flag of all processes; each has to ask."""
        if self.size == 1:
            return flag
        number = torch.tensor(flag)
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self.control)
        return int(number)

    def total(self, numbers: Tensor) -> Tensor:
        """The sum of the numbers of all processes, (...) float64 on the CPU."""
        if self.size == 1:
            return numbers.double().cpu()
        summed = numbers.double().cpu()
        dist.all_reduce(summed, group=self.control)
        return summed

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in the order of their ranks: (N_r, ...) on the CPU -> (N, ...)."""
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, rows, group=self.control)
        return torch.cat(parts)

    def circle(self) -> Callable[[Any], list[Any]]:
        """A way to meet beside training, in another thread: what one has to say -> what each process has, in the order
        of their ranks. Each process has to ask for one."""
        group: Any = dist.new_group(backend="gloo", timeout=self.timeout)

        def meet(said: Any) -> list[Any]:
            parts: list[Any] = [None] * self.size
            dist.all_gather_object(parts, said, group=group)
            return parts

        return meet

    def first_does(self, job: Callable[[], T]) -> T:
        """What a job gives that the first process alone runs; its error is every process's.

        Raises:
            InputError: in the other processes, whatever the job raised in the first.
        """
        if self.size == 1:
            return job()
        result: list[Any] = [None, None]
        error: BaseException | None = None
        if self.is_first:
            try:
                result[0] = job()
            except Exception as raised:
                error, result[1] = raised, str(raised) or repr(raised)
        dist.broadcast_object_list(result, src=0, group=self.control)
        if error is not None:
            raise error
        if result[1] is not None:
            raise InputError(result[1])
        return result[0]

    def same_buffers(self, network: nn.Module) -> None:
        """Give every process the first one's buffers (batch statistics)."""
        if self.size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    def wrapped(self, network: nn.Module, *, all_used: bool) -> nn.Module:
        """The network whose backward pass averages gradients over all processes.

        Args:
            network: on its device.
            all_used: whether each parameter has a part in each step.
        """
        if self.size == 1 or not any(p.requires_grad for p in network.parameters()):
            return network
        return DistributedDataParallel(network, find_unused_parameters=not all_used)


ALONE = World()


def is_launched() -> bool:
    """Whether torchrun, or something like it, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def joined(timeout_s: float) -> Iterator[World]:
    """The world that this process was started in, for as long as this is open.

    Args:
        timeout_s: how long one process waits for another.

    Raises:
        WorldError: another process was lost; says which.
    """
    if not is_launched():
        yield ALONE
        return
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
    timeout = datetime.timedelta(seconds=timeout_s)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timeout)
    control = dist.new_group(backend="gloo", timeout=timeout)
    pulse = Pulse(rank, size)
    world = World(rank, size, control, pulse, timeout)
    try:
        yield world
    except (RuntimeError, dist.DistError) as error:
        if is_lost(error):
            why = pulse.lost() or "another process of the run is gone"
            raise WorldError(f"{why}; start all again, and the run goes on ({_first_line(error)})") from error
        pulse.stop()
        dist.destroy_process_group()  # so that the others need not wait
        raise
    except BaseException:
        pulse.stop()
        dist.destroy_process_group()
        raise
    pulse.stop()
    dist.destroy_process_group()


LOST = ("Connection closed by peer", "Connection reset", "imed out", "timeout", "Broken pipe", "NCCL")


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process cannot be reached."""
    return isinstance(error, dist.DistError) or any(words in str(error) for words in LOST)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0][:200]


class Pulse:
    """Tells the others that this process lives and which step it is at, in the store that torchrun keeps.

    Args:
        rank, size: of this process.

    Attributes:
        step: where it is; the loop says so.
    """

    def __init__(self, rank: int, size: int):
        self.rank, self.size, self.step, self._beats = rank, size, 0, 0
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=datetime.timedelta(seconds=10),
        )
        self._store = dist.PrefixStore(f"skipway-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        self._ended = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._run, daemon=True, name="skipway-pulse")
        self._thread.start()

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(str(self.rank), f"{self._beats} {self.step} {socket.gethostname()} {os.getpid()}")

    def _run(self) -> None:
        with contextlib.suppress(Exception):  # the store went away, and with it those who would listen
            while not self._ended.wait(BEAT_S):
                self._beat()

    def lost(self) -> str:
        """Which processes are silent, or behind, in words; "" where none is."""
        said: list[str] = []
        asking = threading.Thread(target=lambda: said.append(self._lost()), daemon=True)
        asking.start()
        asking.join(6 * BEAT_S)
        return said[0] if said else "the machine that the processes meet at cannot be reached"

    def _lost(self) -> str:
        before = self._heard()
        time.sleep(3 * BEAT_S)
        now = self._heard()
        silent = [rank for rank in now if rank != self.rank and before.get(rank, [""])[0] == now[rank][0]]
        if silent:
            return "; ".join(f"process {r} ({now[r][2]}, pid {now[r][3]}) is silent" for r in silent)
        last = max((int(beat[1]) for beat in now.values()), default=0)
        behind = [rank for rank in now if int(now[rank][1]) < last]
        return "; ".join(
            f"process {r} ({now[r][2]}, pid {now[r][3]}) is still at step {now[r][1]}, others at {last}" for r in behind
        )

    def _heard(self) -> dict[int, list[str]]:
        """The last beat of each process: its number, its step, host, process id."""
        found = {}
        for rank in range(self.size):
            with contextlib.suppress(Exception):
                if self._store.check([str(rank)]):
                    found[rank] = self._store.get(str(rank)).decode().split()
        return found

    def stop(self) -> None:
        """Be silent from now on."""
        self._ended.set()
        self._thread.join(2)
