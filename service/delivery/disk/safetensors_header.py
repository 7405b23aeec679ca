"""The header of a safetensors file: names, types and sizes of its tensors, without reading them.

Format: 8 bytes length (little endian), that many bytes of JSON, then the data
(https://github.com/huggingface/safetensors#format).
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 100 << 20
"""The limit of the reference implementation."""


class BadHeader(ValueError):
    """Not a safetensors file, or a damaged one."""


@dataclass(frozen=True)
class Entry:
    """A tensor's type, its shape and its bytes offset <= i < offset + size of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class Header:
    """`file_bytes` is how long the file must be."""

    file_bytes: int
    tensors: dict[str, Entry]

    @property
    def elements(self) -> int:
        """All numbers in the file."""
        return sum(math.prod(entry.shape) for entry in self.tensors.values())


def read_header(path: Path) -> Header:
    """The header of the file at `path`; raises BadHeader, OSError."""
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise BadHeader("it is too short for a safetensors file")
        (length,) = struct.unpack("<Q", prefix)
        if length > MAX_HEADER_BYTES:
            raise BadHeader("it does not begin like a safetensors file")
        body = file.read(length)
    return _parse(body, length)


def _parse(body: bytes, length: int) -> Header:
    try:
        tensors = json.loads(body)
        tensors.pop("__metadata__", None)
        entries = {name: _entry(tensor, 8 + length) for name, tensor in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise BadHeader("its header is damaged") from None
    return Header(max((e.offset + e.size for e in entries.values()), default=8 + length), entries)


def _entry(tensor: dict[str, Any], data: int) -> Entry:
    first, last = map(int, tensor["data_offsets"])
    return Entry(str(tensor["dtype"]), tuple(map(int, tensor["shape"])), data + first, last - first)
