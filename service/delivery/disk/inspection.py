"""Is what the manifest lists still what lies in the directory? In milliseconds, or thoroughly.

Quick: every size and modification time, and the hash of the small files. A file with another modification time is
hashed once; equal content (a restored volume) only moves the recorded time. Thorough: the hash of everything.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from service.delivery.disk.hashing import Digests, hash_files
from service.delivery.manifest import FileRecord, Manifest

log = logging.getLogger(__name__)

SECOND_NS = 1_000_000_000
SMALL_BYTES = 8 << 20
"""Configuration and tokenizer: hashed at every start. A wrong one gives wrong answers without any error."""


@dataclass(frozen=True)
class Damage:
    """A file under a manifest that is not what the manifest says."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


@dataclass(frozen=True)
class Inspection:
    """What was found. `mtimes` are new modification times of files whose content is unchanged."""

    damages: tuple[Damage, ...]
    mtimes: dict[str, int]

    @property
    def sound(self) -> bool:
        return not self.damages


@dataclass(frozen=True)
class Survey:
    """The first look at a directory: what is damaged at sight, and which files have to be read, each with its new
    modification time if it has one."""

    damages: tuple[Damage, ...]
    suspects: dict[Path, tuple[FileRecord, int | None]]

    @property
    def bytes_to_hash(self) -> int:
        return sum(record.size for record, _ in self.suspects.values())

    @property
    def takes_long(self) -> bool:
        """Whether more is to be read than the small files, which are read at every start."""
        return any(record.size > SMALL_BYTES for record, _ in self.suspects.values())

    def conclude(self, on_bytes: Callable[[int], None] | None = None) -> Inspection:
        """Hash the suspects; `on_bytes` is told how many bytes have been read in all."""
        hashes = hash_files(dict.fromkeys(self.suspects, False), on_bytes)
        damages, mtimes = list(self.damages), {}
        for path, (record, moved) in self.suspects.items():
            if complaint := _compare(hashes[path], record):
                damages.append(Damage(record.path, complaint))
            elif moved is not None:
                mtimes[record.path] = moved
        return Inspection(tuple(damages), mtimes)


def inspect(
    model_dir: Path, manifest: Manifest, *, thorough: bool = False, on_bytes: Callable[[int], None] | None = None
) -> Inspection:
    """Compare the directory with its manifest; never raises for what it finds there."""
    return survey(model_dir, manifest, thorough=thorough).conclude(on_bytes)


def survey(model_dir: Path, manifest: Manifest, *, thorough: bool = False, whole_seconds: bool = False) -> Survey:
    """The first look; never raises for what it finds there.

    `whole_seconds`: a file counts as unchanged, too, if its time is the recorded one without the fraction of a second,
    as the layers of an image and `kubectl cp` keep it. For those who cannot record the time that they find.
    """
    damages, suspects = [], {}
    for record in manifest.files:
        complaint, moved = _look(model_dir / record.path, record)
        if moved is not None and whole_seconds and moved == record.mtime_ns // SECOND_NS * SECOND_NS:
            moved = None
        if complaint:
            damages.append(Damage(record.path, complaint))
        elif thorough or moved is not None or record.size <= SMALL_BYTES:
            suspects[model_dir / record.path] = (record, moved)
    return Survey(tuple(damages), suspects)


def _look(path: Path, record: FileRecord) -> tuple[str | None, int | None]:
    """What is wrong with a file at first sight, and its modification time if that differs from the record's."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return "is missing", None
    except OSError as error:
        return f"cannot be read ({error.strerror})", None
    if not path.is_file():
        return "is not a file", None
    if found.st_size != record.size:
        return f"has {found.st_size:,} of {record.size:,} bytes", None
    return None, None if found.st_mtime_ns == record.mtime_ns else found.st_mtime_ns


def _compare(found: Digests | OSError, record: FileRecord) -> str | None:
    if isinstance(found, OSError):
        return f"cannot be read ({found.strerror})"
    return None if found.sha256 == record.sha256 else "has other bytes than it had when it was verified"
