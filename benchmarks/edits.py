"""How long an edit takes to answer: each block of a network cut in turn, a subset of images scored again.

    python benchmarks/edits.py DATA [--network resnet56] [--images 1000] [--rounds 3] [--write]

What comes before an edit is computed once and kept (insight/prefix.py), so late blocks answer sooner than early ones;
the last column is a whole pass, as without. Weights are fresh: they do not change how long it takes.
"""

import argparse
import statistics
import time

import torch
from results_page import machine, put_section

from skipway.insight.edits import Edit
from skipway.insight.prefix import Prefix
from skipway.insight.probe import Probe
from skipway.insight.subject import subject_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--network", default="resnet56")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into results.md")
    options = parser.parse_args()
    subject = subject_of(options.network, options.data, num_images=options.images)
    images = subject.seen.inputs
    with Probe(subject.network, images) as probe, torch.no_grad():
        started = time.perf_counter()
        kept = Prefix(probe, images)
        filled = time.perf_counter() - started
        taken = []
        for _ in range(options.rounds):
            for unit in probe.units:
                started = time.perf_counter()
                kept.score([Edit("block", unit.name)])
                taken.append(time.perf_counter() - started)
        whole = []
        for _ in range(options.rounds):
            started = time.perf_counter()
            for batch in images.split(250):
                probe.run(batch)
            whole.append(time.perf_counter() - started)
    command = f"python benchmarks/edits.py DATA --network {options.network} --images {options.images}"
    lines = [
        f"`{command} --rounds {options.rounds}` ({machine()}; {len(images):,} images of {images.shape[-1]} pixels)",
        "",
        "| edits | median, s | fastest | slowest | a whole pass, s | first pass, s | inputs kept |",
        "|---|---|---|---|---|---|---|",
        f"| {len(taken)} | {statistics.median(taken):.2f} | {min(taken):.2f} | {max(taken):.2f} | "
        f"{statistics.median(whole):.2f} | {filled:.2f} | {len(kept.kept)} of {len(probe.names)} blocks |",
    ]
    print("\n".join(lines))
    if options.write:
        put_section(f"## How soon an edit answers: {options.network}", "\n".join(lines))


if __name__ == "__main__":
    main()
