"""Where a safetensors file keeps its tensors (https://github.com/huggingface/safetensors#format)."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import torch

from service.errors import ConfigurationError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Extent:
    """A tensor's type and its bytes offset <= i < offset + size of the file."""

    dtype: torch.dtype
    offset: int
    size: int


def read_extents(path: Path) -> dict[str, Extent]:
    """Every tensor of a file whose header was found sound; raises ConfigurationError for types that are no weights."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: _extent(path, name, entry, 8 + length) for name, entry in header.items()}


def _extent(path: Path, name: str, entry: dict[str, object], data: int) -> Extent:
    first, last = entry["data_offsets"]  # type: ignore[misc]
    dtype = DTYPES.get(str(entry["dtype"]))
    if dtype is None:
        raise ConfigurationError(f"{path}: {name} has the type {entry['dtype']}, not one of {', '.join(DTYPES)}")
    return Extent(dtype, data + first, last - first)  # type: ignore[has-type]
