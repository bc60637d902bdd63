"""One contender of peers.py, in this process: trains for a while and prints one line of JSON.

All see the same images and augmentation (shift by an eighth, mirror, normalise), batches and SGD. Defaults are what
each library's own pages show first: fp32, NCHW, a DataLoader with torchvision's transforms. Tuned are bf16 autocast,
channels_last, torch.compile (on CUDA with graphs), fused SGD, uint8 images in memory that are augmented as whole
batches; the allocator is tuned by the environment that peers.py gives. No peer validates; skipway does, outside the
clock.
"""

import argparse
import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peers_data import CLASSES, InMemory, Job, count, default_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader

WARM_UP = 3  # steps
RATE = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)


@dataclass(frozen=True)
class Outcome:
    """What came of it; start-up is the time from the start of the process to the first step that counts."""

    images_per_s: float
    images: int
    start_up_s: float
    peak_bytes: int
    device_bytes: int
    parameters: int
    threads: int
    engine: str


class Clock:
    """Counts the images of steps after the warm-up, and says when it is enough."""

    def __init__(self, job: Job):
        self.job, self.steps, self.images, self.start_up = job, 0, 0, 0.0

    def tick(self, images: int) -> bool:
        """A step is done; whether it was the last."""
        self.steps += 1
        if self.steps <= WARM_UP:
            if self.steps == WARM_UP:
                self._wait()
                self.start_up, self.began = time.time() - self.job.born, time.perf_counter()
            return False
        self.images += images
        if self.steps < WARM_UP + 3 or time.perf_counter() - self.began < self.job.seconds:
            return False
        self._wait()
        self.rate = self.images / (time.perf_counter() - self.began)
        return True

    def _wait(self) -> None:
        if self.job.device == "cuda":
            torch.cuda.synchronize()

    def outcome(self, network: nn.Module, engine: str) -> Outcome:
        """Of a peer."""
        parameters = sum(p.numel() for p in network.parameters())
        return outcome(self.job, self.rate, self.images, self.start_up, parameters, peak_bytes(), engine)


def outcome(job: Job, rate: float, images: int, start_up: float, parameters: int, peak: int, engine: str) -> Outcome:
    on_device = torch.cuda.max_memory_allocated() if job.device == "cuda" else 0
    return Outcome(rate, images, start_up, peak, on_device, parameters, torch.get_num_threads(), engine)


def peak_bytes() -> int:
    """The peak resident set of this process, and what its children hold for themselves now."""
    return _field(Path("/proc/self/status"), ("VmHWM",)) + sum(
        _field(Path(f"/proc/{pid}/smaps_rollup"), ("Private_Clean", "Private_Dirty")) for pid in _descendants()
    )


def _field(file: Path, names: tuple[str, ...]) -> int:
    try:
        rows = [row.split() for row in file.read_text().splitlines()]
    except OSError:  # it ended meanwhile
        return 0
    return sum(int(row[1]) << 10 for row in rows if row[0].rstrip(":") in names)


def _descendants() -> list[int]:
    found, left = [], [os.getpid()]
    while left:
        pid = left.pop()
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                children = [int(word) for word in file.read_text().split()]
            except OSError:
                continue
            found += children
            left += children
    return found


def make_network(job: Job, library: str) -> nn.Module:
    if library == "timm":
        import timm

        network = timm.create_model(job.network, num_classes=CLASSES)
    else:
        import torchvision

        network = torchvision.models.get_model(job.network, num_classes=CLASSES)
    if job.size == 32:
        network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return network.train().to(job.device)


def compiled(network: nn.Module, device: str) -> Any:
    return torch.compile(network, mode="reduce-overhead" if device == "cuda" else None)


class Autocast(nn.Module):
    """A compiled network in bfloat16; for fastai, whose own mixed precision is for CUDA alone."""

    def __init__(self, network: nn.Module, device: str):
        super().__init__()
        self.network, self.device = compiled(network.to(memory_format=torch.channels_last), device), device

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, K) float32."""
        with torch.autocast(self.device, torch.bfloat16):
            return self.network(inputs).float()


def plain_loop(job: Job, library: str, *, tuned: bool) -> Outcome:
    network, clock = make_network(job, library), Clock(job)
    forward = Autocast(network, job.device) if tuned else network
    batches = InMemory(job) if tuned else default_loader(job)
    optimizer = RATE(network.parameters(), fused=True) if tuned else RATE(network.parameters())
    for inputs, targets in batches:
        inputs, targets = inputs.to(job.device), targets.to(job.device)
        optimizer.zero_grad()
        F.cross_entropy(forward(inputs), targets).backward()
        optimizer.step()
        if clock.tick(len(inputs)):
            break
    return clock.outcome(network, "tuned loop" if tuned else "plain loop")


def lightning_run(job: Job, *, tuned: bool) -> Outcome:
    import lightning

    network, clock = make_network(job, "torchvision"), Clock(job)
    if tuned:
        network = network.to(memory_format=torch.channels_last)

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = compiled(network, job.device) if tuned else network

        def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
            return F.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return RATE(self.parameters(), fused=True) if tuned else RATE(self.parameters())

        def on_train_batch_end(self, outputs: Any, batch: tuple[Tensor, Tensor], number: int) -> None:
            self.trainer.should_stop = clock.tick(len(batch[0]))

    lean = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "precision": "bf16-mixed"}
    options = {"max_epochs": 1, "accelerator": "gpu" if job.device == "cuda" else "cpu", **(lean if tuned else {})}
    batches = DataLoader(InMemory(job), batch_size=None) if tuned else default_loader(job)
    lightning.Trainer(**options).fit(Classifier(), batches)  # pyrefly: ignore[bad-argument-type]
    return clock.outcome(network, f"Trainer {lightning.__version__}")


def fastai_run(job: Job, *, tuned: bool) -> Outcome:
    import fastai
    from fastai.callback.core import Callback, CancelFitException
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    network, clock = make_network(job, "torchvision"), Clock(job)

    class Ticker(Callback):
        order = 100

        def after_batch(self) -> None:
            if clock.tick(job.batch):
                raise CancelFitException

    batches = DataLoader(InMemory(job), batch_size=None) if tuned else default_loader(job)
    options: dict[str, Any] = {"opt_func": partial(OptimWrapper, opt=partial(RATE, fused=True))} if tuned else {}
    model = Autocast(network, job.device) if tuned else network
    learner = Learner(DataLoaders(batches, batches), model, loss_func=nn.CrossEntropyLoss(), cbs=[Ticker()], **options)
    learner.fit(1, 0.01)
    return clock.outcome(network, f"Learner {fastai.__version__}")


def skipway_run(job: Job) -> Outcome:
    """`skipway.train`, as for a long run, stopped when its epochs after the first have taken long enough."""
    from rich.console import Console

    import skipway
    from skipway.run import Run

    folder, found = job.data.parent / f"run-{os.getpid()}", {"start": 0.0, "peak": 0}
    each = count(job.data) // job.batch * job.batch

    def watch() -> None:
        while True:
            time.sleep(0.2)
            rows = Run.open(folder).metrics() if (folder / "metrics.jsonl").is_file() else []
            found["start"] = found["start"] or (time.time() - job.born if rows else 0.0)
            if sum(each / row["images_per_s"] for row in rows[1:]) >= job.seconds:
                found["peak"] = peak_bytes()
                os.kill(os.getpid(), signal.SIGINT)  # it stops cleanly, as after Ctrl-C
                return

    threading.Thread(target=watch, daemon=True).start()
    steps = 6000 if job.device == "cpu" else 60_000  # a quarter of an hour and more
    train = {"batch_size": job.batch, "epochs": steps * job.batch // each, "device": job.device}
    settings = {"data": {"image_size": job.size}, "train": train}
    quiet = Console(file=io.StringIO())
    run = skipway.train(job.data, network=job.network, settings=settings, out=folder, console=quiet)
    rows, chosen = run.metrics()[1:], run.spec.train
    rate = len(rows) / sum(1 / row["images_per_s"] for row in rows)
    engine = f"{chosen.precision}, channels_last {chosen.channels_last}, {run.read_text('engine.json')}"
    parameters = run.summary["num_parameters"]
    return outcome(job, rate, len(rows) * each, found["start"], parameters, int(found["peak"]), engine)


CONTENDERS: dict[str, Callable[[Job], Outcome]] = {
    "skipway": skipway_run,
    "timm": partial(plain_loop, library="timm", tuned=False),
    "torchvision": partial(plain_loop, library="torchvision", tuned=False),
    "lightning": partial(lightning_run, tuned=False),
    "fastai": partial(fastai_run, tuned=False),
    "timm-tuned": partial(plain_loop, library="timm", tuned=True),
    "torchvision-tuned": partial(plain_loop, library="torchvision", tuned=True),
    "lightning-tuned": partial(lightning_run, tuned=True),
    "fastai-tuned": partial(fastai_run, tuned=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CONTENDERS)
    for field, kind in Job.__annotations__.items():
        parser.add_argument(f"--{field}", type=kind, required=True)
    options = vars(parser.parse_args())
    print("\n" + json.dumps(asdict(CONTENDERS[options.pop("name")](Job(**options)))))


if __name__ == "__main__":
    main()
