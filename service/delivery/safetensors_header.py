"""The header of a safetensors file: names, types and sizes of its tensors, without reading them.

Format: 8 bytes length (little endian), that many bytes of JSON, then the data
(https://github.com/huggingface/safetensors#format).
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

MAX_HEADER_BYTES = 100 << 20
"""The limit of the reference implementation."""


class BadHeader(ValueError):
    """Not a safetensors file, or a damaged one."""


@dataclass(frozen=True)
class Header:
    """`file_bytes` is how long the file must be; `elements` counts all numbers in it."""

    file_bytes: int
    data_bytes: int
    elements: int
    tensors: int


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
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        elements = sum(math.prod(tensor["shape"]) for tensor in tensors.values())
        return Header(8 + length + int(end), int(end), int(elements), len(tensors))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise BadHeader("its header is damaged") from None
