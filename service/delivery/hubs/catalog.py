"""What a hub says a repository holds, judged before a byte of it is fetched.

The hub is not trusted: a listing with a name that could leave the directory, collide with another or hide among our
own files is refused whole, because nothing else such a hub says deserves belief.
"""

import fnmatch
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from service.delivery.failures import Cause, DeliveryFailed

WANTED = (
    "*.json",
    "*.safetensors",
    "*.model",
    "*.jinja",
    "merges.txt",
    "vocab.txt",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
)
"""Weights, tokenizer, configuration and licence. Never code (*.py), never pickles (*.bin, *.pt)."""

MAX_ENTRIES = 2000
"""Below the 3,000 at which ModelScope cuts a listing short without saying so; a chat model has dozens."""

MAX_FILE_BYTES = 1 << 40
RESERVED_PREFIX = ".internlm-"
PARTIAL_SUFFIX = ".incomplete"
_MAX_NAME_BYTES = 255 - len(PARTIAL_SUFFIX)
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class RemoteFile:
    """One file as the hub lists it. `git_oid` is the SHA-1 of a git blob, `version` the hub's name for this content."""

    path: str
    size: int
    sha256: str | None = None
    git_oid: str | None = None
    version: str | None = None

    @property
    def identity(self) -> str:
        """Equal for equal content, as far as the hub tells."""
        return f"{self.size}:{self.sha256}:{self.git_oid}:{self.version}"

    @property
    def checkable(self) -> bool:
        """Does the listing say what the bytes must hash to?"""
        return bool(self.sha256 or self.git_oid)


@dataclass(frozen=True)
class Catalog:
    """The wanted files of a repository at one moment. `commit` is what the revision meant then, if the hub says."""

    files: tuple[RemoteFile, ...]
    commit: str | None = None

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


def read_listing(entries: Iterable[Mapping[str, Any]], commit: str | None) -> Catalog:
    """The catalog of a hub's listing (`path`, `size`, `sha256`, `git_oid`, `version` each).

    Raises DeliveryFailed for a listing nobody should follow, and for a repository that holds no model.
    """
    entries = list(entries)
    if len(entries) > MAX_ENTRIES:
        raise _refused(f"it has {len(entries)} entries, a model at most {MAX_ENTRIES}")
    for entry in entries:
        check_name(entry.get("path"))
    files = [_read_entry(entry) for entry in entries if is_wanted(entry["path"])]
    _check_collisions(files)
    names = {file.path for file in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise _refused("it has no config.json or no *.safetensors, so it is no model this service can serve")
    return Catalog(tuple(sorted(files, key=lambda file: file.path)), commit)


def is_wanted(path: str) -> bool:
    """Top-level files the service reads; a repository's folders hold other formats of the same weights."""
    return "/" not in path and any(fnmatch.fnmatchcase(path, pattern) for pattern in WANTED)


def check_name(path: object) -> str:
    """`path` if it can be joined to a directory without leaving it; raises DeliveryFailed."""
    if not isinstance(path, str) or not path or not path.isprintable() or "\\" in path:
        raise _refused(f"it names a file {_shown(path)}")
    parts = path.split("/")
    if any(part in ("", ".", "..") or len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        raise _refused(f"it names a file {_shown(path)}")
    if any(part.casefold().startswith(RESERVED_PREFIX) for part in parts):
        raise _refused(f"it names a file {_shown(path)}, a name reserved for the download itself")
    return path


def _read_entry(entry: Mapping[str, Any]) -> RemoteFile:
    path, size = str(entry["path"]), entry.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_FILE_BYTES:
        raise _refused(f"{path} is said to have {_shown(size)} bytes")
    return RemoteFile(
        path=path,
        size=size,
        sha256=_hexadecimal(entry.get("sha256"), 64, path),
        git_oid=_hexadecimal(entry.get("git_oid"), 40, path),
        version=str(entry["version"]) if entry.get("version") else None,
    )


def _hexadecimal(value: object, length: int, path: str) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) != length or not _HEX.issuperset(value.lower()):
        raise _refused(f"{path} is said to have the hash {_shown(value)}")
    return value.lower()


def _check_collisions(files: Iterable[RemoteFile]) -> None:
    """Names that one file system keeps apart and another does not (case, Unicode normal forms) are refused on all."""
    folded = Counter(unicodedata.normalize("NFKC", file.path).casefold() for file in files)
    if twins := [name for name, count in folded.items() if count > 1]:
        raise _refused(f"it names {_shown(twins[0])} more than once (upper and lower case count as equal)")


def _shown(value: object) -> str:
    return ascii(value)[:80]


def _refused(reason: str) -> DeliveryFailed:
    return DeliveryFailed(Cause.BAD_LISTING, f"the hub's listing is refused: {reason}")
