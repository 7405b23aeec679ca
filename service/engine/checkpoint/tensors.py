"""A model directory's tensors: which safetensors file holds which, whether they fit, and reading them in parallel."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from service.delivery.disk.directory import INDEX_FILE, SINGLE_FILE
from service.delivery.disk.safetensors_header import BadHeader
from service.engine.checkpoint.staging import Lanes
from service.engine.checkpoint.tensor_file import DTYPES, Extent, read_extents
from service.engine.quantization import Matrix
from service.errors import ConfigurationError

READERS = 8
"""Threads that read: enough to keep a network volume or an NVMe disk busy, few enough for a small pod."""
NAMES_SHOWN = 8


class Checkpoint:
    """The tensors of `model_dir`, found through its index or in its single file.

    `is_ignored` names tensors that are neither expected nor reported. Every method raises ConfigurationError for
    a file that is absent, damaged or unreadable.
    """

    def __init__(self, model_dir: Path, is_ignored: Callable[[str], bool]) -> None:
        self.model_dir = model_dir
        self._files = {name: path for name, path in _find(model_dir).items() if not is_ignored(name)}

    @property
    def files(self) -> list[Path]:
        """The files that hold its tensors."""
        return list(self._by_file())

    def check(self, places: Mapping[str, Matrix]) -> None:
        """Raise ConfigurationError naming every tensor that is missing, has no place, doesn't fit its place or has a
        type that stands for something else than its numbers: rounded weights are nothing without their scales."""
        found = self._found()
        problems = {
            "missing": sorted(places.keys() - self._files.keys()),
            "unexpected": sorted(self._files.keys() - places.keys()),
            "of another shape": [
                f"{name} {shape} instead of {list(places[name].shape)}"
                for name, (shape, _) in found.items()
                if name in places and shape != list(places[name].shape)
            ],
            f"of another type than {', '.join(DTYPES)}": [
                f"{name} {dtype}" for name, (_, dtype) in found.items() if dtype not in DTYPES
            ],
        }
        told = [f"{kind}: {_shown(names)}" for kind, names in problems.items() if names]
        if told:
            raise ConfigurationError(f"{self.model_dir}: tensors do not match config.json; {'; '.join(told)}")

    def read_into(self, places: Mapping[str, Matrix], *, staged: bool = False) -> int:
        """Copy every tensor to its place, cast or rounded as that keeps it. Returns the bytes read.

        `staged`: through pinned buffers, as a GPU takes them fastest; else straight out of the mapped files.
        """
        with ThreadPoolExecutor(READERS, thread_name_prefix="weights") as readers:
            if not staged:
                return sum(readers.map(partial(_read, places), self._by_size(places)))
            lanes = Lanes()
            extents = {path: _extents(path) for path in self._by_file()}
            count = sum(readers.map(partial(_read_staged, places, extents, lanes), self._by_size(places)))
            lanes.finish()
            return count

    def _found(self) -> dict[str, tuple[list[int], str]]:
        """Shape and type of every tensor, of which nothing else is read."""
        found = {}
        for path, names in self._by_file().items():
            with _open(path) as opened:
                for name in names:
                    tensor = _slice(opened, path, name)
                    found[name] = list(tensor.get_shape()), tensor.get_dtype()
        return found

    def _by_size(self, places: Mapping[str, Matrix]) -> list[tuple[Path, str]]:
        """Each tensor a task of its own, whatever file it is in, the largest first: the readers then end together
        (Graham, 1969, "Bounds on multiprocessing timing anomalies")."""
        names = sorted(self._files, key=lambda name: -places[name].shape.numel())
        return [(self._files[name], name) for name in names]

    def _by_file(self) -> dict[Path, list[str]]:
        by_file: dict[Path, list[str]] = {}
        for name in sorted(self._files):
            by_file.setdefault(self._files[name], []).append(name)
        return by_file


def _find(model_dir: Path) -> dict[str, Path]:
    index, single = model_dir / INDEX_FILE, model_dir / SINGLE_FILE
    if index.is_file():
        files = {name: model_dir / file for name, file in _read_index(index).items()}
    elif single.is_file():
        with _open(single) as opened:
            files = dict.fromkeys(opened.keys(), single)
    else:
        raise ConfigurationError(f"{model_dir}: neither {INDEX_FILE} nor {SINGLE_FILE} is there")
    absent = sorted({path.name for path in files.values() if not path.is_file()})
    if absent:
        raise ConfigurationError(f"{index}: files it names are not there: {', '.join(absent)}")
    return files


def _read_index(path: Path) -> dict[str, str]:
    try:
        return {str(name): str(file) for name, file in json.loads(path.read_text("utf-8"))["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path}: not a safetensors index ({error!r})") from error


def _read(places: Mapping[str, Matrix], task: tuple[Path, str]) -> int:
    path, name = task
    with _open(path) as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
        places[name].copy_(tensor)
    return tensor.numel() * tensor.element_size()


def _read_staged(
    places: Mapping[str, Matrix],
    extents: Mapping[Path, Mapping[str, Extent]],
    lanes: Lanes,
    task: tuple[Path, str],
) -> int:
    path, name = task
    try:
        with path.open("rb", buffering=0) as file:
            return lanes.of(places[name].device).read(file.fileno(), path, extents[path][name], places[name])
    except OSError as error:
        raise ConfigurationError(f"{path}: damaged or unreadable ({error})") from error


def _extents(path: Path) -> dict[str, Extent]:
    try:
        return read_extents(path)
    except (OSError, BadHeader) as error:
        raise ConfigurationError(f"{path}: damaged or unreadable ({error})") from error


def _slice(opened: Any, path: Path, name: str) -> Any:
    try:
        return opened.get_slice(name)
    except SafetensorError as error:
        raise ConfigurationError(f"{path}: the index promises {name}, which is not in it") from error


def _open(path: Path) -> Any:  # safetensors has no types
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(f"{path}: damaged or unreadable ({error})") from error


def _shown(names: list[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
