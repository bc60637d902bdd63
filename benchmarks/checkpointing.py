"""What activation checkpointing costs and saves: training steps of resnet1202 with it and without, alternating.

    python benchmarks/checkpointing.py [--network resnet1202] [--batch-size 128] [--pairs 3] [--precision bf16]

Each of the two has a process of its own, so that the peak of its memory is its own (resident set, by the system);
both stay open, and take steps in turn. One step of each, the first, is not counted.
"""

import argparse
import multiprocessing
import os
import platform
import resource
import statistics
import time
from dataclasses import replace
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F

import skipway
from skipway.nn.zoo import find
from skipway.training.machine import keep_freed_memory


def work(pipe: Connection, options: argparse.Namespace, checkpoint: bool) -> None:
    """Take a step whenever told to; answer with its seconds and the peak of memory so far, in bytes."""
    torch.manual_seed(0)
    keep_freed_memory()  # as in training
    network = skipway.build(replace(find(options.network), checkpoint=checkpoint)).train()
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, foreach=True)
    images = torch.randn(options.batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (options.batch_size,))
    while pipe.recv():
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            logits = network(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        pipe.send((time.perf_counter() - started, peak))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet1202")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes, times, peaks = {}, {True: [], False: []}, {True: 0, False: 0}
    for checkpoint in (True, False):
        pipes[checkpoint], theirs = context.Pipe()
        context.Process(target=work, args=(theirs, options, checkpoint), daemon=True).start()
    for pair in range(1 + options.pairs):
        for checkpoint in (True, False) if pair % 2 else (False, True):
            pipes[checkpoint].send(True)
            taken, peaks[checkpoint] = pipes[checkpoint].recv()
            if pair:
                times[checkpoint].append(taken)
    for pipe in pipes.values():
        pipe.send(False)
    size = options.batch_size
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"{options.network}, {options.precision}, channels_last, batches of {size} at 32 pixels, n = {options.pairs}")
    for checkpoint, taken in times.items():
        name = "checkpointing" if checkpoint else "none"
        each = [1000 * t / size for t in taken]
        print(f"{name:<14} {statistics.median(each):7.1f} ms a sample   ({min(each):.1f} to {max(each):.1f})   "
              f"peak {peaks[checkpoint] / 2**30:.2f} GiB")  # fmt: skip
    ratios = [a / b for a, b in zip(times[True], times[False], strict=True)]
    print(f"with / without, median of {len(ratios)} pairs: {statistics.median(ratios):.3f}   "
          f"({min(ratios):.3f} to {max(ratios):.3f})")  # fmt: skip


if __name__ == "__main__":
    main()
