"""The record that a model directory is complete: written last, atomically, and read first at every start.

`.internlm-manifest.json` lists every file with size, SHA-256 and modification time, and says where they came from.
Its digest names the content alone, whatever hub, revision or moment it was fetched at.
"""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from service.delivery.disk.durable import write_atomically
from service.delivery.hubs.catalog import RESERVED_PREFIX

log = logging.getLogger(__name__)

NAME = f"{RESERVED_PREFIX}manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class FileRecord:
    """One file of the model. `listed` says whether the hub had named the hash, or it was taken on arrival."""

    path: str
    size: int
    sha256: str
    mtime_ns: int
    listed: bool


@dataclass(frozen=True)
class Manifest:
    """All files of a complete model, and where they came from. `time` is UTC, ISO 8601."""

    source: str
    repo: str
    revision: str
    commit: str | None
    time: str
    tool: str
    files: tuple[FileRecord, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over `sha256 size path` of every file, sorted by path: the model's name by value."""
        lines = (f"{f.sha256} {f.size} {f.path}\n" for f in sorted(self.files, key=lambda f: f.path))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def unlisted(self) -> list[str]:
        """Files whose hash the hub did not name: they are what arrived, nobody knows what was meant."""
        return [file.path for file in self.files if not file.listed]

    def is_of(self, source: str, repo: str, revision: str) -> bool:
        """Was it fetched from there?"""
        return (self.source, self.repo, self.revision) == (source, repo, revision)

    def with_times(self, mtimes: dict[str, int]) -> Self:
        """The same content with other modification times, e.g. after the volume was restored from a copy."""
        files = (replace(f, mtime_ns=mtimes.get(f.path, f.mtime_ns)) for f in self.files)
        return replace(self, files=tuple(files))

    def write(self, model_dir: Path) -> None:
        """Put it in place so that a crash leaves the old one or the new one, never a half."""
        body = {"format": FORMAT, "digest": self.digest, **asdict(self)}
        write_atomically(model_dir / NAME, json.dumps(body, indent=1, ensure_ascii=False) + "\n")


def read(model_dir: Path) -> Manifest | None:
    """The manifest of `model_dir`; None if there is none, or none that can be believed."""
    try:
        return _parse(json.loads((model_dir / NAME).read_text("utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("the manifest in %s is damaged and is ignored: %s", model_dir, error)
        return None


def discard(model_dir: Path) -> None:
    """From here on the directory counts as incomplete: called before the first file under a manifest changes."""
    (model_dir / NAME).unlink(missing_ok=True)


def _parse(body: dict[str, Any]) -> Manifest:
    if body.pop("format") != FORMAT:
        raise ValueError("another format")
    digest = body.pop("digest")
    files = tuple(FileRecord(**record) for record in body.pop("files"))
    if any(Path(f.path).name != f.path or f.path in ("", "..") for f in files) or not files:
        raise ValueError("it names no files, or files outside the directory")
    manifest = Manifest(files=files, **body)
    if manifest.digest != digest:
        raise ValueError("its digest does not match its content")
    return manifest
