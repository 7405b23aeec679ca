"""The parent's side of the child that talks to a hub: start it, ask it, watch that it gets further, end it."""

import contextlib
import json
import logging
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from service.delivery.failures import Cause, DeliveryFailed
from service.delivery.hubs.catalog import Catalog, RemoteFile, read_listing
from service.delivery.hubs.verdict import judge
from service.delivery.hubs.worker import Request
from service.delivery.symptoms import Symptom, without_users

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
LEAST_BYTES_PER_SECOND = 1024
"""A transfer slower than this over a whole stall timeout counts as stalled: 17.6 GB would take half a year."""


class HubClient:
    """One repository of one hub, through a child that runs `module`. `request` is the template of what it is asked."""

    def __init__(self, module: str, request: Request, lock: int) -> None:
        self._module = module
        self._request = request
        self._lock = lock
        self._child: Child | None = None
        self._let_in = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child, if there is one; the next question starts another."""
        child, self._child = self._child, None
        if child:
            child.kill()

    def list_files(self) -> Catalog:
        """What the repository holds now; raises DeliveryFailed."""
        asked = f"listing {self._request.repo}@{self._request.revision}"
        reply = self._ask(replace(self._request, operation="list"), asked, lambda: 0, lambda _: None)
        self._let_in = True
        return read_listing(reply["entries"], reply["commit"])

    def fetch(
        self, files: list[RemoteFile], revision: str, bytes_here: Callable[[], int], on_bytes: Callable[[int], None]
    ) -> dict[str, DeliveryFailed]:
        """Bring `files` to the directory; the failure of each that could not be brought.

        `bytes_here` measures the volume, `on_bytes` is told what it measured. Raises DeliveryFailed when the whole
        transfer failed or stalled; what has arrived stays for the next attempt.
        """
        wanted = [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in files]
        request = replace(self._request, operation="fetch", revision=revision, files=wanted)
        symptoms = self._ask(request, "fetching", bytes_here, on_bytes)["failures"]
        return {path: self._judge(symptom, f"fetching {path}") for path, symptom in symptoms.items()}

    def _ask(
        self, request: Request, subject: str, bytes_here: Callable[[], int], on_bytes: Callable[[int], None]
    ) -> dict[str, Any]:
        """The child's answer. After a failure the child is ended: what it believes of the network may be the fault."""
        self._child = child = self._child or Child(self._module, self._lock)
        try:
            child.send(request)
            reply = _await_reply(child, subject, request.stall_timeout, bytes_here, on_bytes)
            if error := reply.get("error"):
                raise self._judge(error, subject)
        except BaseException:
            self.close()
            raise
        return reply

    def _judge(self, symptom: dict[str, Any], subject: str) -> DeliveryFailed:
        return judge(Symptom(**symptom), subject, let_in=self._let_in)


class Child:
    """A running child in a session of its own (Ctrl-C is the parent's to handle), and what it says."""

    def __init__(self, module: str, lock: int) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=(lock,),
        )
        self._replies: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._complaints: deque[str] = deque(maxlen=5)
        self._readers = [
            threading.Thread(target=self._read_replies, daemon=True),
            threading.Thread(target=self._read_complaints, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def send(self, request: Request) -> None:
        """Ask it; a child that has just died says so in its next reply."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(request.to_json().encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, seconds: float) -> bytes:
        """Its next reply, empty when it has ended; raises queue.Empty when there is none within `seconds`."""
        return self._replies.get(timeout=seconds)

    def activity(self) -> int:
        """Bytes it has read and written through file descriptors: it may be hashing what an earlier run left.

        0 where the kernel does not say; then only bytes that arrive count.
        """
        try:
            counters = Path(f"/proc/{self._process.pid}/io").read_text()
        except OSError:
            return 0
        return sum(int(line.split()[1]) for line in counters.splitlines() if line.startswith(("rchar", "wchar")))

    def kill(self) -> None:
        """End it; returns when it is gone."""
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join()
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def last_words(self) -> str:
        """Its exit status and the last line it complained with."""
        status = self._process.wait()
        self._readers[1].join()
        return f"status {status}: {self._complaints[-1][:200] if self._complaints else 'it said nothing'}"

    def _read_replies(self) -> None:
        assert self._process.stdout
        with self._process.stdout as stream:
            for line in stream:
                self._replies.put(line)
        self._replies.put(b"")

    def _read_complaints(self) -> None:
        assert self._process.stderr
        with self._process.stderr as stream:
            for line in stream:
                text = without_users(line.decode(errors="replace").rstrip())
                self._complaints.append(text)
                log.debug("hub client: %s", text)


def _await_reply(
    child: Child, subject: str, patience: float, bytes_here: Callable[[], int], on_bytes: Callable[[int], None]
) -> dict[str, Any]:
    """The child's reply; raises DeliveryFailed when it ends, or does next to nothing for `patience` seconds."""
    since, mark = time.monotonic(), child.activity() or bytes_here()
    while True:
        with contextlib.suppress(queue.Empty):
            return _decode(child, child.receive(POLL_SECONDS), subject)
        here, now = bytes_here(), time.monotonic()
        on_bytes(here)
        if now - since >= patience:
            gained = (child.activity() or here) - mark
            if gained < LEAST_BYTES_PER_SECOND * patience:
                raise DeliveryFailed(Cause.STALLED, f"{subject}: {gained:,} bytes in {patience:.0f} s")
            since, mark = now, mark + gained


def _decode(child: Child, line: bytes, subject: str) -> dict[str, Any]:
    if not line:
        raise DeliveryFailed(Cause.CLIENT, f"{subject}: the hub client ended with {child.last_words()}")
    reply: dict[str, Any] = json.loads(line)
    return reply
