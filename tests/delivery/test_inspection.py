"""Whose bytes are read again at a start, and whose are believed by size and time."""

import os
from pathlib import Path

import pytest

from service.delivery import manifest as manifests
from service.delivery.disk.inspection import SECOND_NS, SMALL_BYTES, inspect, survey
from service.delivery.local import find_model
from service.delivery.manifest import FileRecord, Manifest
from service.delivery.reporting.progress import VERIFYING
from service.settings import Settings
from tests.support.model_files import SHARDS, make_repository, sha256_of, write_shard

LARGE = SMALL_BYTES + 2
VERIFIED_NS = 1_700_000_000 * SECOND_NS + 123_456_789
WHOLE_SECOND_NS = 1_700_000_000 * SECOND_NS


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    """A model with a manifest and one large file, all of one time."""
    model_dir = make_repository(tmp_path / "model")
    write_shard(model_dir / SHARDS[0], LARGE, "layer.0", 0)
    give_time(model_dir, VERIFIED_NS)
    files = tuple(
        FileRecord(path.name, path.stat().st_size, sha256_of(path), VERIFIED_NS, listed=True)
        for path in sorted(model_dir.iterdir())
        if path.is_file()
    )
    Manifest("modelscope", "owner/model", "master", None, "2026-01-01T00:00:00+00:00", "test", files).write(model_dir)
    return model_dir


def give_time(model_dir: Path, mtime_ns: int) -> None:
    for path in model_dir.iterdir():
        os.utime(path, ns=(mtime_ns, mtime_ns))


def manifest_of(model_dir: Path) -> Manifest:
    manifest = manifests.read(model_dir)
    assert manifest
    return manifest


def told(model_dir: Path) -> list[tuple[str, int, int]]:
    """What a server that begins to serve the model says of its progress."""
    progress: list[tuple[str, int, int]] = []
    find_model(Settings(model_dir=model_dir, device="cpu"), lambda *step: progress.append(step))
    return progress


def test_a_copy_that_kept_whole_seconds_is_not_hashed_by_who_cannot_record_it(complete: Path) -> None:
    """As an image volume, where every web process would read all weights before it answers."""
    give_time(complete, WHOLE_SECOND_NS)
    assert not survey(complete, manifest_of(complete), whole_seconds=True).takes_long
    assert told(complete) == []


@pytest.mark.parametrize("mtime_ns", [WHOLE_SECOND_NS + SECOND_NS, VERIFIED_NS + 1, WHOLE_SECOND_NS - 1])
def test_any_other_time_has_the_weights_hashed_and_says_so(complete: Path, mtime_ns: int) -> None:
    give_time(complete, mtime_ns)
    phase, done, total = told(complete)[-1]
    assert phase == VERIFYING
    assert done == total > LARGE


def test_a_download_hashes_such_a_copy_once_since_it_records_the_time(complete: Path) -> None:
    """So it finds bytes that others of the same length have replaced."""
    write_shard(complete / SHARDS[0], LARGE, "layer.0", seed=7)
    give_time(complete, WHOLE_SECOND_NS)
    (damage,) = inspect(complete, manifest_of(complete)).damages
    assert str(damage) == f"{SHARDS[0]} has other bytes than it had when it was verified"


def test_small_files_are_hashed_whatever_their_time(complete: Path) -> None:
    config = complete / "config.json"
    config.write_bytes(config.read_bytes().replace(b"64", b"63"))
    give_time(complete, VERIFIED_NS)
    (damage,) = survey(complete, manifest_of(complete), whole_seconds=True).conclude().damages
    assert damage.path == "config.json"
