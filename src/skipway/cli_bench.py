"""The verb `skipway bench`, and the table that it prints. It is hung into the command in cli.py."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from skipway.flags import Flags, TrustCode, settings_of
from skipway.terminal import console, print_json

if TYPE_CHECKING:
    from skipway.training.bench import Bench, Speed
    from skipway.training.roofline import Rate


def bench(
    network: str,
    /,
    *,
    seconds: float = 10.0,
    peak_tflops: float = 0.0,
    keep: bool = False,
    json: bool = False,
    trust_code: TrustCode = False,
    flags: Flags | None = None,  # pyrefly: ignore[invalid-annotation]
) -> int:
    """Measure this machine, and how fast NETWORK trains and answers on it: images/s, parts of a step, share of peak.

    The run's own step on random images, with what a run of 200,000 such steps would choose. Of the data's flags
    --image-size applies. Nothing is kept, unless --keep: then the ways to compute it are compared, and later runs
    like it, on this machine, take the fastest.

    **Examples**

    `skipway bench resnet18 --image-size 32 --batch-size 256`

    `skipway bench resnet50 --batch-size 32 --seconds 30 --json`

    `skipway bench runs/photos-resnet18-1 --compile on`

    `skipway bench resnet18 --image-size 128 --batch-size 32 --keep`

    Parameters
    ----------
    network
        A name from `skipway networks`, timm:NAME, torchvision:NAME, python:module:function, or a run folder.
    seconds
        For training, and again for inference; three steps at the least, on an accelerator ten.
    peak_tflops
        Hold the speeds against this peak. Default: the fastest arithmetic measured.
    keep
        Compare the ways to compute (own kernels, compiled or not), so many seconds each, and keep what was found in the
        cache for later runs.
    json
        Print one JSON object.
    """
    from skipway.training.bench import bench as measure

    settings = settings_of(flags, None)
    with Console(stderr=True, emoji=False).status("measuring"):
        found = measure(
            network,
            seconds=seconds,
            peak_tflops=peak_tflops,
            settings=settings,
            keep_fastest=keep,
            trust_code=trust_code,
        )
    if json:
        print_json(dataclasses.asdict(found))
    else:
        console.print(report(found), soft_wrap=True)
    return 0


def report(found: "Bench") -> Group:
    """The machine's limits, then the network's speeds against them."""
    machine, engine = found.machine, found.engine
    memory_format = "channels last" if engine["channels_last"] else "channels first"
    how = [engine["precision"], memory_format, "compiled" if engine["compiled"] else "not compiled"]
    how += ["skipway's own kernels"] if engine["kernels"] else []
    how += [f"micro-batches of {engine['micro_batch']}"] if engine["micro_batch"] else []
    size = f"{found.image_size} pixels, batches of {found.batch_size}"
    of = "the peak given" if found.peak == "given" else f"the fastest measured ({found.peak})"
    return Group(
        f"{escape(machine['device'])}, {machine['cores']} cores, {machine['threads']} threads, torch "
        f"{machine['torch']}, Python {machine['python']}",
        "",
        _roofline(found),
        "",
        f"[bold]{escape(found.network)}[/], {found.parameters:,} parameters, {found.flops:,} FLOPs an image, {size}",
        ", ".join(how),
        "",
        _speeds(found),
        f"MFU: arithmetic of convolutions and linear layers (training: 3 x forward) as a share of "
        f"{found.peak_tflops:.3g} TFLOP/s, {of}",
        "",
        "a training step: " + ", ".join(_parts(found)),
        f"before that {found.training.warm_up_s:.1f} s of warm-up",
        *_ways(found),
    )


def _ways(found: "Bench") -> Iterator[RenderableType]:
    """The ways to compute that were compared."""
    if not found.ways:
        return
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("a training step by", "ms", "warm-up, s"):
        table.add_column(column, justify="left" if column.startswith("a") else "right")
    for way in sorted(found.ways, key=lambda way: way.step_s):
        table.add_row(way.name, f"{1000 * way.step_s:,.1f}", f"{way.warm_up_s:.1f}")
    yield ""
    yield table
    yield from (f"left out, since it failed: {escape(why)}" for why in found.failed)
    yield "kept: later runs like this one take the way that comes to their end first"


def _roofline(found: "Bench") -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("this machine")
    table.add_column("precision")
    table.add_column("median", justify="right")
    table.add_column("", no_wrap=True)
    for rate in found.roofline.rates:
        mark = "  yardstick" if rate == found.roofline.yardstick else ""
        table.add_row(
            rate.work, rate.precision, _rate(rate), f"({rate.low:.3g} to {rate.high:.3g}, n = {rate.n}){mark}"
        )
    return table


def _rate(rate: "Rate") -> str:
    return f"{rate.value:.3g} {rate.unit}"


def _speeds(found: "Bench") -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("")
    for column in ("images/s", "slowest to fastest", "steps", "TFLOP/s", "MFU"):
        table.add_column(column, justify="right")
    for name, speed in (("training", found.training), ("inference", found.inference)):
        table.add_row(name, *_row(speed))
    return table


def _row(speed: "Speed") -> Iterator[str]:
    yield f"{speed.images_per_s:,.1f}"
    yield f"{speed.low:,.1f} to {speed.high:,.1f}"
    yield str(speed.steps)
    yield f"{speed.tflops:.3g}"
    yield f"{speed.mfu:.1%}"


def _parts(found: "Bench") -> Iterator[str]:
    whole = sum(found.parts_ms.values())
    for name, milliseconds in found.parts_ms.items():
        yield f"{name} {milliseconds:,.1f} ms ({milliseconds / whole:.0%})"
