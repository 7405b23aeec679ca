"""One wheel from a Python package index, by pinned version and hash, through the operator's own pip.

pip is asked, not the index, so that the mirrors, proxies, certificates and credentials that work for `pip install`
on this machine work here too.
"""

import errno
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from service.delivery.progress import Progress
from service.errors import ConfigurationError

PHASE = "downloading"
_RAW_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_KEPT_LINES = 200
_CONNECTION = re.compile(
    r"connection broken|connection error|connection reset|connection refused|name resolution|timed out|"
    r"network is unreachable|could not fetch url|SSLError|ProxyError",
    re.IGNORECASE,
)
_QUOTED_CAUSE = re.compile(r"connection broken by '(.+?)': /|connection error: (.+)", re.IGNORECASE)


class IndexUnreachable(ConfigurationError):
    """No package index answered: there is no network, or pip is not told the way through it."""


@dataclass(frozen=True)
class PinnedWheel:
    """A wheel nobody can exchange: name, version and the sha256 of the file (hexadecimal)."""

    package: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


def fetch_wheel(wheel: PinnedWheel, directory: Path, progress: Progress, keep_open: Iterable[int] = ()) -> Path:
    """Download `wheel` into `directory` (which it makes) and return its file.

    `keep_open` are file descriptors pip inherits: a lock stays held while an orphaned pip still writes.
    Raises IndexUnreachable, or ConfigurationError for everything else that pip cannot do, each with the way out.
    """
    directory.mkdir(parents=True)
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    code, lines = _run_pip(_command(requirements, directory), progress, keep_open)
    if code:
        raise _explain(wheel, lines)
    (file,) = directory.glob("*.whl")
    progress(PHASE, file.stat().st_size, file.stat().st_size)
    return file


def _command(requirements: Path, directory: Path) -> list[str]:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    safety = ["--no-deps", "--require-hashes", "--only-binary=:all:"]
    return [*pip, "download", *safety, "--progress-bar=raw", "-r", str(requirements), "-d", str(directory)]


def _run_pip(command: list[str], progress: Progress, keep_open: Iterable[int]) -> tuple[int, list[str]]:
    """Run pip, feed its byte counts to `progress`; its exit code and its last lines."""
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    pip = subprocess.Popen(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=environment,
        pass_fds=tuple(keep_open),
    )
    try:
        assert pip.stdout is not None
        for line in pip.stdout:
            if counted := _RAW_PROGRESS.match(line):
                progress(PHASE, int(counted[1]), int(counted[2]))
            else:
                lines.append(line.strip())
        return pip.wait(), list(lines)
    finally:
        pip.kill()
        pip.communicate()


def _explain(wheel: PinnedWheel, lines: list[str]) -> ConfigurationError:
    """What went wrong, in one line, and what helps. pip's messages are English whatever the locale."""
    output = "\n".join(lines)
    cause = f"pip could not fetch {wheel.requirement}"
    if "DO NOT MATCH THE HASHES" in output:
        return ConfigurationError(
            f"{cause}: the index served another file than the one pinned by sha256 {wheel.sha256}, so it was not used. "
            "Point pip at an index that has the original (PIP_INDEX_URL), or set INTERNLM_MODEL_DIR to a model's."
        )
    if f"[Errno {errno.ENOSPC}]" in output:
        return no_space(cause, None)
    if _CONNECTION.search(output):
        return IndexUnreachable(
            f"{cause}: no package index answered ({_connection_cause(lines)}). Connect this machine, tell pip the way "
            "(PIP_INDEX_URL, PIP_PROXY, pip.conf), or set INTERNLM_MODEL_DIR to a model directory."
        )
    return ConfigurationError(
        f"{cause}: {_last_complaint(lines)}. Mend pip's configuration (`pip config debug` shows it), "
        "or set INTERNLM_MODEL_DIR to a model directory."
    )


def no_space(cause: str, directory: Path | None) -> ConfigurationError:
    """The error for a full disk; `directory` unknown when the full one may be pip's own temporary directory."""
    where = directory or "the cache directory or in pip's temporary directory (TMPDIR)"
    return ConfigurationError(
        f"{cause}: no space left in {where}. Free some, or set INTERNLM_CACHE_DIR to a directory with room."
    )


def _connection_cause(lines: list[str]) -> str:
    for line in reversed(lines):
        if found := _QUOTED_CAUSE.search(line):
            return (found[1] or found[2]).strip()
    return next(line for line in reversed(lines) if _CONNECTION.search(line))


def _last_complaint(lines: list[str]) -> str:
    complaints = [line for line in lines if line.startswith("ERROR:")] or [line for line in lines if line]
    return complaints[-1].removeprefix("ERROR:").strip().rstrip(".") if complaints else "it said nothing"
