"""Parquet files in the layout of the Hugging Face hub: a column of {bytes, path} images, a column of labels."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from skipway.data.files import BytesFiles, FileSource, file_source
from skipway.data.layout import SPLIT_NAMES
from skipway.data.source import ArraySource, Source, consecutive
from skipway.data_spec import DataSpec
from skipway.errors import InputError, ReadError

if TYPE_CHECKING:
    import pyarrow as pa

IN_MEMORY = 2 << 30  # bytes of pixels up to which images that are all alike are decoded once and kept


def open_parquet(folder: Path, spec: DataSpec) -> Source:
    """Open a folder of `train-*.parquet`, `validation-*.parquet`, `test-*.parquet` (also below `data/`).

    Images that are all of one size and fit into 2 GiB are decoded now and live in memory; others stream.

    Args:
        folder: where the files lie.
        spec: how to read, and whether a bad image stops.

    Raises:
        InputError: pyarrow is missing, or the files hold no images and labels.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError("reading parquet files needs pyarrow: pip install 'skipway[parquet]'") from error
    files = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
    parts: dict[str, list[Path]] = {}
    for file in files:
        words = [SPLIT_NAMES[word] for word in re.split(r"[-_.]", file.stem.lower()) if word in SPLIT_NAMES]
        parts.setdefault(words[0] if words else "train", []).append(file)
    blobs: list[bytes] = []
    raw: list[Any] = []
    counts: dict[str, int] = {}
    classes: tuple[str, ...] = ()
    for split, names in parts.items():
        before = len(raw)
        for file in names:
            try:
                table = pq.read_table(file)
            except (OSError, ValueError) as error:
                raise InputError(f"{file} is not a parquet file: {error}") from error
            image_column, label_column, named = _columns(table.schema, file)
            classes = classes or named
            blobs += [(value or {}).get("bytes") or b"" for value in table.column(image_column).to_pylist()]
            raw += table.column(label_column).to_pylist()
        counts[split] = len(raw) - before
    if not raw:
        raise InputError(f"the parquet files in {folder} hold no rows")
    if len({type(value) for value in raw}) > 1:
        raise InputError(f"labels in {folder} are missing in places, or of different types")
    classes = classes or tuple(str(value) for value in sorted(set(raw)))
    where = {value: i for i, value in enumerate(sorted(set(raw)))} if isinstance(raw[0], str) else {}
    labels = torch.tensor([where.get(value, value) for value in raw])
    if labels.min() < 0 or labels.max() >= len(classes):
        raise InputError(f"labels in {folder} must lie in 0 ... {len(classes) - 1}; some do not")
    files = BytesFiles.of(blobs, folder.name)
    return _into_memory(file_source(files, labels, classes, consecutive(counts), spec))


def open_saved(folder: Path, spec: DataSpec) -> Source:
    """Open a data set that the `datasets` library saved to disk."""
    raise NotImplementedError


def _columns(schema: "pa.Schema", file: Path) -> tuple[str, str, tuple[str, ...]]:
    """The image column, the label column, and the class names if the file's metadata has them."""
    import pyarrow as pa

    image = label = ""
    for column in schema:
        if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0 and not image:
            image = column.name
        elif (pa.types.is_integer(column.type) or pa.types.is_string(column.type)) and (
            not label or column.name == "label"
        ):
            label = column.name
    if not image or not label:
        raise InputError(f"{file} needs a column of images ({{bytes, path}}) and one of labels; it has {schema.names}")
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get(label, {}).get("names") or features.get(label, {}).get("feature", {}).get("names") or ()
    return image, label, tuple(names)


def _only(good: Tensor, splits: dict[str, Tensor]) -> dict[str, Tensor]:
    """The splits without the samples that are not good, and without splits that are left empty."""
    kept = {split: indices[good[indices]] for split, indices in splits.items()}
    return {split: indices for split, indices in kept.items() if len(indices)}


def _into_memory(source: FileSource) -> Source:
    """The same set as one tensor, where all images are alike and small enough in sum; else as it is."""
    if source.size is None or source.deep or len(source) * 3 * source.size[0] * source.size[1] > IN_MEMORY:
        return source
    images = torch.zeros(len(source), 3, *source.size, dtype=torch.uint8)
    good = torch.zeros(len(source), dtype=torch.bool)
    for index in torch.cat(list(source.splits.values())).tolist():
        try:
            images[index] = source.read(index)
            good[index] = True
        except ReadError as error:
            source.bad[error.name] = error.reason
    splits = _only(good, source.splits)
    return ArraySource(images, source.labels, source.classes, splits, source.name(0)[:-3], source.bad)
