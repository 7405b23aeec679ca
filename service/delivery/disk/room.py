"""Room for a model on a volume that is too full for it: other models give way, where nobody uses them.

What is removed cannot be brought back, so where anything is in doubt nothing is removed: a directory goes as a whole,
and only one that holds nothing but what a download brought there.
"""

import contextlib
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.delivery import manifest as manifests
from service.delivery.disk import usage
from service.delivery.disk.lock import volume_lock
from service.delivery.disk.neighbours import may_be_same, others
from service.delivery.disk.volume import free_bytes, prepare
from service.delivery.failures import DeliveryFailed
from service.delivery.hubs.catalog import PARTIAL_SUFFIX, RESERVED_PREFIX, is_wanted

log = logging.getLogger(__name__)

BLOCK_BYTES = 512
"""The unit of `st_blocks`, whatever the file system's own is."""


class ForeignError(OSError):
    """There is something in the directory that no download brought."""


def make_room(model_dir: Path, needed: int, keep: Path | None) -> None:
    """Remove others, the oldest first, until `needed` bytes are free: but `keep`, those in use and those that hold
    anything else, and none if that would not be enough. Raises OSError."""
    free = free_bytes(model_dir)
    if needed <= free:
        return
    removable = _removable(model_dir, keep)
    if free + _freed_by(removable) < needed:
        return
    for directory in reversed(removable):
        if free_bytes(model_dir) < needed:
            _remove(directory)


def _removable(model_dir: Path, keep: Path | None) -> list[Path]:
    """Others that may go, the one that changed last first. None where `keep` leads nowhere: it may mean any of them."""
    kept = _found(keep) if keep else None
    if keep and not kept:
        log.warning("nothing is removed to make room: INTERNLM_DOWNLOAD_KEEP=%s is not there", keep)
        return []
    return [path for path in others(model_dir) if not (kept and may_be_same(path, kept)) and _may_go(path)]


def _found(path: Path) -> Path | None:
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: a home of nobody, or links in a circle
        return path.expanduser().resolve(strict=True)
    return None


def _may_go(directory: Path) -> bool:
    try:
        with _claimed(directory):
            return True
    except (OSError, DeliveryFailed) as error:
        log.info("%s stays: %s", directory, error)
        return False


@contextmanager
def _claimed(directory: Path) -> Iterator[None]:
    """For as long as the block lasts nobody begins to serve the model or to download to it.

    Raises OSError or DeliveryFailed if somebody does already, and where a download did not bring all there is.
    """
    with usage.unused(directory), volume_lock(prepare(directory), patience=0.0, progress=lambda: 0):
        if foreign := _foreign(directory):
            raise ForeignError(f"no download brought {', '.join(foreign[:3])} there")
        yield


def _foreign(directory: Path) -> list[str]:
    """Names of what no download brought there. Without a manifest that is whatever could be no file of a model."""
    manifest = manifests.read(directory)
    listed = {file.path for file in manifest.files} if manifest else None
    return sorted(path.name for path in directory.iterdir() if not _is_brought(path, listed))


def _is_brought(path: Path, listed: set[str] | None) -> bool:
    if path.name.startswith(RESERVED_PREFIX):
        return True
    name = path.name.removesuffix(PARTIAL_SUFFIX)
    return path.is_file() and not path.is_symlink() and (is_wanted(name) if listed is None else name in listed)


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
    """Remove a model, its manifest first; one that somebody has begun to use meanwhile stays."""
    try:
        with _claimed(directory):
            log.warning("removing %s: the volume has no room for it beside what is wanted", directory)
            manifests.discard(directory)
            shutil.rmtree(directory)
    except (OSError, DeliveryFailed) as error:
        log.warning("%s stays: %s", directory, error)
