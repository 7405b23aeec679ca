"""`internlm-chat download` as a real process: started, watched, stopped, judged by what it leaves on the disk."""

import os
import resource
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.delivery import manifest as manifests
from tests.support.fake_hub import FakeHub
from tests.support.model_files import sha256_of, wanted_files

PATIENCE_SECONDS = 60.0
QUICK = {
    "INTERNLM_DOWNLOAD_RETRY_DELAY": "0.05",
    "INTERNLM_DOWNLOAD_BUDGET": "1",
    "INTERNLM_DOWNLOAD_STALL_TIMEOUT": "20",
    "INTERNLM_LOG_FORMAT": "console",
}
"""The waits that an operator sets in minutes, in fractions of a second."""


@dataclass
class Outcome:
    """What a finished process left: exit code, log, seconds of wall and processor time."""

    code: int
    log: str
    wall_seconds: float
    cpu_seconds: float
    max_rss_kib: int

    @property
    def last_line(self) -> str:
        return self.log.strip().splitlines()[-1]


class Download:
    """One running download. `environment` are further variables; None removes one."""

    def __init__(self, model_dir: Path, hub: FakeHub | None, *arguments: str, **environment: str | None) -> None:
        self.model_dir = model_dir
        # In memory: the volume beside it may be full or read-only.
        self._log = os.memfd_create("download.log")
        weakref.finalize(self, os.close, self._log)
        variables: dict[str, str | None] = {**os.environ, **QUICK, "INTERNLM_MODEL_DIR": str(model_dir)}
        if hub:
            variables |= {"INTERNLM_HUB_ENDPOINT": hub.endpoint, "INTERNLM_MODEL_REPO": hub.repo}
        variables |= environment
        self._began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service", "download", *arguments],
            env={name: value for name, value in variables.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    @property
    def log(self) -> str:
        return os.pread(self._log, os.fstat(self._log).st_size, 0).decode()

    def wait(self) -> Outcome:
        """The outcome, within a minute or the test fails."""
        status, usage = _wait4(self.process)
        wall = time.monotonic() - self._began
        return Outcome(status, self.log, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait_for_log(self, text: str) -> None:
        wait_until(lambda: text in self.log or self.process.poll() is not None)
        assert text in self.log, self.log


def download(model_dir: Path, hub: FakeHub | None, *arguments: str, **environment: str | None) -> Outcome:
    """Run one to its end."""
    return Download(model_dir, hub, *arguments, **environment).wait()


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    """Poll `condition`; a test that waits in vain fails by name instead of hanging."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def assert_complete(model_dir: Path, repository: Path) -> None:
    """Exactly the wanted files with exactly the repository's bytes, and a manifest that says so."""
    expected = wanted_files(repository)
    assert {name: sha256_of(model_dir / name) for name in expected} == expected
    manifest = manifests.read(model_dir)
    assert manifest is not None
    assert {file.path: file.sha256 for file in manifest.files} == expected
    visible = {path.name for path in model_dir.iterdir() if not path.name.startswith(".internlm-")}
    assert visible == set(expected)


def assert_never_a_lie(model_dir: Path, repository: Path) -> None:
    """What holds after any failure: no manifest, or one over exactly the right bytes."""
    manifest = manifests.read(model_dir) if model_dir.is_dir() else None
    if manifest is not None:
        expected = wanted_files(repository)
        assert {file.path: file.sha256 for file in manifest.files} == expected
        assert {name: sha256_of(model_dir / name) for name in expected} == expected


def _wait4(process: subprocess.Popen[bytes]) -> tuple[int, resource.struct_rusage]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            pytest.fail(f"the download still ran after {PATIENCE_SECONDS:.0f} s")
        time.sleep(0.005)
