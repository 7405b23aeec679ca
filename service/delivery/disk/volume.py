"""The directory the model is brought to: made, judged and measured before anything is written there."""

import os
from collections.abc import Iterable
from pathlib import Path

from service.delivery.disk.durable import TEMPORARY_SUFFIX
from service.delivery.failures import Cause, DeliveryFailed
from service.delivery.hubs.catalog import PARTIAL_SUFFIX, RESERVED_PREFIX, Catalog, RemoteFile
from service.delivery.symptoms import failure_of

SCRATCH = f"{RESERVED_PREFIX}download"
"""Lock, journal and the client's own files: on the volume itself, because a pod may have no other place to write."""

SPARE_BYTES = 16 << 20
"""Room for directory entries, journal and manifest."""


def prepare(model_dir: Path) -> Path:
    """Make the directory and its scratch directory, prove that both can be written; returns the latter."""
    scratch = model_dir / SCRATCH
    if scratch.is_symlink():
        raise DeliveryFailed(Cause.NOT_PERMITTED, f"{scratch} is a link; remove it")
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        probe = scratch / f"probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise failure_of(error, f"writing to {model_dir}") from error
    return scratch


def check_no_links(model_dir: Path, files: Iterable[RemoteFile]) -> None:
    """Refuse to write through a symbolic link somebody left on the volume: it may lead anywhere."""
    for file in files:
        for path in (model_dir / file.path, partial(model_dir, file)):
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise DeliveryFailed(Cause.NOT_PERMITTED, f"{path} is a link or a directory; remove it")


def partial(model_dir: Path, file: RemoteFile) -> Path:
    """Where the first bytes of a file wait for the rest."""
    return model_dir / (file.path + PARTIAL_SUFFIX)


def bytes_here(model_dir: Path, files: Iterable[RemoteFile]) -> int:
    """How many bytes of `files` lie on the volume, whole or in part."""
    return sum(max(_size(model_dir / file.path), _size(partial(model_dir, file))) for file in files)


def bytes_in(model_dir: Path) -> int:
    """How many bytes the files of the directory have: what another process adds to it shows here."""
    try:
        return sum(_size(path) for path in model_dir.iterdir())
    except OSError:
        return 0


def bytes_needed(model_dir: Path, missing: Iterable[RemoteFile]) -> int:
    """How many more bytes the rest of `missing` takes."""
    return sum(file.size - min(_size(partial(model_dir, file)), file.size) for file in missing) + SPARE_BYTES


def check_space(model_dir: Path, needed: int, beside: str = "") -> None:
    """Raise DeliveryFailed with the exact shortfall unless `needed` bytes are free; `beside` ends the sentence."""
    free = free_bytes(model_dir)
    if needed > free:
        raise DeliveryFailed(
            Cause.NO_SPACE,
            f"{model_dir} needs {needed:,} more bytes and has {free:,} free: {needed - free:,} bytes short{beside}",
        )


def free_bytes(directory: Path) -> int:
    """Bytes an unprivileged process may still write there; raises OSError."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def prune(model_dir: Path, catalog: Catalog, formerly: Iterable[str]) -> None:
    """Remove files of a former manifest and partial files that the new catalog has no use for."""
    kept = {file.path for file in catalog.files}
    kept_partials = {file.path + PARTIAL_SUFFIX for file in catalog.files}
    for name in set(formerly) - kept:
        (model_dir / name).unlink(missing_ok=True)
    for path in model_dir.glob(f"*{PARTIAL_SUFFIX}"):
        if path.name not in kept_partials:
            path.unlink(missing_ok=True)
    for path in model_dir.glob(f"{RESERVED_PREFIX}*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
