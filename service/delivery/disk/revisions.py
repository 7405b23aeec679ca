"""Other revisions of a model beside it on the volume: what is equal is not fetched again and takes no room twice.

Directories called NAME and NAME@REVISION hold revisions of one model. Equal files are hard links to one another, which
is safe because no file is ever written in place: a changed one is another file that takes the name.
"""

import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from service.delivery import manifest as manifests
from service.delivery.disk.durable import sync
from service.delivery.disk.lock import volume_lock
from service.delivery.disk.volume import SCRATCH, free_bytes, partial, prepare
from service.delivery.failures import DeliveryFailed
from service.delivery.hubs.catalog import RemoteFile
from service.delivery.manifest import FileRecord

log = logging.getLogger(__name__)

SEPARATOR = "@"

Found = tuple[Path, FileRecord]


def others(model_dir: Path) -> list[Path]:
    """Directories of other revisions, complete or not, the one that changed last first."""
    beside = (path for path in model_dir.parent.iterdir() if path.name != model_dir.name)
    return sorted((path for path in beside if _is_revision(path, model_dir)), key=_changed, reverse=True)


def link(model_dir: Path, files: Iterable[RemoteFile]) -> dict[RemoteFile, FileRecord]:
    """Hard links to what other revisions have of `files`, none of which is there yet; on the disk when this returns.

    Only what the hub lists with a hash, and what has not changed since it was verified with that hash.
    """
    known, linked = _known(model_dir), {}
    for file in files:
        source, record = known.get((file.sha256, file.size), (None, None))
        if source is None or record is None or not _link(source, model_dir / file.path, record):
            continue
        partial(model_dir, file).unlink(missing_ok=True)
        linked[file] = FileRecord(file.path, file.size, record.sha256, record.mtime_ns, listed=True)
    if linked:
        sync(model_dir)
        log.info("%d files are those of another revision on the volume, and linked", len(linked))
    return linked


def remove_until_free(model_dir: Path, needed: int, keep: Path | None) -> None:
    """Remove other revisions but `keep`, the oldest first, until `needed` bytes are free or none is left."""
    for directory in reversed(others(model_dir)):
        if free_bytes(model_dir) >= needed:
            return
        if directory != keep:
            _remove(directory)


def described(model_dir: Path) -> str:
    """What other revisions there are, for somebody who looks for room; empty if none."""
    names = ", ".join(str(path) for path in others(model_dir))
    return f"; other revisions of it are there as well: {names}" if names else ""


def _is_revision(path: Path, model_dir: Path) -> bool:
    same = path.name.partition(SEPARATOR)[0] == model_dir.name.partition(SEPARATOR)[0]
    return same and not path.is_symlink() and ((path / manifests.NAME).is_file() or (path / SCRATCH).is_dir())


def _changed(directory: Path) -> int:
    return directory.stat().st_mtime_ns


def _known(model_dir: Path) -> dict[tuple[str | None, int], Found]:
    """Every file under a manifest of another revision, by hash and size."""
    complete = ((path, manifests.read(path)) for path in others(model_dir))
    return {(f.sha256, f.size): (path / f.path, f) for path, manifest in complete if manifest for f in manifest.files}


def _link(source: Path, target: Path, record: FileRecord) -> bool:
    """False where the file is not what it was, and where the volume has no hard links or allows none."""
    try:
        if source.is_symlink():
            return False
        os.link(source, target)
    except OSError as error:
        log.info("%s cannot be linked to and is fetched: %s", source, error)
        return False
    found = target.stat()
    if (found.st_size, found.st_mtime_ns) == (record.size, record.mtime_ns):
        return True
    target.unlink()
    return False


def _remove(directory: Path) -> None:
    """Remove a revision, its manifest first; one that is being downloaded stays."""
    try:
        with volume_lock(prepare(directory), patience=0.0, progress=lambda: 0):
            log.warning("removing %s: the volume has no room for both revisions", directory)
            manifests.discard(directory)
            shutil.rmtree(directory)
    except (OSError, DeliveryFailed) as error:
        log.warning("%s stays: %s", directory, error)
