"""Draws docs/cifar10-duplicates.png: 100 test images of CIFAR-10 that `skipway doctor` says are in train too.

    SKIPWAY_DATA=FOLDER python scripts/draw_cifar10_duplicates.py

FOLDER/cifar10 holds the parquet files. 100 of the test images in the findings "leak" and "near leak" are drawn at
random (seeded, none picked), each with a train image of its group, also drawn at random.

As of the last run: 504 of 10,000 test images reported in 71 s on two cores (Barz & Denzler 2020 report 3.25%; mirrored
and recoloured copies are among ours). Of the 100 pairs drawn, 96 are by eye one photo or its mirror image; the other
four (an airliner and three silhouettes: rows 1, 5, 5 and 9, columns 1, 3, 4 and 5) may be two.
"""

import os
import time
from pathlib import Path

import numpy as np
from PIL import Image

from skipway.data.doctor.examine import doctor
from skipway.data.source import Source

SEED, ROWS, COLUMNS, SIDE, GAP = 1902, 10, 10, 48, 8  # SEED: of the paper, arXiv:1902.00423
TARGET = Path(__file__).parent.parent / "docs/cifar10-duplicates.png"


def tile(source: Source, sample: int) -> Image.Image:
    pixels = source.read(sample).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def main() -> None:
    began = time.perf_counter()
    found = doctor(Path(os.environ["SKIPWAY_DATA"]) / "cifar10")
    seconds = time.perf_counter() - began
    source = found.source
    test = set(source.splits["test"].tolist())
    partners: dict[int, list[int]] = {}
    for finding in found.findings:
        if finding.kind in ("leak", "near leak"):
            for group in finding.groups:
                members = [finding.samples[place] for place in group]
                train = [sample for sample in members if sample not in test]
                for sample in members:
                    if sample in test and train:
                        partners.setdefault(sample, []).extend(train)
    print(f"{len(partners):,} of {len(test):,} test images have a copy in train; {seconds:.0f} s")
    rng = np.random.default_rng(SEED)
    page = Image.new("RGB", (COLUMNS * (2 * SIDE + 1 + GAP) - GAP, ROWS * (SIDE + GAP) - GAP), "white")
    for place, sample in enumerate(rng.choice(sorted(partners), ROWS * COLUMNS, replace=False).tolist()):
        row, column = divmod(place, COLUMNS)
        other = int(rng.choice(partners[sample]))
        for half, index in enumerate((sample, other)):
            page.paste(tile(source, index), (column * (2 * SIDE + 1 + GAP) + half * (SIDE + 1), row * (SIDE + GAP)))
    page.quantize(256).save(TARGET, optimize=True)
    print(f"{TARGET}: {TARGET.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
