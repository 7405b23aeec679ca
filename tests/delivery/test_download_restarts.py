"""Processes that die, wait for each other, start again: the volume holds exact bytes or has no manifest."""

import os
import random
import shutil
import signal
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from service.delivery import manifest as manifests
from service.delivery.disk.lock import volume_lock
from service.delivery.disk.volume import SCRATCH, prepare
from service.delivery.hubs.catalog import PARTIAL_SUFFIX
from service.delivery.manifest import FileRecord, Manifest
from tests.support.download_process import (
    Download,
    assert_complete,
    assert_never_a_lie,
    download,
    wait_until,
)
from tests.support.fake_hub import FakeHub, Fault
from tests.support.model_files import SHARDS, make_repository, sha256_of, wanted_files, write_shard

FIRST, SECOND = SHARDS
UNREACHABLE = {"INTERNLM_HUB_ENDPOINT": "http://127.0.0.1:9"}
NO_NETWORK = """
    import sys

    def refuse(event, arguments):
        if event.startswith("socket.") or event == "subprocess.Popen":
            sys.stderr.write(f"TRIPWIRE {event}\\n")
            raise RuntimeError(event)

    sys.addaudithook(refuse)
"""
JUMPING_CLOCK = """
    import itertools
    import time

    hours = itertools.cycle([0, 9000, -9000, 400_000, -300_000])
    real = time.time
    time.time = lambda: real() + 3600 * next(hours)
"""


def test_a_download_killed_at_twenty_random_moments_ends_with_exact_bytes(hub: FakeHub, model_dir: Path) -> None:
    make_repository(hub.directory, (1_500_000, 1_000_000))
    hub.rate = 60_000  # the first shard takes longer than all twenty lives together
    moments = random.Random(4)
    for _ in range(20):
        asked = len(hub.requests)
        running = Download(model_dir, hub)
        wait_until(lambda asked=asked: len(hub.requests) > asked)  # type: ignore[misc]
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(moments.uniform(0.0, 0.9))
        running.send(signal.SIGKILL)
        running.process.wait()
        assert_never_a_lie(model_dir, hub.directory)
    hub.rate = 0
    assert download(model_dir, hub).code == 0
    assert_complete(model_dir, hub.directory)
    assert any(ranges_of(hub, FIRST)), "the last life went on where the others had got to"


def test_sigterm_stops_at_once_and_the_next_start_resumes(hub: FakeHub, model_dir: Path, tmp_path: Path) -> None:
    hub.faults = [Fault("stall", 120_000, FIRST, 1)]
    message = tmp_path / "termination-log"
    message.touch()
    running = Download(model_dir, hub, INTERNLM_TERMINATION_LOG=str(message))
    partial = model_dir / (FIRST + PARTIAL_SUFFIX)
    wait_until(lambda: partial.exists() and partial.stat().st_size == 120_000 and (model_dir / SECOND).exists())
    running.send(signal.SIGTERM)
    outcome = running.wait()
    assert outcome.code == 128 + signal.SIGTERM, outcome.log
    assert message.read_text().startswith("stopped: SIGTERM; what has arrived is kept")
    assert partial.stat().st_size == 120_000
    assert download(model_dir, hub).code == 0
    assert_complete(model_dir, hub.directory)
    assert ranges_of(hub, FIRST) == [None, "bytes=120000-"]
    assert ranges_of(hub, SECOND) == [None]


def test_a_place_for_the_outcome_that_cannot_be_looked_at_fails_no_download(hub: FakeHub, model_dir: Path) -> None:
    outcome = download(model_dir, hub, INTERNLM_TERMINATION_LOG=f"/dev/{'x' * 300}")
    assert outcome.code == 0, outcome.log


def test_two_pods_on_one_volume_fetch_every_file_once(hub: FakeHub, model_dir: Path, tmp_path: Path) -> None:
    hub.faults = [Fault("trickle", 100_000, FIRST)]
    first = Download(model_dir, hub, HOME=str(tmp_path / "home1"))
    wait_until(lambda: bool(hub.file_requests))
    second = Download(model_dir, hub, HOME=str(tmp_path / "home2"))
    second.wait_for_log("waiting for ")
    assert f"(process {first.process.pid})" in second.log
    assert (first.wait().code, second.wait().code) == (0, 0)
    assert_complete(model_dir, hub.directory)
    fetched = [request.query["FilePath"] for request in hub.file_requests]
    assert sorted(fetched) == sorted(wanted_files(hub.directory))


def test_when_the_pod_that_downloads_is_killed_the_waiting_one_takes_over(hub: FakeHub, model_dir: Path) -> None:
    hub.faults = [Fault("stall", 150_000, FIRST, 1)]
    first = Download(model_dir, hub)
    partial = model_dir / (FIRST + PARTIAL_SUFFIX)
    wait_until(lambda: partial.exists() and partial.stat().st_size == 150_000)
    second = Download(model_dir, hub, INTERNLM_DOWNLOAD_BUDGET="30")
    second.wait_for_log("waiting for ")
    first.send(signal.SIGKILL)
    first.process.wait()
    outcome = second.wait()
    assert outcome.code == 0, outcome.log
    assert_complete(model_dir, hub.directory)
    assert ranges_of(hub, FIRST) == [None, "bytes=150000-"]


def test_a_pod_does_not_wait_for_ever_for_one_that_gets_no_further(hub: FakeHub, model_dir: Path) -> None:
    hub.faults = [Fault("stall", 150_000, FIRST)]
    first = Download(model_dir, hub, INTERNLM_DOWNLOAD_BUDGET="60")
    partial = model_dir / (FIRST + PARTIAL_SUFFIX)
    wait_until(lambda: partial.exists() and partial.stat().st_size == 150_000)
    outcome = download(model_dir, hub)
    assert outcome.code == 1
    assert "download failed: locked: " in outcome.last_line
    assert f"(process {first.process.pid})" in outcome.last_line
    first.send(signal.SIGTERM)
    first.wait()


def test_a_complete_18_gb_volume_starts_without_a_socket_in_less_than_a_second(model_dir: Path, tmp_path: Path) -> None:
    lay_out_18_gb(model_dir)
    outcome = download(model_dir, None, **customized(tmp_path, NO_NETWORK))
    assert outcome.code == 0, outcome.log
    assert "TRIPWIRE" not in outcome.log
    assert "complete: Shanghai_AI_Laboratory/internlm3-8b-instruct master" in outcome.last_line
    # Processor time, because wall time on a busy machine says little; the process waits for nothing.
    assert outcome.cpu_seconds < 1


def test_the_tripwire_notices_a_download(hub: FakeHub, model_dir: Path, tmp_path: Path) -> None:
    outcome = download(model_dir, hub, **customized(tmp_path, NO_NETWORK))
    assert outcome.code != 0
    assert "TRIPWIRE" in outcome.log


def test_a_complete_volume_needs_no_hub(hub: FakeHub, model_dir: Path) -> None:
    assert download(model_dir, hub).code == 0
    asked = len(hub.requests)
    for arguments in ([], ["--verify"]):
        outcome = download(model_dir, hub, *arguments, **UNREACHABLE)
        assert outcome.code == 0, outcome.log
    assert len(hub.requests) == asked
    assert_complete(model_dir, hub.directory)


@pytest.mark.parametrize(
    ("damage", "victim"),
    [
        pytest.param("truncate", FIRST, id="a truncated shard"),
        pytest.param("tamper", FIRST, id="a shard with a changed byte"),
        pytest.param("delete", SECOND, id="a deleted shard"),
        pytest.param("grow", SECOND, id="a shard that has grown"),
        pytest.param("tamper", "config.json", id="a configuration with a changed byte"),
        pytest.param("tamper quietly", "tokenizer.model", id="a tokenizer changed under its old modification time"),
        pytest.param("directory", "README.md", id="a directory in a file's place"),
    ],
)
def test_damage_under_a_valid_manifest_is_noticed_and_mended(
    hub: FakeHub, model_dir: Path, damage: str, victim: str
) -> None:
    assert download(model_dir, hub).code == 0
    inflict(damage, model_dir / victim)
    without_hub = download(model_dir, hub, **UNREACHABLE)
    assert without_hub.code == 1
    assert f"{victim} " in without_hub.log
    assert "unreachable" in without_hub.last_line
    if damage == "directory":
        assert "link or a directory" in download(model_dir, hub).last_line
        (model_dir / victim).rmdir()
    hub.requests.clear()
    outcome = download(model_dir, hub)
    assert outcome.code == 0, outcome.log
    assert_complete(model_dir, hub.directory)
    assert [request.query["FilePath"] for request in hub.file_requests] == [victim]


def test_a_weight_changed_under_its_old_modification_time_is_found_by_verify(hub: FakeHub, model_dir: Path) -> None:
    make_repository(hub.directory, (9_000_000, 2000))
    assert download(model_dir, hub).code == 0
    inflict("tamper quietly", model_dir / FIRST)
    assert download(model_dir, hub).code == 0, "quick checks trust a large file's time"
    outcome = download(model_dir, hub, "--verify")
    assert outcome.code == 0, outcome.log
    assert f"{FIRST} has other bytes" in outcome.log
    assert_complete(model_dir, hub.directory)


def test_a_volume_restored_from_a_copy_is_hashed_once_and_kept(hub: FakeHub, model_dir: Path) -> None:
    make_repository(hub.directory, (9_000_000, 2000))
    assert download(model_dir, hub).code == 0
    os.utime(model_dir / FIRST, ns=(1, 1))
    assert download(model_dir, hub, **UNREACHABLE).code == 0
    manifest = manifests.read(model_dir)
    assert manifest
    assert {file.path: file.mtime_ns for file in manifest.files}[FIRST] == 1
    assert_complete(model_dir, hub.directory)


@pytest.mark.parametrize("garbage", ["", "{}", "[]", '{"format": 1, "files": [], "digest": ""}', "\x00" * 50])
def test_a_damaged_manifest_counts_as_none(hub: FakeHub, model_dir: Path, garbage: str) -> None:
    assert download(model_dir, hub).code == 0
    hub.requests.clear()
    (model_dir / manifests.NAME).write_text(garbage)
    assert download(model_dir, hub).code == 0
    assert not hub.file_requests, "what is there is hashed, not fetched"
    assert_complete(model_dir, hub.directory)


@pytest.mark.parametrize(
    "left",
    [
        pytest.param(lambda right: right[:100_000] + bytes(50_000), id="an end lost in a crash of the node"),
        pytest.param(lambda right: bytes(len(right)), id="the whole length of wrong bytes"),
        pytest.param(lambda right: right + b"more", id="more than the file has"),
        pytest.param(lambda right: b"", id="nothing"),
    ],
)
def test_what_a_former_life_left_half_done_does_not_end_up_in_the_model(
    hub: FakeHub, model_dir: Path, left: Callable[[bytes], bytes]
) -> None:
    model_dir.mkdir()
    (model_dir / (FIRST + PARTIAL_SUFFIX)).write_bytes(left((hub.directory / FIRST).read_bytes()))
    outcome = download(model_dir, hub)
    assert outcome.code == 0, outcome.log
    assert_complete(model_dir, hub.directory)


def test_a_file_that_had_arrived_whole_but_not_got_its_name_is_not_fetched_again(hub: FakeHub, model_dir: Path) -> None:
    model_dir.mkdir()
    shutil.copy(hub.directory / FIRST, model_dir / (FIRST + PARTIAL_SUFFIX))
    assert download(model_dir, hub).code == 0
    assert_complete(model_dir, hub.directory)
    assert not ranges_of(hub, FIRST)


def test_a_journal_that_cannot_be_read_costs_a_hash_and_nothing_else(hub: FakeHub, model_dir: Path) -> None:
    hub.faults = [Fault("status", 403, SECOND)]
    assert download(model_dir, hub).code == 1
    hub.faults.clear()
    journal = model_dir / SCRATCH / "journal.json"
    assert FIRST in journal.read_text()
    journal.write_text("[half")
    hub.requests.clear()
    assert download(model_dir, hub).code == 0
    assert_complete(model_dir, hub.directory)
    assert [request.query["FilePath"] for request in hub.file_requests] == [SECOND]
    assert not journal.exists()


def test_a_file_changed_since_it_was_verified_is_verified_again(hub: FakeHub, model_dir: Path) -> None:
    hub.faults = [Fault("status", 403, SECOND)]
    assert download(model_dir, hub).code == 1
    hub.faults.clear()
    inflict("tamper", model_dir / FIRST)
    assert download(model_dir, hub).code == 0
    assert_complete(model_dir, hub.directory)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_waiting_pod_stops_when_told(hub: FakeHub, model_dir: Path, number: signal.Signals) -> None:
    model_dir.mkdir()
    with volume_lock(prepare(model_dir), 1, lambda: 0):
        waiting = Download(model_dir, hub, INTERNLM_DOWNLOAD_BUDGET="60")
        waiting.wait_for_log("waiting for ")
        waiting.send(number)
        outcome = waiting.wait()
    assert outcome.code == 128 + number
    assert f"stopped: {number.name}" in outcome.last_line
    assert "Traceback" not in outcome.log
    assert not hub.requests


def test_a_clock_that_jumps_by_years_changes_nothing(hub: FakeHub, model_dir: Path, tmp_path: Path) -> None:
    hub.faults = [Fault("cut", 50_000, FIRST, 2), Fault("status", 503, SECOND, 2)]
    environment = customized(tmp_path, JUMPING_CLOCK)
    outcome = download(model_dir, hub, **environment, INTERNLM_DOWNLOAD_BUDGET="30")
    assert outcome.code == 0, outcome.log
    assert download(model_dir, hub, **environment, **UNREACHABLE).code == 0
    assert_complete(model_dir, hub.directory)


def lay_out_18_gb(model_dir: Path) -> None:
    """InternLM3's layout with holes instead of weights, under a manifest (whose big hashes nobody compares)."""
    make_repository(model_dir)
    for name in ("modeling_internlm3.py", "pytorch_model.bin", ".gitattributes", "training.pkl"):
        (model_dir / name).unlink()
    shutil.rmtree(model_dir / "figures")
    for number, (name, size) in enumerate(zip(SHARDS, (9_932_000_000, 8_068_000_000), strict=True)):
        write_shard(model_dir / name, size, f"layer.{number}", 0, sparse=True)
    files = []
    for path in model_dir.iterdir():
        found = path.stat()
        digest = "0" * 64 if path.name in SHARDS else sha256_of(path)
        files.append(FileRecord(path.name, found.st_size, digest, found.st_mtime_ns, listed=True))
    assert sum(file.size for file in files) > 18_000_000_000
    repo = "Shanghai_AI_Laboratory/internlm3-8b-instruct"
    Manifest("modelscope", repo, "master", None, "2030-01-01T00:00:00+00:00", "test", tuple(files)).write(model_dir)


def customized(tmp_path: Path, code: str) -> dict[str, str]:
    """An environment in which every Python process runs `code` first."""
    site = tmp_path / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(textwrap.dedent(code))
    return {"PYTHONPATH": f"{site}:{Path(__file__).parents[2]}"}


def ranges_of(hub: FakeHub, name: str) -> list[str | None]:
    """The Range of each request for a file, in order."""
    return [request.headers.get("range") for request in hub.file_requests if request.query["FilePath"] == name]


def inflict(damage: str, path: Path) -> None:
    before = path.stat()
    if damage == "delete":
        path.unlink()
    elif damage == "truncate":
        os.truncate(path, before.st_size - 1)
    elif damage == "grow":
        os.truncate(path, before.st_size + 1)
    elif damage == "directory":
        path.unlink()
        path.mkdir()
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        if damage == "tamper quietly":
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
