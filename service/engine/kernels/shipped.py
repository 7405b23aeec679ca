"""Kernels compiled before the start: `service.engine.cuda.compile_ahead` fills a folder, which the image brings along.

Compiling takes a new pod half a minute, in which nothing is served where a rollout replaces the only pod. Triton
names what it compiled by a hash of everything that it depends on, its own version and the card included: another
card's, another version's or another model's kernel is not found here, and compiled as ever.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from triton import knobs
from triton.runtime.cache import CacheManager, FileCacheManager

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "compiled"
"""Holds a folder for each kernel. It may be missing: then nothing was compiled ahead."""


class ShippedCache(CacheManager):  # type: ignore[misc]
    """Triton's cache, in which files of FOLDER stand before those of TRITON_CACHE_DIR; nothing is written there."""

    def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
        self._shipped = FOLDER / key
        # Makes a folder: only when one is needed, so that shipped kernels serve where nothing can be written.
        self._own = partial(FileCacheManager, key, override, dump)

    def get_file(self, filename: str) -> str | None:
        """The path of one file of this key, or None."""
        shipped = self._shipped / filename
        found: str | None = str(shipped) if shipped.is_file() else self._own().get_file(filename)
        return found

    def get_group(self, filename: str) -> dict[str, str] | None:
        """The paths, by name, of all files that were written together with this one, or None."""
        if (self._shipped / filename).is_file():
            return {path.name: str(path) for path in self._shipped.iterdir() if not path.name.startswith("__grp__")}
        found: dict[str, str] | None = self._own().get_group(filename)
        return found

    def put(self, data: str | bytes, filename: str, binary: bool = True) -> str:
        """Keep one file of this key; its path."""
        path: str = self._own().put(data, filename, binary)
        return path

    def put_group(self, filename: str, group: dict[str, str]) -> str:
        """Note which files, by name, were written together with this one."""
        path: str = self._own().put_group(filename, group)
        return path


def use_shipped_kernels() -> None:
    """Have Triton look into FOLDER first, unless TRITON_CACHE_MANAGER names somebody else; and say what it compiles."""
    if knobs.cache.manager_class is None:
        knobs.cache.manager_class = ShippedCache
    knobs.compilation.listener = _tell


def _tell(*, src: Any, times: Any, cache_hit: bool, **_: object) -> None:
    """Triton's `CompilationListener`."""
    if not cache_hit:
        logger.info("compiled %s in %.1f s", src.name, times.total / 1e6)
