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
from service.engine.config import MODEL_TYPES

log = logging.getLogger(__name__)

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
TOKENIZERS = ("tokenizer.model", "tokenizer.json")
READ = (
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "tokenizer.json",
    INDEX_FILE,
)
"""The JSON files a server reads. What others hold is nobody's business here: they need not even be objects."""


def examine(model_dir: Path, progress: Progress) -> tuple[FileRecord, ...]:
    """Records of all files of the model in `model_dir`; raises DeliveryFailed for the first that is not right."""
    if not model_dir.is_dir():
        raise DeliveryFailed(Cause.INCOMPLETE, f"{model_dir} is not a directory")
    try:
        paths = sorted(path for path in model_dir.iterdir() if _is_model(path.name) and path.is_file())
        check_consistent(model_dir, [path.name for path in paths])
    except OSError as error:
        raise failure_of(error, f"reading {model_dir}") from error
    total = sum(path.stat().st_size for path in paths)
    digests = hash_files(dict.fromkeys(paths, False), lambda done: progress(VERIFYING, done, total))
    return tuple(_record(path, digests[path]) for path in paths)


def check_consistent(model_dir: Path, names: list[str]) -> None:
    """Configuration, tokenizer and every shard are there, and each shard is as long as its header says; no hashing.

    A model of a kind that is not served here may have another tokenizer, or none. Raises DeliveryFailed, OSError.
    """
    if "config.json" not in names:
        raise DeliveryFailed(Cause.INCOMPLETE, f"there is no config.json in {model_dir}")
    objects = {name: load_json(model_dir / name) for name in READ if name in names}
    if objects["config.json"].get("model_type") in MODEL_TYPES:
        _check_loadable(model_dir, names)
    shards = shard_names(model_dir, names)
    if absent := sorted(set(shards) - set(names)):
        raise DeliveryFailed(Cause.INCOMPLETE, f"{INDEX_FILE} names {', '.join(absent)}, which {model_dir} lacks")
    for shard in shards:
        _check_shard(model_dir / shard)


def _check_loadable(model_dir: Path, names: list[str]) -> None:
    """What tokenizer and engine are loaded from is there under a name that they look for."""
    for alternatives in (TOKENIZERS, (INDEX_FILE, SINGLE_FILE)):
        if not set(alternatives) & set(names):
            raise DeliveryFailed(Cause.INCOMPLETE, f"there is neither {' nor '.join(alternatives)} in {model_dir}")


def shard_names(model_dir: Path, names: list[str]) -> list[str]:
    """The files that hold the weights: those the index names, or the single file, as the engine has it; where neither
    is there, all that could. Raises DeliveryFailed if there are none, OSError."""
    if INDEX_FILE in names:
        shards = _indexed(load_json(model_dir / INDEX_FILE).get("weight_map"))
    elif SINGLE_FILE in names:
        shards = [SINGLE_FILE]
    else:
        shards = [name for name in names if name.endswith(".safetensors") and _is_model(name)]
    if not shards:
        raise DeliveryFailed(Cause.INCOMPLETE, f"there are no *.safetensors weights in {model_dir}")
    return shards


def _is_model(name: str) -> bool:
    """Whether a file may belong to the model: what is hidden is another program's (a Mac has `._config.json`)."""
    return is_wanted(name) and not name.startswith(".")


def _indexed(weight_map: object) -> list[str]:
    """The files of an index; none if it is damaged, or leads out of the directory."""
    files = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not all(isinstance(file, str) and is_wanted(file) for file in files):
        return []
    return sorted(set(files))


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises DeliveryFailed, OSError."""
    try:
        body = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
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
