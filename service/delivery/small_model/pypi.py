"""One wheel from a Python package index, by pinned version and hash, through the operator's own pip.

pip is asked, not the index, so that the mirrors, proxies, certificates and credentials that work for `pip install`
on this machine work here too.
"""

import os
import re
import select
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from service.delivery.reporting.progress import DOWNLOADING, Progress
from service.delivery.small_model.pip_failure import explain

_RAW_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_KEPT_LINES = 500
_SILENCE_SECONDS = 0.5


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

    `progress` is called at least twice a second, also while an index is silent; what it raises ends pip.
    `keep_open` are file descriptors pip inherits: a lock stays held while an orphaned pip still writes.
    Raises IndexUnreachable, or ConfigurationError for everything else that pip cannot do, each with the way out.
    """
    directory.mkdir(parents=True)
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    code, lines = _run_pip(_command(requirements, directory), progress, keep_open)
    if code:
        raise explain(wheel.requirement, wheel.sha256, lines)
    (file,) = directory.glob("*.whl")
    progress(DOWNLOADING, file.stat().st_size, file.stat().st_size)
    return file


def _command(requirements: Path, directory: Path) -> list[str]:
    # Below -vv pip keeps to itself why an index did not answer.
    pip = [sys.executable, "-m", "pip", "-vv", "--disable-pip-version-check", "--no-input"]
    safety = ["--no-deps", "--require-hashes", "--only-binary=:all:"]
    return [*pip, "download", *safety, "--progress-bar=raw", "-r", str(requirements), "-d", str(directory)]


def _run_pip(command: list[str], progress: Progress, keep_open: Iterable[int]) -> tuple[int, list[str]]:
    """Run pip, feed its byte counts to `progress`; its exit code and its last lines."""
    kept: deque[str] = deque(maxlen=_KEPT_LINES)
    done = total = 0
    with subprocess.Popen(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        pass_fds=tuple(keep_open),
        start_new_session=True,  # Ctrl-C is ours to handle: pip's own account of it would read as a failure
    ) as pip:
        assert pip.stdout is not None
        try:
            for line in _lines(pip.stdout):
                if counted := _RAW_PROGRESS.match(line):
                    done, total = int(counted[1]), int(counted[2])
                elif line:
                    kept.append(line)
                if counted or not line:
                    progress(DOWNLOADING, done, total)
        except BaseException:
            pip.kill()
            raise
    return pip.returncode, list(kept)


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines as they come, stripped; an empty one whenever none came for a while."""
    rest = b""
    while True:
        if not select.select([stream], [], [], _SILENCE_SECONDS)[0]:
            yield ""
            continue
        piece = os.read(stream.fileno(), 65536)
        *lines, rest = (rest + (piece or b"\n")).split(b"\n")
        yield from (line.decode("utf-8", "replace").strip() for line in lines)
        if not piece:
            return
