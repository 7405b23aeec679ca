"""The parent's side of the child that talks to a hub: start it, watch that it gets further, end it, read its reply."""

import contextlib
import json
import logging
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from service.delivery.catalog import Catalog, RemoteFile, read_listing
from service.delivery.failures import Cause, DeliveryFailed
from service.delivery.symptoms import Symptom, diagnose
from service.delivery.worker import Request

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
LEAST_BYTES_PER_SECOND = 1024
"""A transfer slower than this over a whole stall timeout counts as stalled: 17.6 GB would take half a year."""


@dataclass(frozen=True)
class HubClient:
    """One repository of one hub. `module` is the child's program, `request` the template of what it is asked."""

    module: str
    request: Request
    lock: int

    def list_files(self) -> Catalog:
        """What the repository holds now; raises DeliveryFailed."""
        asked = f"listing {self.request.repo}@{self.request.revision}"
        reply = self._ask(replace(self.request, operation="list"), asked, lambda: 0, lambda _: None)
        return read_listing(reply["entries"], reply["commit"])

    def fetch(
        self, files: list[RemoteFile], bytes_here: Callable[[], int], on_bytes: Callable[[int], None]
    ) -> dict[str, DeliveryFailed]:
        """Bring `files` to the directory; the failure of each that could not be brought.

        `bytes_here` measures the volume, `on_bytes` is told what it measured. Raises DeliveryFailed when the whole
        transfer failed or stalled; what has arrived stays for the next attempt.
        """
        wanted = [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in files]
        reply = self._ask(replace(self.request, operation="fetch", files=wanted), "fetching", bytes_here, on_bytes)
        symptoms = {path: Symptom(**symptom) for path, symptom in reply["failures"].items()}
        return {path: diagnose(symptom, f"fetching {path}") for path, symptom in symptoms.items()}

    def _ask(
        self, request: Request, subject: str, bytes_here: Callable[[], int], on_bytes: Callable[[int], None]
    ) -> dict[str, Any]:
        with _child(self.module, request, self.lock) as child:
            _watch(child, request.stall_timeout, bytes_here, on_bytes)
            return _read_reply(child, subject)


class _Child:
    """A running child, its output so far, and the last lines it complained with."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.output = bytearray()
        self.complaints: deque[str] = deque(maxlen=5)
        self._readers = [
            threading.Thread(target=self._read_output, args=(process.stdout,), daemon=True),
            threading.Thread(target=self._read_complaints, args=(process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def finish(self) -> int:
        """Wait for the end of a child that is ending; its exit status."""
        status = self.process.wait()
        for reader in self._readers:
            reader.join()
        return status

    def activity(self) -> int:
        """Bytes it has read and written through file descriptors: it may be hashing what an earlier run left."""
        try:
            counters = Path(f"/proc/{self.process.pid}/io").read_text()
        except OSError:
            return 0
        return sum(int(line.split()[1]) for line in counters.splitlines() if line.startswith(("rchar", "wchar")))

    def _read_output(self, stream: IO[bytes]) -> None:
        with stream:
            while block := stream.read1(65536):  # type: ignore[attr-defined]
                self.output += block

    def _read_complaints(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                text = line.decode(errors="replace").rstrip()
                self.complaints.append(text)
                log.debug("hub client: %s", text)


@contextlib.contextmanager
def _child(module: str, request: Request, lock: int) -> Any:
    """A child in a session of its own (Ctrl-C is the parent's to handle); dead when the block is left."""
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        pass_fds=(lock,),
    )
    assert process.stdin
    child = _Child(process)
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request.to_json().encode() + b"\n")
            process.stdin.flush()
        yield child
    finally:
        process.kill()
        child.finish()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _watch(child: _Child, patience: float, bytes_here: Callable[[], int], on_bytes: Callable[[int], None]) -> None:
    """Return when the child has ended; raise DeliveryFailed when it did next to nothing for `patience` seconds."""
    window_start, mark = time.monotonic(), child.activity() + bytes_here()
    while child.process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(POLL_SECONDS)
        here, now = bytes_here(), time.monotonic()
        on_bytes(here)
        if now - window_start >= patience:
            gained = child.activity() + here - mark
            if gained < LEAST_BYTES_PER_SECOND * patience:
                raise DeliveryFailed(Cause.STALLED, f"{gained:,} bytes in {patience:.0f} s")
            window_start, mark = now, mark + gained


def _read_reply(child: _Child, subject: str) -> dict[str, Any]:
    status = child.finish()
    try:
        reply: dict[str, Any] = json.loads(child.output)
    except ValueError:
        last = child.complaints[-1] if child.complaints else "it said nothing"
        raise DeliveryFailed(
            Cause.CLIENT, f"{subject}: the hub client ended with status {status}: {last[:200]}"
        ) from None
    if error := reply.get("error"):
        raise diagnose(Symptom(**error), subject)
    return reply
