"""Bytes, rate and time to go: as log lines, as a bar, as metrics."""

import io
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.delivery.reporting.metrics import TransferMetrics
from service.delivery.reporting.progress import LogProgress
from service.delivery.reporting.transfer_progress import TransferLine, describe, show_transfer
from tests.support.download_process import QUICK, download
from tests.support.fake_hub import FakeHub


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_pod_logs_a_line_every_five_seconds(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    progress = LogProgress(TransferLine(clock), clock)
    with caplog.at_level(logging.INFO):
        for second in range(101):
            clock.now = float(second)
            progress("downloading", second * 100_000_000, 10_000_000_000)
    lines = caplog.messages
    assert len(lines) == 21
    assert lines[5] == "downloading: 2.50 of 10.00 GB (25 %), 100.0 MB/s, 1:15 to go"
    assert lines[-1] == "downloading: 10.00 of 10.00 GB (100 %), 100.0 MB/s"
    assert caplog.records[5].__dict__["fields"]["bytes_per_second"] == 100_000_000


def test_a_new_phase_and_an_end_are_logged_at_once_and_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    progress = LogProgress(TransferLine(clock), clock)
    with caplog.at_level(logging.INFO):
        for phase in ("downloading", "verifying"):
            for done in (0, 5, 10, 10, 10):
                progress(phase, done, 10)
    assert [line.split(":")[0] for line in caplog.messages] == ["downloading"] * 2 + ["verifying"] * 2


def test_a_rate_forgets_what_is_long_past(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    progress = LogProgress(TransferLine(clock), clock)
    with caplog.at_level(logging.INFO):
        for second in range(200):
            clock.now = float(second)
            progress("downloading", min(second, 100) * 10_000_000, 10_000_000_000)
    assert caplog.messages[-1].endswith("(10 %), 0.0 MB/s"), "nothing came for 100 s: no rate, no promise"


def test_bytes_that_are_thrown_away_give_no_negative_rate() -> None:
    assert describe("downloading", 0, 0, 0.0) == "downloading: 0.00 of 0.00 MB (100 %), 0.0 MB/s"
    assert describe("downloading", 10**9, 9 * 10**9, 10**6).endswith("2:13:20 to go")


def test_the_metrics_file_is_prometheus_text_and_replaced_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "delivery.prom"
    with show_transfer(file, io.StringIO()) as progress:
        progress("downloading", 40, 100)
        progress("downloading", 100, 100)
        progress("verifying", 100, 100)
    samples = {
        (sample.name, sample.labels.get("phase")): sample.value
        for family in text_string_to_metric_families(file.read_text())
        for sample in family.samples
    }
    assert samples["internlm_delivery_bytes", "downloading"] == 100
    assert samples["internlm_delivery_expected_bytes", "verifying"] == 100
    assert samples["internlm_delivery_updated_timestamp_seconds", None] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["delivery.prom"]


def test_a_metrics_file_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = TransferMetrics(tmp_path / "missing" / "delivery.prom")
    metrics("downloading", 1, 2)
    assert "INTERNLM_DOWNLOAD_METRICS_FILE" in caplog.text


def test_a_download_writes_its_metrics(hub: FakeHub, model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "delivery.prom"
    assert download(model_dir, hub, INTERNLM_DOWNLOAD_METRICS_FILE=str(file)).code == 0
    assert 'internlm_delivery_bytes{phase="downloading"}' in file.read_text()


def test_a_terminal_gets_a_bar(hub: FakeHub, model_dir: Path) -> None:
    leader, follower = pty.openpty()
    environment = (
        os.environ
        | QUICK
        | {
            "INTERNLM_MODEL_DIR": str(model_dir),
            "INTERNLM_HUB_ENDPOINT": hub.endpoint,
            "INTERNLM_MODEL_REPO": hub.repo,
            "TERM": "xterm",
        }
    )
    command = [sys.executable, "-m", "service", "download"]
    with subprocess.Popen(command, env=environment, stdout=follower, stderr=follower) as process:
        os.close(follower)
        shown = read_all(leader)
    assert process.returncode == 0, shown
    assert "downloading" in shown
    assert "━" in shown
    assert "downloading: " not in shown, "the bar says it, so the log does not"


def read_all(descriptor: int) -> str:
    content = b""
    try:
        while block := os.read(descriptor, 65536):
            content += block
    except OSError:  # how Linux says that the other end of a terminal is gone
        pass
    os.close(descriptor)
    return content.decode(errors="replace")
