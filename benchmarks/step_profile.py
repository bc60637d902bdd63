"""Where a training step's time goes: its operators in a few groups.

    python benchmarks/step_profile.py [NETWORK] [--image-size 32] [--batch-size 256] [--stem cifar] [--write]

The run's own step on random images, watched by torch.profiler (which itself costs a little); times of an operator are
without those it calls.
"""

import argparse
import dataclasses
import os
import platform
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from results_page import put_section
from torch.profiler import ProfilerActivity, profile

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
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="into results.md")
    options = parser.parse_args()
    settings = {
        "data": {"image_size": options.image_size},
        "train": {"batch_size": options.batch_size},
        "network": {"stem": options.stem},
    }
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
        engine = dataclasses.asdict(trainer.learner.engine)
    section = "\n".join(report(rows, options, engine))
    print(section)
    if options.write:
        put_section(f"## Where a step goes: {options.network} at {options.image_size} pixels", section)


def report(rows: dict[str, float], options: argparse.Namespace, engine: dict) -> list[str]:
    """A row a group, with its largest operators."""
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for name, ms in rows.items():
        plain = name.lower().replace("autograd::engine::evaluate_function: ", "")
        title = next((t for t, words in GROUPS if any(word in plain for word in words)), "all else")
        groups[title][name] = ms
    whole = sum(rows.values())
    command = f"python benchmarks/step_profile.py {options.network} --image-size {options.image_size}"
    command += f" --batch-size {options.batch_size} --stem {options.stem} --steps {options.steps}"
    lines = [
        f"`{command}` ({device_name(torch.device('cpu'))}, {os.cpu_count()} cores, {engine['threads']} threads, torch "
        f"{torch.__version__}, Python {platform.python_version()}; means of {options.steps} steps: {whole:,.0f} ms)",
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
