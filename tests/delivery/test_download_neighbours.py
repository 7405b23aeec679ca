"""Models beside each other on a volume: equal files are there once."""

import os
import shutil
from pathlib import Path

import pytest

from service.delivery import manifest as manifests
from service.delivery.disk import neighbours
from service.delivery.hubs.catalog import PARTIAL_SUFFIX, RemoteFile
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


def test_a_directory_is_no_neighbour_of_itself_by_another_name(first: Path) -> None:
    first.with_name("current").symlink_to(first)
    assert neighbours.others(first.with_name("current")) == []


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
