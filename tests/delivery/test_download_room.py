"""A volume that is too full for another model: what nobody uses gives way if it may, and nothing else does."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.delivery import manifest as manifests
from service.delivery.disk import usage
from service.delivery.disk.volume import SCRATCH
from service.delivery.hubs.catalog import PARTIAL_SUFFIX
from tests.delivery.conftest import mount, needs_root
from tests.support.download_process import Download, Outcome, assert_complete, download, wait_until
from tests.support.fake_hub import FakeHub, Fault, running_hub
from tests.support.model_files import SHARDS, make_repository

FIRST, SECOND = SHARDS


def second(first: Path) -> Path:
    return first.with_name(f"{first.name}@v2")


def make_room(model_dir: Path, hub: FakeHub, **variables: str) -> Outcome:
    """A download of the second revision that may remove others."""
    return download(model_dir, hub, INTERNLM_REVISION="v2", INTERNLM_DOWNLOAD_MAKE_ROOM="true", **variables)


def two_that_do_not_fit(hub: FakeHub, small_volume: Path) -> Path:
    """A model that takes more than half of a small volume, and a hub with nothing of it left."""
    make_repository(hub.directory, (3_500_000, 2_500_000))
    model_dir = small_volume / "owner--model"
    assert download(model_dir, hub).code == 0
    make_repository(hub.directory, (3_500_000, 2_500_000), seed=9)
    hub.revisions.add("v2")
    return model_dir


@needs_root
def test_where_both_do_not_fit_the_old_one_stays_unless_it_may_go(hub: FakeHub, small_volume: Path) -> None:
    old = two_that_do_not_fit(hub, small_volume)
    refused = download(second(old), hub, INTERNLM_REVISION="v2")
    assert refused.code == 1
    assert "download failed: no-space: " in refused.last_line
    assert f"beside it are {old}" in refused.last_line
    assert manifests.read(old) is not None
    allowed = make_room(second(old), hub)
    assert allowed.code == 0, allowed.log
    assert f"removing {old}" in allowed.log
    assert not old.exists()
    assert_complete(second(old), hub.directory)


@needs_root
def test_no_more_goes_than_must(hub: FakeHub, small_volume: Path) -> None:
    older, old = small_volume / "owner--model", small_volume / "owner--model@v1"
    other = small_volume / "nobody--knows"
    other.mkdir()
    (other / "precious").write_bytes(b"x" * 1_000_000)
    hub.revisions |= {"v1", "v2"}
    for model_dir, revision, seed in ((older, "master", 1), (old, "v1", 2)):
        make_repository(hub.directory, (1_200_000, 800_000), seed=seed)
        assert download(model_dir, hub, INTERNLM_REVISION=revision).code == 0
    status = os.statvfs(small_volume)
    free = status.f_bavail * status.f_frsize
    filler = small_volume / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - (16 << 20) - 1_000_000)
    make_repository(hub.directory, (1_200_000, 800_000), seed=3)
    outcome = make_room(second(old), hub)
    assert outcome.code == 0, outcome.log
    assert (older.exists(), old.exists(), other.exists()) == (False, True, True)


@needs_root
def test_nothing_goes_where_that_would_not_be_enough(hub: FakeHub, small_volume: Path) -> None:
    old = two_that_do_not_fit(hub, small_volume)
    make_repository(hub.directory, (9_000_000, 2_500_000), seed=9)
    outcome = make_room(second(old), hub)
    assert outcome.code == 1
    assert "download failed: no-space: " in outcome.last_line
    assert manifests.read(old) is not None


@needs_root
def test_a_name_more_for_the_same_files_frees_nothing(hub: FakeHub, small_volume: Path) -> None:
    old = two_that_do_not_fit(hub, small_volume)
    for file in old.glob("*.safetensors"):
        (small_volume / file.name).hardlink_to(file)
    outcome = make_room(second(old), hub)
    assert outcome.code == 1
    assert manifests.read(old) is not None


@needs_root
@pytest.mark.parametrize("spelling", ["{volume}/owner--model", "{volume}/./owner--model", "{volume}/alias", "~/alias"])
def test_the_one_to_keep_is_kept_however_it_is_spelled(hub: FakeHub, small_volume: Path, spelling: str) -> None:
    old = two_that_do_not_fit(hub, small_volume)
    (small_volume / "alias").symlink_to(old)
    variables = {"INTERNLM_DOWNLOAD_KEEP": spelling.format(volume=small_volume), "HOME": str(small_volume)}
    outcome = make_room(second(old), hub, **variables)
    assert outcome.code == 1
    assert "download failed: no-space: " in outcome.last_line
    assert manifests.read(old) is not None


@needs_root
@pytest.mark.parametrize("keep", ["owner--mistyped", "~nobody-of-this-name/owner--model"])
def test_nothing_goes_where_the_one_to_keep_is_not_there(hub: FakeHub, small_volume: Path, keep: str) -> None:
    old = two_that_do_not_fit(hub, small_volume)
    outcome = make_room(second(old), hub, INTERNLM_DOWNLOAD_KEEP=keep)
    assert outcome.code == 1
    assert f"INTERNLM_DOWNLOAD_KEEP={keep} is not there" in outcome.log
    assert manifests.read(old) is not None


def add_folder(model_dir: Path) -> None:
    (model_dir / "my-adapter").mkdir()


def add_file(model_dir: Path) -> None:
    (model_dir / "my-adapter").write_text("mine")


def add_link(model_dir: Path) -> None:
    (model_dir / "my-adapter").symlink_to(model_dir / FIRST)


@needs_root
@pytest.mark.parametrize("add", [add_folder, add_file, add_link])
def test_a_model_beside_something_that_no_download_brought_stays(
    hub: FakeHub, small_volume: Path, add: Callable[[Path], None]
) -> None:
    old = two_that_do_not_fit(hub, small_volume)
    add(old)
    outcome = make_room(second(old), hub)
    assert outcome.code == 1
    assert f"{old} stays: no download brought my-adapter there" in outcome.log
    assert manifests.read(old) is not None
    assert os.path.lexists(old / "my-adapter")


@needs_root
def test_a_file_that_could_be_a_models_is_none_of_a_complete_model(hub: FakeHub, small_volume: Path) -> None:
    old = two_that_do_not_fit(hub, small_volume)
    (old / "adapter_model.safetensors").write_text("mine")
    assert make_room(second(old), hub).code == 1
    assert manifests.read(old) is not None


@needs_root
def test_a_neighbour_on_another_volume_makes_no_room(hub: FakeHub, small_volume: Path) -> None:
    make_repository(hub.directory, (20_000_000, 10_000_000))
    beside = small_volume.with_name("beside")
    assert download(beside, hub).code == 0
    hub.revisions.add("v2")
    make_repository(hub.directory, (15_000_000, 10_000_000), seed=9)
    outcome = make_room(small_volume, hub)
    assert outcome.code == 1
    assert "beside it are" not in outcome.last_line
    assert_complete(beside, make_repository(hub.directory, (20_000_000, 10_000_000)))


@needs_root
def test_one_that_is_served_stays_until_it_is_no_more(hub: FakeHub, small_volume: Path) -> None:
    old = two_that_do_not_fit(hub, small_volume)
    held = usage.hold(old)
    assert held is not None
    outcome = make_room(second(old), hub)
    assert outcome.code == 1
    assert f"{old} stays: it is being served" in outcome.log
    os.close(held)
    assert make_room(second(old), hub).code == 0
    assert not old.exists()


@needs_root
def test_a_model_on_a_read_only_mount_can_be_held(hub: FakeHub, small_volume: Path) -> None:
    model_dir = small_volume / "model"
    assert download(model_dir, hub).code == 0
    mount("-o", "remount,ro", small_volume)
    held = usage.hold(model_dir)
    assert held is not None
    os.close(held)


def test_a_directory_that_no_download_made_needs_no_hold(tmp_path: Path) -> None:
    assert usage.hold(tmp_path) is None


@contextmanager
def half_of_a_download(model_dir: Path, hub: FakeHub) -> Iterator[None]:
    """A download that has brought some six megabytes, and gets no further for as long as the block lasts."""
    make_repository(hub.directory, (3_500_000, 2_500_000))
    hub.faults = [Fault("stall", 3_000_000, FIRST, 1)]
    running = Download(model_dir, hub)
    partial = model_dir / (FIRST + PARTIAL_SUFFIX)
    wait_until(lambda: partial.exists() and partial.stat().st_size == 3_000_000 and (model_dir / SECOND).exists())
    yield
    running.process.kill()
    running.process.wait()


@needs_root
def test_a_revision_that_is_being_downloaded_is_not_removed(hub: FakeHub, small_volume: Path) -> None:
    old = small_volume / "owner--model"
    hub.revisions.add("v2")
    with half_of_a_download(old, hub):
        outcome = make_room(second(old), hub)
        assert outcome.code == 1
        assert f"{old} stays: locked" in outcome.log
        assert (old / SCRATCH).is_dir()
    outcome = make_room(second(old), hub)
    assert outcome.code == 0, outcome.log
    assert not old.exists(), "what is left of a download that ended may go"


@needs_root
def test_a_revision_that_is_being_downloaded_does_not_count_as_room(hub: FakeHub, small_volume: Path) -> None:
    rollback, busy = small_volume / "owner--rollback", small_volume / "owner--busy"
    make_repository(hub.directory, (500_000, 500_000))
    assert download(rollback, hub).code == 0
    with half_of_a_download(busy, hub), running_hub(make_repository(hub.directory.with_name("other"), seed=9)) as other:
        make_repository(other.directory, (2_000_000, 1_500_000), seed=9)
        other.revisions.add("v2")
        outcome = make_room(small_volume / "new", other)
    assert outcome.code == 1
    assert manifests.read(rollback) is not None, "it alone would not be room enough"
