"""State dicts from files. safetensors first; a .pth or .th file is a pickle, opened by torch's weights-only reader,
which refuses anything but tensors.
"""

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from skipway.errors import InputError

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# Under which checkpoints keep their weights; the first one found counts.
_WRAPPERS = [
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "params",
    "weights",
    "state_dict_ema",
    "model_ema",
]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file. Raises InputError."""
    if not path.is_file():
        raise InputError(f"no such weights file or run folder: {path}")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}") from error


def safetensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The content of a safetensors file, piece by piece: nothing is copied, and other threads go on meanwhile.

    The library's own writer copies everything and holds Python's lock: writing a resnet18 and its momentum kept a
    training loop waiting for a seventh of a second.

    Args:
        tensors: on the CPU, dense.
        metadata: kept beside them.

    Raises:
        KeyError: of a type that the format does not know.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    order = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))  # so that each is aligned
    start = 0
    for key in order:
        tensor = tensors[key]
        end = start + tensor.nbytes
        header[key] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for key in order:
        yield tensors[key].reshape(-1).view(torch.uint8).numpy().data


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file. Raises InputError."""
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; its tensors stay where they are. Raises InputError."""
    with _opened(path) as file:
        return file.metadata() or {}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth, .pt or .th file, with what checkpoints wrap around them taken off.

    Args:
        path: the file.

    Returns:
        Name -> tensor, on the CPU.

    Raises:
        InputError: no such file, damaged, no tensors in it, or a pickle that holds more than tensors.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        found: Any = read_safetensors(path)[0]
    else:
        if not path.is_file():
            raise InputError(f"no such weights file: {path}")
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle raises anything
            if "global" in str(error).lower() and isinstance(error, pickle.UnpicklingError):
                raise InputError(
                    f"{path} is refused: it is a pickle that holds more than tensors, and opening it could run code. "
                    "Save its state dict alone as safetensors"
                ) from error
            raise InputError(f"{path} cannot be read as weights: it is empty, damaged or no weights file") from error
    return _unwrap(found, path)


def _unwrap(found: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside a checkpoint."""
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    state = {str(k): v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not state:
        raise InputError(f"{path} holds no weights: there must be a state dict, alone or under 'state_dict'")
    return state
