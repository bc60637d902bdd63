"""What share of the machine's arithmetic training takes (MFU), and where a step's time goes.

    python benchmarks/step_profile.py [NETWORK] [--image-size 32] [--batch-size 256] [--stem cifar] [--rounds 5]
        [--seconds 10] [--peak-tflops P] [--write]

MFU is what `skipway bench` measures, so many times: three times a forward pass's arithmetic, against the fastest that
this machine was measured at, or P. Then the same step, watched by torch.profiler (which itself costs a little), its
operators in a few groups; times of an operator are without those it calls.
"""

import argparse
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from results_page import machine, put_section, spread
from torch.profiler import ProfilerActivity, profile

from skipway.training.bench import Bench, bench
from skipway.training.machine import device_name
from skipway.training.rehearsal import asked_of, batches_of, stepper, trainer_of

GROUPS = (  # the first that matches an operator's name
    ("convolutions, backward (both gradients)", ("convolutionbackward", "convolution_backward")),
    ("convolutions, forward", ("_convolution", "conv2d", "mkldnn_convolution", "convolution")),
    (
        "norm, addition, activation, backward",
        ("normactbackward", "batch_norm_backward", "relubackward", "threshold"),
    ),
    ("norm, addition, activation, forward", ("_normact", "batch_norm", "relu", "silu", "add_")),
    ("pools", ("pool",)),
    ("conversions of precision (autocast) and copies", ("copy_", "_to_copy", "contiguous", "clone", "cat", "index")),
    ("optimizer", ("optimizer", "_foreach", "addcmul", "lerp")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", default="resnet18")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--stem", default="cifar")
    parser.add_argument("--steps", type=int, default=5, help="that are watched")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of training a round")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="0: the fastest measured")
    parser.add_argument("--write", action="store_true", help="into results.md")
    options = parser.parse_args()
    settings = {
        "data": {"image_size": options.image_size},
        "train": {"batch_size": options.batch_size},
        "network": {"stem": options.stem},
    }
    rounds: list[Bench] = []
    for _ in range(options.rounds):
        rounds.append(
            bench(
                options.network,
                seconds=options.seconds,
                peak_tflops=options.peak_tflops,
                settings=settings,
                roofline=rounds[0].roofline if rounds else None,
            )
        )
    asked = asked_of(options.network, settings, trust_code=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(asked, Path(folder))
        step = stepper(trainer, batches_of(trainer))
        for _ in range(3):
            step()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(options.steps):
                step()
        rows = {event.key: event.self_cpu_time_total / 1000 / options.steps for event in seen.key_averages()}
    section = "\n".join([*shares(rounds, options), "", *report(rows, options)])
    print(section)
    if options.write:
        where = device_name(torch.device("cpu"))
        put_section(f"## Where a step goes: {options.network} at {options.image_size} pixels, {where}", section)


def shares(rounds: Sequence[Bench], options: argparse.Namespace) -> list[str]:
    """How, then a row for training and one for inference."""
    command = f"python benchmarks/step_profile.py {options.network} --image-size {options.image_size}"
    command += f" --batch-size {options.batch_size} --stem {options.stem} --steps {options.steps}"
    command += f" --rounds {options.rounds} --seconds {options.seconds:g}"
    command += f" --peak-tflops {options.peak_tflops:g}" if options.peak_tflops else ""
    first, parts = rounds[0], [found.parts_ms for found in rounds]
    whole = statistics.median(sum(part.values()) for part in parts)
    told = ", ".join(f"{name} {statistics.median(p[name] for p in parts) / whole:.0%}" for name in first.parts_ms)
    of = "given" if first.peak == "given" else f"the fastest measured: {first.peak}"
    lines = [
        f"`{command}` ({machine()}, {first.machine['threads']} threads; n = {len(rounds)} rounds of "
        f"{options.seconds:g} s; medians, in brackets the extremes)",
        "",
        "| | images/s | TFLOP/s | MFU |",
        "|---|---|---|---|",
    ]
    for name, speeds in (("training", [r.training for r in rounds]), ("inference", [r.inference for r in rounds])):
        cells = [
            spread([s.images_per_s for s in speeds], 1),
            spread([s.tflops for s in speeds], 3),
            spread([100 * s.mfu for s in speeds], 1) + "%",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "", f"MFU: of {first.peak_tflops:.3g} TFLOP/s ({of}). A training step: {told}."]


def report(rows: dict[str, float], options: argparse.Namespace) -> list[str]:
    """A row a group, with its largest operators."""
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for name, ms in rows.items():
        plain = name.lower().replace("autograd::engine::evaluate_function: ", "")
        title = next((t for t, words in GROUPS if any(word in plain for word in words)), "all else")
        groups[title][name] = ms
    whole = sum(rows.values())
    lines = [
        f"Means of {options.steps} steps that were watched, {whole:,.0f} ms each:",
        "",
        "| | ms a step | share | of which |",
        "|---|---|---|---|",
    ]
    for title, parts in sorted(groups.items(), key=lambda pair: -sum(pair[1].values())):
        ms = sum(parts.values())
        most = sorted(parts.items(), key=lambda pair: -pair[1])[:3]
        shown = ", ".join(f"{name.rsplit(': ', 1)[-1]} {part:,.0f}" for name, part in most if part >= 0.5)
        lines.append(f"| {title} | {ms:,.0f} | {ms / whole:.0%} | {shown} |")
    return lines


if __name__ == "__main__":
    main()
