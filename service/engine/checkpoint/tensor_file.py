"""Where a safetensors file keeps its tensors, and as which of torch's types."""

from dataclasses import dataclass
from pathlib import Path

import torch

from service.delivery.disk.safetensors_header import Entry, read_header
from service.errors import ConfigurationError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Extent:
    """A tensor's type and its bytes offset <= i < offset + size of the file."""

    dtype: torch.dtype
    offset: int
    size: int


def read_extents(path: Path) -> dict[str, Extent]:
    """Every tensor of a file. Raises ConfigurationError for types that are no weights, BadHeader, OSError."""
    return {name: _extent(path, name, entry) for name, entry in read_header(path).tensors.items()}


def _extent(path: Path, name: str, entry: Entry) -> Extent:
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise ConfigurationError(f"{path}: {name} has the type {entry.dtype}, not one of {', '.join(DTYPES)}")
    return Extent(dtype, entry.offset, entry.size)
