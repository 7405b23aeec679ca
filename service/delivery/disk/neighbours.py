"""Other models beside one on the volume, most often other revisions of it: what is equal is neither fetched again nor
kept twice, and what is in nobody's use may give way.

Equal files are hard links to one another. No file is ever written in place, so that a change in one directory is none
in the other; what was linked is hashed like anything else that was found in the directory.
"""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from service.delivery import manifest as manifests
from service.delivery.disk import usage
from service.delivery.disk.durable import sync
from service.delivery.disk.lock import volume_lock
from service.delivery.disk.volume import SCRATCH, free_bytes, prepare
from service.delivery.failures import DeliveryFailed
from service.delivery.hubs.catalog import RemoteFile

log = logging.getLogger(__name__)

BLOCK_BYTES = 512
"""The unit of `st_blocks`, whatever the file system's own is."""


def others(model_dir: Path) -> list[Path]:
    """Directories that a download made, its model complete or not, the one that changed last first. None of those that
    cannot be looked into."""
    try:
        beside = [path for path in model_dir.parent.iterdir() if path.name != model_dir.name]
    except OSError:
        return []
    changed = {path: time for path in beside if (time := _changed(path)) is not None}
    return sorted(changed, key=changed.__getitem__, reverse=True)


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


def make_room(model_dir: Path, needed: int, keep: Path | None) -> None:
    """Remove others, the oldest first, until `needed` bytes are free: but `keep` and those in use, and none if that
    would not be enough."""
    free = free_bytes(model_dir)
    removable = [path for path in others(model_dir) if not (keep and _same(path, keep)) and not usage.is_used(path)]
    if needed <= free or free + _freed_by(removable) < needed:
        return
    for directory in reversed(removable):
        if free_bytes(model_dir) < needed:
            _remove(directory)


def described(model_dir: Path) -> str:
    """What else there is, for somebody who looks for room; empty if nothing."""
    names = ", ".join(str(path) for path in others(model_dir))
    return f"; beside it are {names}" if names else ""


def _changed(path: Path) -> int | None:
    """When a directory that a download made changed last; None for anything else."""
    try:
        made = not path.is_symlink() and ((path / manifests.NAME).is_file() or (path / SCRATCH).is_dir())
        return path.stat().st_mtime_ns if made else None
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


def _same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def _freed_by(directories: Iterable[Path]) -> int:
    """Bytes that are free when all of them are gone: not those of files that have a name elsewhere, too."""
    try:
        found = [path.lstat() for directory in directories for path in directory.rglob("*")]
    except OSError:
        return 0  # somebody else is at work there
    names = Counter((status.st_dev, status.st_ino) for status in found)
    files = {(status.st_dev, status.st_ino): status for status in found}
    return sum(file.st_blocks * BLOCK_BYTES for inode, file in files.items() if names[inode] >= file.st_nlink)


def _remove(directory: Path) -> None:
    """Remove a model, its manifest first; one that is in use or being downloaded stays."""
    try:
        with volume_lock(prepare(directory), patience=0.0, progress=lambda: 0), usage.unused(directory):
            log.warning("removing %s: the volume has no room for it beside what is wanted", directory)
            manifests.discard(directory)
            shutil.rmtree(directory)
    except (OSError, DeliveryFailed) as error:
        log.warning("%s stays: %s", directory, error)
