"""A model that lies in the directory already (air gap): is all of it there, and is it sound?

Without a manifest the files can be checked against each other only: the index names the shards, a safetensors
header says how long its file is. What passes is hashed and gets a manifest, so that later damage is noticed.
"""

import json
import logging
from pathlib import Path
from typing import Any

from service.delivery.disk.hashing import Digests, hash_files
from service.delivery.disk.safetensors_header import BadHeader, read_header
from service.delivery.failures import Cause, DeliveryFailed
from service.delivery.hubs.catalog import is_wanted
from service.delivery.manifest import FileRecord
from service.delivery.reporting.progress import VERIFYING, Progress
from service.delivery.symptoms import failure_of

log = logging.getLogger(__name__)

INDEX_FILE = "model.safetensors.index.json"


def examine(model_dir: Path, progress: Progress) -> tuple[FileRecord, ...]:
    """Records of all files of the model in `model_dir`; raises DeliveryFailed for the first that is not right."""
    if not model_dir.is_dir():
        raise DeliveryFailed(Cause.INCOMPLETE, f"{model_dir} is not a directory")
    try:
        paths = sorted(path for path in model_dir.iterdir() if is_wanted(path.name) and path.is_file())
        check_consistent(model_dir, [path.name for path in paths])
    except OSError as error:
        raise failure_of(error, f"reading {model_dir}") from error
    total = sum(path.stat().st_size for path in paths)
    digests = hash_files(dict.fromkeys(paths, False), lambda done: progress(VERIFYING, done, total))
    return tuple(_record(path, digests[path]) for path in paths)


def check_consistent(model_dir: Path, names: list[str]) -> None:
    """Configuration and every shard are there, and each shard is as long as its header says; no hashing.

    Raises DeliveryFailed, OSError.
    """
    if "config.json" not in names:
        raise DeliveryFailed(Cause.INCOMPLETE, f"there is no config.json in {model_dir}")
    for name in names:
        if name.endswith(".json"):
            load_json(model_dir / name)
    shards = shard_names(model_dir, names)
    if absent := sorted(set(shards) - set(names)):
        raise DeliveryFailed(Cause.INCOMPLETE, f"{INDEX_FILE} names {', '.join(absent)}, which {model_dir} lacks")
    for shard in shards:
        _check_shard(model_dir / shard)


def shard_names(model_dir: Path, names: list[str]) -> list[str]:
    """The files that hold the weights; raises DeliveryFailed if there are none."""
    if INDEX_FILE in names:
        weight_map = load_json(model_dir / INDEX_FILE).get("weight_map")
        shards = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
    else:
        shards = [name for name in names if name.endswith(".safetensors")]
    if not shards or not all(isinstance(shard, str) and is_wanted(shard) for shard in shards):
        raise DeliveryFailed(Cause.INCOMPLETE, f"there are no *.safetensors weights in {model_dir}")
    return shards


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises DeliveryFailed, OSError."""
    try:
        body = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DeliveryFailed(Cause.DAMAGED, f"{path} is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise DeliveryFailed(Cause.DAMAGED, f"{path} is no JSON object")
    return body


def _check_shard(path: Path) -> None:
    try:
        expected, found = read_header(path).file_bytes, path.stat().st_size
    except BadHeader as error:
        raise DeliveryFailed(Cause.DAMAGED, f"{path}: {error}") from None
    if expected != found:
        raise DeliveryFailed(Cause.DAMAGED, f"{path} has {found:,} bytes, its header says {expected:,}")


def _record(path: Path, digests: Digests | OSError) -> FileRecord:
    if isinstance(digests, OSError):
        raise failure_of(digests, f"reading {path}") from digests
    found = path.stat()
    return FileRecord(path.name, found.st_size, digests.sha256, found.st_mtime_ns, listed=False)
