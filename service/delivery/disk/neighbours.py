"""Other models beside one on the volume, most often other revisions of it: what is equal is neither fetched again nor
kept twice.

Equal files are hard links to one another. No file is ever written in place, so that a change in one directory is none
in the other; what was linked is hashed like anything else that was found in the directory.
"""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from service.delivery import manifest as manifests
from service.delivery.disk.durable import sync
from service.delivery.disk.volume import SCRATCH
from service.delivery.hubs.catalog import RemoteFile

log = logging.getLogger(__name__)


def others(model_dir: Path) -> list[Path]:
    """Directories on the volume that a download made, its model complete or not, the one that changed last first. None
    of those that cannot be looked into, and not `model_dir` itself by another name."""
    try:
        volume = (model_dir if model_dir.exists() else model_dir.parent).stat().st_dev
        beside = [path for path in model_dir.parent.iterdir() if not may_be_same(path, model_dir)]
    except OSError:
        return []
    changed = {path: time for path in beside if (time := _changed(path, volume)) is not None}
    return sorted(changed, key=changed.__getitem__, reverse=True)


def may_be_same(path: Path, other: Path) -> bool:
    """Whether both lead to one directory, or nobody can tell."""
    try:
        return path.samefile(other)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def link(model_dir: Path, files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Link to what others have of `files`, none of which is there yet, by the hash that the hub lists; returns what was
    linked, for it to be hashed."""
    known = _known(model_dir)
    there = {file: known[file.sha256, file.size] for file in files if (file.sha256, file.size) in known}
    linked = [file for file, source in there.items() if _link(source, model_dir / file.path)]
    if linked:
        sync(model_dir)
        log.info("%d files are another model's on the volume as well, and linked", len(linked))
    return linked


def described(model_dir: Path) -> str:
    """What else there is, for somebody who looks for room; empty if nothing."""
    names = ", ".join(str(path) for path in others(model_dir))
    return f"; beside it are {names}" if names else ""


def _changed(path: Path, volume: int) -> int | None:
    """When a directory that a download made on this volume (by its device's number) changed last; None for anything
    else."""
    try:
        made = not path.is_symlink() and ((path / manifests.NAME).is_file() or (path / SCRATCH).is_dir())
        found = path.stat()
        return found.st_mtime_ns if made and found.st_dev == volume else None
    except OSError:
        return None


def _known(model_dir: Path) -> dict[tuple[str | None, int], Path]:
    """Every file under the manifest of another, by hash and size; of equal ones that of the latest model."""
    found: dict[tuple[str | None, int], Path] = {}
    for directory in others(model_dir):
        try:
            manifest = manifests.read(directory)
        except OSError as error:
            log.info("%s is passed over: %s", directory, error)
            continue
        for record in manifest.files if manifest else ():
            found.setdefault((record.sha256, record.size), directory / record.path)
    return found


def _link(source: Path, target: Path) -> bool:
    """False where there is no such file, and where the volume has no hard links or allows none."""
    try:
        if source.is_symlink() or not source.is_file():
            return False
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        log.info("%s cannot be linked to and is fetched: %s", source, error)
        return False
    return True
