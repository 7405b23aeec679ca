"""Chromium, driven by its own protocol over a pipe: no driver, no library, nothing fetched."""

import asyncio
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LACKING = f"needs a browser, one of {', '.join(NAMES)} (apt-get install chromium)"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--lang=en-US")
READS, WRITES = 3, 4
"""The file descriptors on which Chromium's --remote-debugging-pipe reads commands and writes replies and events."""

Event = dict[str, Any]


def executable() -> str | None:
    """Path of a browser on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A running browser. `send` may be awaited on any event loop; a thread reads what comes back."""

    def __init__(self, process: subprocess.Popen[bytes], commands: int, replies: int) -> None:
        self._process = process
        self._commands = commands
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self.events: dict[str, list[Event]] = defaultdict(list)
        """What happened so far, by session: `{"method", "params"}`."""
        threading.Thread(target=self._read, args=(replies,), name="browser", daemon=True).start()

    async def send(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """The result of a command. Raises RuntimeError with the browser's complaint."""
        number, reply = next(self._numbers), Future[dict[str, Any]]()
        self._waiting[number] = reply
        command = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        answer = await asyncio.wrap_future(reply)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self, replies: int) -> None:
        with os.fdopen(replies, "rb") as pipe:
            rest = b""
            while part := pipe.read1(1 << 20):
                *messages, rest = (rest + part).split(b"\0")
                for message in messages:
                    self._take(json.loads(message))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._waiting.pop(message["id"]).set_result(message)
        else:
            self.events[message.get("sessionId", "")].append(message)


@contextmanager
def run_browser(path: str) -> Iterator[Browser]:
    """A browser with an empty profile, for as long as the context lasts."""
    theirs_read, commands = _pipe()
    replies, theirs_write = _pipe()

    connected = f'exec "$0" "$@" {READS}<&{theirs_read} {WRITES}>&{theirs_write}'
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            ["bash", "-c", connected, path, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={Path(profile)}"],
            pass_fds=(theirs_read, theirs_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_read)
        os.close(theirs_write)
        try:
            yield Browser(process, commands, replies)
        finally:
            process.terminate()
            process.wait()
            os.close(commands)


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are none of the numbers that the child needs."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, WRITES + 1) for end in ends)
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
