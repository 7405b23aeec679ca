"""Volumes that are full, read-only, forbidden or linked elsewhere, and processes that may not do much."""

import os
import re
import subprocess
import sys
from pathlib import Path

from service.delivery import manifest as manifests
from service.delivery.hubs.catalog import PARTIAL_SUFFIX
from tests.delivery.conftest import mount, needs_root
from tests.support.download_process import Download, assert_complete, download, wait_until
from tests.support.fake_hub import FakeHub, Fault
from tests.support.model_files import SHARDS, make_repository, write_shard

FIRST, SECOND = SHARDS
NOBODY = 65534


@needs_root
def test_a_volume_that_is_too_small_is_refused_with_the_exact_shortfall(hub: FakeHub, small_volume: Path) -> None:
    make_repository(hub.directory, (6_000_000, 6_000_000))
    model_dir = small_volume / "model"
    outcome = download(model_dir, hub)
    assert outcome.code == 1
    figures = re.search(
        r"no-space: .* needs ([\d,]+) more bytes and has ([\d,]+) free: ([\d,]+) bytes short", outcome.log
    )
    assert figures, outcome.log
    needed, free, short = (int(figure.replace(",", "")) for figure in figures.groups())
    assert needed - free == short
    assert needed > sum((hub.directory / name).stat().st_size for name in SHARDS)
    status = os.statvfs(model_dir)
    assert abs(free - status.f_bavail * status.f_frsize) < 1 << 16
    assert not hub.file_requests, "nothing is fetched that cannot be kept"


@needs_root
def test_a_disk_that_fills_up_meanwhile_ends_with_its_cause_and_resumes_once_grown(
    hub: FakeHub, small_volume: Path
) -> None:
    make_repository(hub.directory, (4_000_000, 1000))
    hub.faults = [Fault("trickle", 2_000_000, FIRST, 1)]
    model_dir = small_volume / "model"
    running = Download(model_dir, hub)
    partial = model_dir / (FIRST + PARTIAL_SUFFIX)
    wait_until(lambda: partial.exists() and partial.stat().st_size > 200_000)
    fill(small_volume / "other", leaving=500_000)
    outcome = running.wait()
    assert outcome.code == 1, outcome.log
    assert "download failed: no-space: " in outcome.last_line
    assert manifests.read(model_dir) is None
    mount("-o", "remount,size=64m", small_volume)
    assert download(model_dir, hub).code == 0
    assert_complete(model_dir, hub.directory)
    ranges = [r.headers.get("range") for r in hub.file_requests if r.query["FilePath"] == FIRST]
    assert ranges[-1] is not None, "the second run resumed"


def fill(path: Path, leaving: int) -> None:
    """Take the volume's free space but for `leaving` bytes."""
    status = os.statvfs(path.parent)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - leaving)


@needs_root
def test_a_read_only_volume_serves_a_complete_model_and_refuses_an_incomplete_one(
    hub: FakeHub, small_volume: Path
) -> None:
    model_dir = small_volume / "model"
    assert download(model_dir, hub).code == 0
    mount("-o", "remount,ro", small_volume)
    for arguments in ([], ["--verify"]):
        assert download(model_dir, hub, *arguments).code == 0
    mount("-o", "remount,rw", small_volume)
    (model_dir / FIRST).unlink()
    mount("-o", "remount,ro", small_volume)
    outcome = download(model_dir, hub)
    assert outcome.code == 1
    assert "download failed: read-only: " in outcome.last_line


@needs_root
def test_a_pod_without_root_home_or_a_writable_file_system_downloads(hub: FakeHub, small_volume: Path) -> None:
    """As in a pod with `runAsNonRoot`, `readOnlyRootFilesystem` and a volume: every other mount is read-only."""
    model_dir = small_volume / "model"
    lock_down = (
        f"mount --bind {small_volume} {small_volume} && mount -o remount,bind,ro / "
        "&& for d in /run /dev/shm; do mount -o remount,bind,ro $d 2>/dev/null; done; ! touch /tmp/x /x && exec "
    )
    isolated = ["unshare", "--mount", "--propagation=private", "sh", "-c", f'{lock_down} "$@"', "sh"]
    ran = run_as_nobody(model_dir, hub, isolated)
    assert ran.returncode == 0, ran.stderr
    assert_complete(model_dir, hub.directory)
    assert (model_dir / "config.json").stat().st_uid == NOBODY


@needs_root
def test_a_directory_of_somebody_else_is_named_as_such(hub: FakeHub, small_volume: Path) -> None:
    model_dir = small_volume / "model"
    model_dir.mkdir(mode=0o755)
    ran = run_as_nobody(model_dir, hub, [])
    assert ran.returncode == 1
    assert "not-permitted: " in ran.stderr
    assert "fsGroup" in ran.stderr
    assert not hub.requests


def run_as_nobody(model_dir: Path, hub: FakeHub, prefix: list[str]) -> subprocess.CompletedProcess[str]:
    """A download by an unprivileged user without a home. It may read what root may: the interpreter can lie there."""
    user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    reading = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/nonexistent",
        "INTERNLM_MODEL_DIR": str(model_dir),
        "INTERNLM_MODEL_REPO": hub.repo,
        "INTERNLM_HUB_ENDPOINT": hub.endpoint,
        "INTERNLM_LOG_FORMAT": "console",
    }
    command = [*prefix, "setpriv", *user, *reading, sys.executable, "-m", "service", "download"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_a_link_on_the_volume_is_not_written_through(hub: FakeHub, model_dir: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    for name in (FIRST, FIRST + PARTIAL_SUFFIX):
        model_dir.mkdir(exist_ok=True)
        (model_dir / name).symlink_to(outside)
        outcome = download(model_dir, hub)
        assert outcome.code == 1
        assert f"{name} is a link or a directory" in outcome.last_line
        (model_dir / name).unlink()
    assert outside.read_text() == "precious"
    assert not hub.file_requests


def test_a_linked_scratch_directory_is_refused(hub: FakeHub, model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    model_dir.mkdir()
    (model_dir / ".internlm-download").symlink_to(tmp_path / "elsewhere")
    outcome = download(model_dir, hub)
    assert outcome.code == 1
    assert ".internlm-download is a link" in outcome.last_line
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_model_directory_that_is_a_file_is_named_as_such(hub: FakeHub, model_dir: Path) -> None:
    model_dir.write_text("")
    outcome = download(model_dir, hub)
    assert outcome.code == 1
    assert str(model_dir) in outcome.last_line


def test_memory_stays_below_300_mb_whatever_the_size_of_a_file(hub: FakeHub, model_dir: Path) -> None:
    write_shard(hub.directory / FIRST, 600_000_000, "layer.0", 0, sparse=True)
    hub.digests(hub.directory / FIRST)
    running = Download(model_dir, hub)
    peaks: dict[int, int] = {}
    wait_until(lambda: sample_memory(running.process.pid, peaks) or running.process.poll() is not None)
    assert running.process.returncode == 0, running.log
    assert len(peaks) > 1, "the client's process is counted, too"
    assert sum(sorted(peaks.values())[-2:]) < 300_000_000 / 1024, peaks
    assert (model_dir / FIRST).stat().st_size > 600_000_000


def sample_memory(parent: int, peaks: dict[int, int]) -> None:
    """Note the peak resident KiB of a process and its children."""
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except OSError:
        return
    for pid in (parent, *map(int, children)):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        peaks[pid] = max(
            [int(line.split()[1]) for line in lines if line.startswith("VmHWM")], default=peaks.get(pid, 0)
        )


def test_a_million_entries_are_refused_in_less_than_300_mb(hub: FakeHub, model_dir: Path) -> None:
    hub.many_entries = 1_000_000
    running = Download(model_dir, hub)
    peaks: dict[int, int] = {}
    wait_until(lambda: sample_memory(running.process.pid, peaks) or running.process.poll() is not None)
    assert running.process.returncode == 1, running.log
    assert "bad-listing: " in running.log.splitlines()[-1]
    assert sum(sorted(peaks.values())[-2:]) < 300_000_000 / 1024, peaks
    assert not hub.file_requests


def test_sixteen_transfers_at_once_stay_within_the_limits(hub: FakeHub, model_dir: Path) -> None:
    for number in range(40):
        (hub.directory / f"part-{number}.json").write_text("{}" + " " * 5000)
    hub.rate = 50_000
    outcome = download(model_dir, hub, INTERNLM_DOWNLOAD_WORKERS="16")
    assert outcome.code == 0, outcome.log
    assert_complete(model_dir, hub.directory)
