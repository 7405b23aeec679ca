"""One run in this process, where a test can do something in the middle of it."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from service.delivery import download as module
from service.delivery import manifest as manifests
from service.delivery.disk import lock
from service.delivery.disk.inspection import Inspection, inspect
from service.delivery.disk.volume import SCRATCH, prepare
from service.delivery.download import Delivery
from service.delivery.manifest import Manifest
from service.delivery.reporting.progress import VERIFYING, Progress
from service.download_settings import DownloadSettings
from tests.support.fake_hub import FakeHub
from tests.support.model_files import SHARDS


def delivered(model_dir: Path, hub: FakeHub, progress: Progress = lambda *_: None) -> Manifest:
    """What a run brings, or finds there."""
    settings = DownloadSettings(model_dir=model_dir, model_repo=hub.repo, hub_endpoint=hub.endpoint)
    return Delivery(settings, progress).deliver(verify=False)


def touch(model_dir: Path) -> None:
    """As a restored copy has it: other times, the same bytes."""
    for name in SHARDS:
        (model_dir / name).touch()


def test_those_who_wait_see_that_the_holder_verifies(hub: FakeHub, model_dir: Path) -> None:
    touched = []

    def progress(phase: str, done: int, total: int) -> None:
        file = model_dir / SCRATCH / lock.NAME
        touched.append((phase, file.stat().st_mtime_ns > 0))
        os.utime(file, ns=(0, 0))

    delivered(model_dir, hub, progress)
    assert (VERIFYING, True) in touched


def test_new_times_are_noted(hub: FakeHub, model_dir: Path) -> None:
    former = delivered(model_dir, hub)
    touch(model_dir)
    renewed = delivered(model_dir, hub)
    assert renewed.files != former.files
    assert manifests.read(model_dir) == renewed


def test_new_times_are_not_noted_over_another_downloads_manifest(
    hub: FakeHub, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(delivered(model_dir, hub), revision="another")
    touch(model_dir)
    monkeypatch.setattr(module, "inspect", followed_by(lambda: other.write(model_dir)))
    delivered(model_dir, hub)
    assert manifests.read(model_dir) == other


def test_new_times_are_not_noted_while_another_downloads(
    hub: FakeHub, model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    former = delivered(model_dir, hub)
    touch(model_dir)
    with lock.volume_lock(prepare(model_dir), 1, lambda: 0):
        delivered(model_dir, hub)
    assert manifests.read(model_dir) == former
    assert "the manifest cannot be written (locked: " in caplog.text


def followed_by(what: Callable[[], None]) -> Callable[..., Inspection]:
    """An inspection after which something else happens."""

    def both(*arguments: object, **options: object) -> Inspection:
        found = inspect(*arguments, **options)  # type: ignore[arg-type]
        what()
        return found

    return both
