"""Makes src/skipway/data/fashion-sample.npz: 10,000 + 2,000 Fashion-MNIST images, as many of each class.

    python scripts/make_fashion_sample.py [FOLDER]

FOLDER holds the four idx files (default: Debian's package dataset-fashion-mnist). The choice is seeded, so the
same files give the same sample.
"""

import sys
from pathlib import Path

import numpy as np

from skipway.data.builtin import DEBIAN_FASHION, read_idx

SEED, TRAIN_PER_CLASS, TEST_PER_CLASS = 2017, 1000, 200
TARGET = Path(__file__).parent.parent / "src/skipway/data/fashion-sample.npz"


def choose(folder: Path, prefix: str, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    rng = np.random.default_rng(SEED)
    chosen = np.concatenate([rng.choice(np.flatnonzero(labels == k), per_class, replace=False) for k in range(10)])
    chosen.sort()  # in the original's order, which is already mixed
    return images[chosen], labels[chosen]


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEBIAN_FASHION
    train_images, train_labels = choose(folder, "train", TRAIN_PER_CLASS)
    test_images, test_labels = choose(folder, "t10k", TEST_PER_CLASS)
    np.savez_compressed(
        TARGET,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
    )
    print(f"{TARGET}: {len(train_images):,} + {len(test_images):,} images, {TARGET.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
