"""Arrow's columns as ours: labels by distinct values, encoded images where Arrow holds them, without a copy.

pyarrow is imported when it is needed; `need_pyarrow` says how to get it.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skipway.data.sources.columns import Cells, Column, column_of, declare
from skipway.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 256  # read at a time: images of 8 MB each then stay below the 2 GiB that Arrow's offsets can say


def need_pyarrow() -> None:
    """Raises InputError where pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise InputError("reading parquet and Arrow files needs pyarrow: pip install 'skipway[parquet]'") from error


@dataclass(frozen=True)
class Part:
    """One table of a set.

    Args:
        split: train, val or test; "" where it does not say.
        path: what to call it.
        schema: its columns.
        features: what the `datasets` library notes of them: name -> {"_type": ..., "names": ...}.
        batches: reads some columns, part by part.
    """

    split: str
    path: Path
    schema: "pa.Schema"
    features: dict[str, Any]
    batches: Callable[[list[str]], Iterable["pa.RecordBatch"]]

    def column(self, name: str) -> Column:
        """One column, of labels or the like. Raises InputError."""
        import pyarrow as pa

        kind = self.schema.field(name).type
        title = self.path.name
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        chunks = (batch.column(0) for batch in self.batches([name]))
        try:
            if is_list(kind):
                column = column_of(name, title, (cell for chunk in chunks for cell in chunk.to_pylist()))
            else:
                column = _by_value(name, title, chunks)
        except UnicodeDecodeError as error:
            raise InputError(f"column '{name}' of {self.path} holds text that is not UTF-8") from error
        names = class_names(self.features.get(name))
        return declare(column, names) if names else column


def _by_value(name: str, title: str, chunks: Iterable["pa.Array"]) -> Column:
    """A column of single values."""
    import pyarrow as pa

    cells, codes = Cells(name, title), [np.zeros(0, np.int64)]
    for chunk in chunks:
        by_value = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        table = np.array([*map(cells.code, by_value.dictionary.to_pylist()), -1], np.int64)
        codes.append(table[by_value.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)])
    return Column(name, title, np.concatenate(codes), cells.values)


def class_names(feature: Any) -> tuple[str, ...]:
    """The names that the `datasets` library declares for a column of class numbers, or of lists of them."""
    while True:
        if isinstance(feature, list) and len(feature) == 1:  # its older way to write a list
            feature = feature[0]
        elif isinstance(feature, dict) and isinstance(feature.get("feature"), (dict, list)):
            feature = feature["feature"]
        else:
            names = feature.get("names") if isinstance(feature, dict) else None
            return tuple(names) if isinstance(names, list) and all(isinstance(n, str) for n in names) else ()


def is_list(kind: "pa.DataType") -> bool:
    """Whether cells hold several values."""
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def holds_labels(kind: "pa.DataType") -> bool:
    """Whether cells may be labels: text, numbers, true and false, or lists of those."""
    import pyarrow as pa

    if is_list(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    types = pa.types
    return is_text(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def is_text(kind: "pa.DataType") -> bool:
    """Whether cells hold text."""
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_bytes(kind: "pa.DataType") -> bool:
    """Whether cells hold bytes, as they are or as {bytes, path}."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and is_bytes(kind.field(place).type)
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


@dataclass(frozen=True)
class ArrowFiles:
    """Encoded images in buffers of Arrow, in memory or mapped; implements Files.

    Args:
        parts: (bytes uint8, ends of (n + 1,) int32 or int64: image i lies between the i-th and the next).
        starts: (parts + 1,) int64, the number of the first image of each part, and of all.
        title: images are called "title[index]".
        fingerprint: as in Files.
    """

    parts: list[tuple[np.ndarray, np.ndarray]]
    starts: np.ndarray
    title: str
    fingerprint: str = ""

    @staticmethod
    def of(chunks: Iterable["pa.Array"], title: str, fingerprint: str = "") -> "ArrowFiles":
        """From arrays of bytes or {bytes, path}; a cell without bytes is an image of none."""
        parts = [_buffers(chunk) for chunk in chunks if len(chunk)]
        starts = np.cumsum([0, *(len(ends) - 1 for _, ends in parts)])
        return ArrowFiles(parts, starts, title, fingerprint)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def name(self, index: int) -> str:
        """`title[index]`."""
        return f"{self.title}[{index}]"

    def get(self, index: int) -> bytes:
        """The bytes."""
        part = int(np.searchsorted(self.starts, index, "right")) - 1
        blob, ends = self.parts[part]
        place = index - int(self.starts[part])
        return blob[int(ends[place]) : int(ends[place + 1])].tobytes()


def _buffers(chunk: "pa.Array") -> tuple[np.ndarray, np.ndarray]:
    """The bytes of an array and where each cell begins, and the last ends."""
    import pyarrow as pa

    if pa.types.is_struct(chunk.type):
        chunk = chunk.flatten()[chunk.type.get_field_index("bytes")]
    if not (pa.types.is_binary(chunk.type) or pa.types.is_large_binary(chunk.type)):
        chunk = chunk.cast(pa.large_binary())
    if chunk.null_count:
        chunk = chunk.fill_null(b"")
    _, offsets, data = chunk.buffers()
    dtype = np.int64 if pa.types.is_large_binary(chunk.type) else np.int32
    ends = np.frombuffer(offsets, dtype)[chunk.offset : chunk.offset + len(chunk) + 1]
    return np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8), ends


def parquet_part(file: Path, split: str) -> Part:
    """A parquet file. Raises InputError where it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def fault(error: Exception) -> InputError:
        return InputError(f"{file} is not a parquet file, or is damaged: {' '.join(str(error).split())[:200]}")

    def batches(names: list[str]) -> Iterable["pa.RecordBatch"]:
        try:
            with pq.ParquetFile(file) as opened:
                rows = ROWS if any(is_bytes(schema.field(name).type) for name in names) else 1 << 16
                yield from opened.iter_batches(rows, columns=names)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise fault(error) from error

    try:
        schema = pq.read_schema(file)
        _ = schema.names  # raises where they are no text
    except (OSError, ValueError, pa.ArrowException) as error:
        raise fault(error) from error
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        features = {}
    return Part(split, file, schema, features if isinstance(features, dict) else {}, batches)


def stream_part(file: Path, split: str, features: dict[str, Any]) -> Part:
    """An Arrow stream file, mapped. Raises InputError where it is none."""
    import pyarrow as pa

    def read(names: list[str] | None) -> tuple["pa.Schema", list["pa.RecordBatch"]]:
        try:
            with pa.memory_map(str(file)) as opened, pa.ipc.open_stream(opened) as reader:
                _ = reader.schema.names  # raises where they are no text
                batches = [batch.select(names) for batch in reader] if names is not None else []
                for batch in batches:
                    batch.validate(full=True)  # Arrow ends the process where lengths in a damaged file are wrong
                return reader.schema, batches
        except (OSError, ValueError, pa.ArrowException) as error:
            text = " ".join(str(error).split())[:200]
            raise InputError(f"{file} is not an Arrow stream file, or is damaged: {text}") from error

    return Part(split, file, read(None)[0], features, lambda names: read(names)[1])
