"""Images and their changes as data: which images, read how, split how, augmented how. Checked where it is made."""

import re
from dataclasses import dataclass
from typing import Literal

from skipway.errors import InputError
from skipway.fields import check, option, shown

WINDOW = re.compile(r"auto|full|(-?\d+(\.\d+)?)/(\d+(\.\d+)?)")
FRAME = re.compile(r"first|middle|last|\d{1,9}")


@dataclass(frozen=True)
class DataSpec:
    """Which images, at which size, split how."""

    path: str = option(
        "", "a built-in set, torchvision:NAME, a folder, table (.csv .tsv .jsonl .parquet), .npz, archive or shards"
    )
    image_size: int = option(
        0,
        "pixels a side; 0: the images' own where all are alike and at most 64 pixels, else 224",
        low=0,
        high=4096,
    )
    test_size: int = option(
        0,
        "pixels a side at which the network is scored and used, where that is not image_size (FixRes)",
        low=0,
        high=4096,
    )
    fit: Literal["crop", "pad", "squash"] = option(
        "crop", "to a square by cropping the middle, padding with black, or changing the shape"
    )
    normalisation: Literal["auto", "train", "imagenet"] = option(
        "auto", "mean and deviation: measured on train, ImageNet's; auto: those of the given weights, else train's"
    )
    label: tuple[str, ...] = option((), "tables: the label column, or several columns of 0 and 1 (multi-label)")
    image: str = option("", "tables: the column of image paths; default: the first that names files")
    separator: str = option("", "tables: text between several labels of one cell (multi-label), such as '|'")
    group: str = option(
        "", "keep a group (a patient, say) on one side of the split: a table's column, or a pattern on file names "
        "with one bracket, such as 'patient(\\d+)'"
    )  # fmt: skip
    val_fraction: float = option(
        0.1, "share of train held out where the data has no validation split", low=0.001, high=0.9
    )
    split_seed: int = option(0, "seed of that split", low=0, high=2**62)
    folds: int = option(0, "k-fold: hold out one of so many equal parts instead; 0: off", low=0, high=1000)
    fold: int = option(0, "k-fold: which part is held out, counted from 0", low=0, high=999)
    split_file: str = option("", "take the split from a run's split.csv")
    exclude: str = option("", "a file of names to leave out, such as doctor --fix-list writes")
    bad_files: Literal["skip", "replace", "stop"] = option(
        "skip", "images that cannot be read: leave out, put another of the class in their place in each batch, or stop"
    )
    window: str = option("auto", "DICOM and NIfTI: CENTER/WIDTH of the values seen, full, or auto (the file's own)")
    frame: str = option("middle", "DICOM and NIfTI of several frames or slices: first, middle, last or a number")
    slice_axis: Literal["axial", "coronal", "sagittal"] = option("axial", "NIfTI volumes: the direction of slices")
    cache: Literal["ask", "on", "off"] = option(
        "ask", "decode once into a file in $SKIPWAY_CACHE; ask: on a terminal, where it does not fit into memory"
    )
    workers: int = option(
        -1, "processes that read image files; -1: as many as there are cores, 8 at most; 0: none, unbounded", low=-1
    )

    def __post_init__(self) -> None:
        check(self, "data")
        if not WINDOW.fullmatch(self.window) or self.window.endswith(("/0", "/0.0")):
            raise InputError(f"data.window must be auto, full or CENTER/WIDTH such as 40/400, got {shown(self.window)}")
        if not FRAME.fullmatch(self.frame):
            raise InputError(f"data.frame must be first, middle, last or a number from 0, got {shown(self.frame)}")
        if self.split_file and (self.folds or self.group):
            other = "folds" if self.folds else "group"
            raise InputError(f"data.split_file brings a whole split of its own; it does not go with data.{other}")
        if self.folds == 1 or self.fold >= max(self.folds, 1):
            raise InputError(f"data.fold must be below data.folds (2 or more), got fold {self.fold} of {self.folds}")


@dataclass(frozen=True)
class AugmentSpec:
    """Changes to training images, drawn for each sample from (seed, epoch, index)."""

    flip: bool = option(True, "mirror half of the images")
    flip_mode: Literal["random", "alternate"] = option(
        "random", "which half: drawn anew each epoch, or drawn once and then alternating"
    )
    pad_crop: float = option(
        0.125, "pad by this share of the size, then crop at random: 0.125 is 4 of 32 pixels", low=0, high=0.5
    )
    pad_mode: Literal["zero", "reflect"] = option("zero", "what pad-crop pads with")
    random_resized_crop: float = option(
        0.0, "crop a random rectangle of at least this share of the area, in place of pad-crop; 0: off", low=0, high=1
    )
    randaugment: int = option(0, "RandAugment: operations an image; 0: off", low=0, high=8)
    randaugment_magnitude: int = option(9, "RandAugment: strength", low=0, high=30)
    trivialaugment: bool = option(False, "TrivialAugment: one operation of random strength")
    color_jitter: float = option(
        0.0, "brightness, contrast and saturation changed by up to this share; 0: off", low=0, high=1
    )
    transforms: tuple[str, ...] = option(
        (), "transforms of torchvision.transforms.v2, image by image, such as 'GaussianBlur(kernel_size=3)'"
    )
    mixup: float = option(0.0, "mixup: alpha of the Beta distribution; 0: off", low=0)
    cutmix: float = option(0.0, "cutmix: alpha of the Beta distribution; 0: off", low=0)
    erasing_rate: float = option(0.0, "share of images with a rectangle erased", low=0, high=1)
    cutout: float = option(0.0, "side of a square erased in every image, as a share of the size; 0: off", low=0, high=1)

    def __post_init__(self) -> None:
        check(self, "augment")
