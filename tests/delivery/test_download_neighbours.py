"""Models beside each other on a volume: equal files are there once, and what nobody uses gives way."""

import os
import shutil
from pathlib import Path

import pytest

from service.delivery import manifest as manifests
from service.delivery.disk import neighbours, usage
from service.delivery.disk.volume import SCRATCH
from service.delivery.hubs.catalog import PARTIAL_SUFFIX, RemoteFile
from tests.delivery.conftest import mount, needs_root
from tests.support.download_process import Download, assert_complete, download, wait_until
from tests.support.fake_hub import FakeHub, Fault
from tests.support.model_files import SHARDS, make_repository, sha256_of, wanted_files

FIRST, SECOND = SHARDS
NO_LINKS = """
import os

def link(*_, **__):
    raise OSError(95, "Operation not supported")

os.link = link
"""


@pytest.fixture
def first(hub: FakeHub, tmp_path: Path) -> Path:
    """A complete model of the hub's first state."""
    model_dir = tmp_path / "volume" / "owner--model"
    assert download(model_dir, hub).code == 0
    hub.requests.clear()
    return model_dir


def second(first: Path, revision: str = "v2") -> Path:
    return first.with_name(f"owner--model@{revision}")


def change(hub: FakeHub, revision: str = "v2", seed: int = 7) -> None:
    """The hub has a new revision, in which config.json and the second shard are others."""
    make_repository(hub.directory, vocab_size=600 + seed)
    (hub.directory / SECOND).write_bytes((hub.directory / SECOND).read_bytes()[:-4] + bytes([seed] * 4))
    hub.revisions.add(revision)


def fetched(hub: FakeHub) -> list[str]:
    return sorted(request.query["FilePath"] for request in hub.file_requests)


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_only_what_changed_is_fetched_and_the_old_revision_stays_as_it_was(hub: FakeHub, first: Path) -> None:
    before = wanted_files(hub.directory)
    change(hub)
    outcome = download(second(first), hub, INTERNLM_REVISION="v2")
    assert outcome.code == 0, outcome.log
    assert fetched(hub) == ["config.json", SECOND]
    assert "5 files are another model's on the volume as well, and linked" in outcome.log
    assert_complete(second(first), hub.directory)
    assert inode(first / FIRST) == inode(second(first) / FIRST), "it takes no room twice"
    assert {name: sha256_of(first / name) for name in before} == before
    assert manifests.read(first) is not None
    assert download(first, None, INTERNLM_MODEL_REPO=hub.repo).code == 0, "the old one is complete, without a hub"


def test_the_old_revision_can_go_and_the_new_one_stays_whole(hub: FakeHub, first: Path) -> None:
    change(hub)
    assert download(second(first), hub, INTERNLM_REVISION="v2").code == 0
    shutil.rmtree(first)
    assert download(second(first), None, "--verify", INTERNLM_REVISION="v2", INTERNLM_MODEL_REPO=hub.repo).code == 0
    assert_complete(second(first), hub.directory)


def spoil(path: Path) -> None:
    """Other bytes, of the same size and time, as a bad disk or a bad hand would leave them."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"EVIL")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_what_was_linked_is_hashed_so_that_nothing_bad_spreads(hub: FakeHub, first: Path) -> None:
    spoil(first / FIRST)
    change(hub)
    outcome = download(second(first), hub, INTERNLM_REVISION="v2")
    assert outcome.code == 0, outcome.log
    assert FIRST in fetched(hub)
    assert_complete(second(first), hub.directory)


def test_a_planted_manifest_proves_nothing(hub: FakeHub, first: Path) -> None:
    planted = first.rename(first.with_name("planted"))
    for name in wanted_files(hub.directory):
        spoil(planted / name)
    outcome = download(first, hub)
    assert outcome.code == 0, outcome.log
    assert_complete(first, hub.directory)


@pytest.mark.parametrize("faults", [[], [Fault("status", 503, FIRST, 1)], [Fault("cut", 50_000, FIRST, 1)]])
def test_damage_that_is_found_is_mended_though_the_other_has_it_too(
    hub: FakeHub, first: Path, faults: list[Fault]
) -> None:
    assert download(second(first), hub, INTERNLM_REVISION="main").code == 0
    spoil(second(first) / FIRST)
    assert inode(first / FIRST) == inode(second(first) / FIRST)
    hub.faults = faults
    outcome = download(second(first), hub, "--verify", INTERNLM_REVISION="main")
    assert outcome.code == 0, outcome.log
    assert FIRST in fetched(hub)
    assert_complete(second(first), hub.directory)


def denied(*_: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_neighbour_whose_manifest_cannot_be_read_is_passed_over(
    first: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(manifests, "read", denied)
    assert neighbours.link(second(first), [RemoteFile(FIRST, 1, sha256="0" * 64)]) == []
    assert f"{first} is passed over" in caplog.text


@pytest.mark.parametrize("method", ["iterdir", "is_file"])
def test_what_cannot_be_looked_into_is_no_neighbour(first: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    assert neighbours.others(second(first)) == [first]
    monkeypatch.setattr(Path, method, denied)
    assert neighbours.others(second(first)) == []


def test_a_neighbour_that_is_a_link_is_none(hub: FakeHub, first: Path, tmp_path: Path) -> None:
    elsewhere = first.rename(tmp_path / "elsewhere")
    first.symlink_to(elsewhere)
    assert neighbours.others(second(first)) == []


def test_any_complete_model_gives_what_is_equal_and_an_incomplete_one_nothing(hub: FakeHub, first: Path) -> None:
    manifests.discard(first)
    assert neighbours.others(second(first)) == [first]
    assert download(second(first), hub, INTERNLM_REVISION="main").code == 0
    assert fetched(hub) == sorted(wanted_files(hub.directory))
    hub.requests.clear()
    tuned = first.with_name("somebody--tuned")
    assert download(tuned, hub, INTERNLM_REVISION="main").code == 0
    assert fetched(hub) == []


def test_a_hub_without_hashes_has_everything_fetched(hub: FakeHub, first: Path) -> None:
    hub.hashes = False
    assert download(second(first), hub, INTERNLM_REVISION="main").code == 0
    assert fetched(hub) == sorted(wanted_files(hub.directory))


def test_a_link_that_somebody_left_there_is_not_followed(hub: FakeHub, first: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (first / FIRST).rename(elsewhere)
    (first / FIRST).symlink_to(elsewhere)
    assert download(second(first), hub, INTERNLM_REVISION="main").code == 0
    assert fetched(hub) == [FIRST]


def test_a_volume_without_hard_links_has_everything_fetched(hub: FakeHub, first: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_LINKS)
    outcome = download(second(first), hub, INTERNLM_REVISION="main", PYTHONPATH=str(tmp_path))
    assert outcome.code == 0, outcome.log
    assert "cannot be linked to and is fetched" in outcome.log
    assert fetched(hub) == sorted(wanted_files(hub.directory))


def test_a_part_of_a_file_that_was_linked_is_not_left_lying(hub: FakeHub, first: Path) -> None:
    second(first).mkdir()
    (second(first) / (FIRST + PARTIAL_SUFFIX)).write_bytes(b"half")
    assert download(second(first), hub, INTERNLM_REVISION="main").code == 0
    assert fetched(hub) == []
    assert_complete(second(first), hub.directory)


def test_a_download_cut_off_after_linking_goes_on_there(hub: FakeHub, first: Path) -> None:
    change(hub)
    hub.faults = [Fault("stall", 100_000, SECOND, 1)]
    running = Download(second(first), hub, INTERNLM_REVISION="v2")
    waits = second(first) / (SECOND + PARTIAL_SUFFIX)
    wait_until(lambda: waits.exists() and waits.stat().st_size == 100_000)
    wait_until((second(first) / "config.json").exists)
    running.process.kill()
    running.process.wait()
    assert manifests.read(second(first)) is None
    hub.requests.clear()
    assert download(second(first), hub, INTERNLM_REVISION="v2").code == 0
    assert fetched(hub) == [SECOND]
    assert_complete(second(first), hub.directory)


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
    allowed = download(second(old), hub, INTERNLM_REVISION="v2", INTERNLM_DOWNLOAD_MAKE_ROOM="true")
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
    outcome = download(second(old), hub, INTERNLM_REVISION="v2", INTERNLM_DOWNLOAD_MAKE_ROOM="true")
    assert outcome.code == 0, outcome.log
    assert (older.exists(), old.exists(), other.exists()) == (False, True, True)


@needs_root
def test_nothing_goes_where_that_would_not_be_enough(hub: FakeHub, small_volume: Path) -> None:
    old = two_that_do_not_fit(hub, small_volume)
    make_repository(hub.directory, (9_000_000, 2_500_000), seed=9)
    outcome = download(second(old), hub, INTERNLM_REVISION="v2", INTERNLM_DOWNLOAD_MAKE_ROOM="true")
    assert outcome.code == 1
    assert "download failed: no-space: " in outcome.last_line
    assert manifests.read(old) is not None


@needs_root
def test_a_name_more_for_the_same_files_frees_nothing(hub: FakeHub, small_volume: Path) -> None:
    old = two_that_do_not_fit(hub, small_volume)
    for file in old.glob("*.safetensors"):
        (small_volume / file.name).hardlink_to(file)
    outcome = download(second(old), hub, INTERNLM_REVISION="v2", INTERNLM_DOWNLOAD_MAKE_ROOM="true")
    assert outcome.code == 1
    assert manifests.read(old) is not None


@needs_root
@pytest.mark.parametrize("spelling", ["owner--model", "./owner--model", "alias"])
def test_the_one_to_keep_is_kept_however_it_is_spelled(hub: FakeHub, small_volume: Path, spelling: str) -> None:
    old = two_that_do_not_fit(hub, small_volume)
    (small_volume / "alias").symlink_to(old)
    variables = {"INTERNLM_DOWNLOAD_MAKE_ROOM": "true", "INTERNLM_DOWNLOAD_KEEP": f"{small_volume}/{spelling}"}
    outcome = download(second(old), hub, INTERNLM_REVISION="v2", **variables)
    assert outcome.code == 1
    assert "download failed: no-space: " in outcome.last_line
    assert manifests.read(old) is not None


@needs_root
def test_one_that_is_served_stays_until_it_is_no_more(hub: FakeHub, small_volume: Path) -> None:
    old = two_that_do_not_fit(hub, small_volume)
    held = usage.hold(old)
    assert held is not None
    variables = {"INTERNLM_REVISION": "v2", "INTERNLM_DOWNLOAD_MAKE_ROOM": "true"}
    outcome = download(second(old), hub, **variables)
    assert outcome.code == 1
    assert f"{old} stays: it is being served" in outcome.log
    os.close(held)
    assert download(second(old), hub, **variables).code == 0
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


@needs_root
def test_a_revision_that_is_being_downloaded_is_not_removed(hub: FakeHub, small_volume: Path) -> None:
    make_repository(hub.directory, (3_500_000, 2_500_000))
    hub.revisions.add("v2")
    hub.faults = [Fault("stall", 3_000_000, FIRST, 1)]
    old = small_volume / "owner--model"
    running = Download(old, hub)
    wait_until(lambda: (old / (FIRST + PARTIAL_SUFFIX)).exists() and (old / SECOND).exists())
    wait_until(lambda: (old / (FIRST + PARTIAL_SUFFIX)).stat().st_size == 3_000_000)
    outcome = download(second(old), hub, INTERNLM_REVISION="v2", INTERNLM_DOWNLOAD_MAKE_ROOM="true")
    assert outcome.code == 1
    assert f"{old} stays: locked" in outcome.log
    assert (old / SCRATCH).is_dir()
    running.process.kill()
    running.process.wait()
