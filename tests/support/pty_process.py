"""A program on a terminal of its own: keys are typed, Ctrl-C becomes a signal in the kernel, output is waited for."""

import fcntl
import os
import select
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil

CTRL_C, CTRL_D = "\x03", "\x04"
PATIENCE_SECONDS = 60
"""Only a failing test waits so long."""


class PtyProcess:
    """A process and the master side of its terminal."""

    def __init__(self, command: Sequence[str], kind: str) -> None:
        self._master, slave = os.openpty()
        self._process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=os.environ | {"TERM": kind, "COLUMNS": "200"},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self._unread = ""
        self.output = ""

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def expect(self, text: str) -> str:
        """Read on until `text` comes; what came before it since the last time."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in self._unread:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} never came; the terminal shows:\n{self.output}"
            assert self._read(left), f"the program ended before {text!r}; the terminal shows:\n{self.output}"
        before, _, self._unread = self._unread.partition(text)
        return before

    def until_it_waits(self) -> None:
        """Wait until the program does. A Ctrl-C while Python draws its prompt or takes in a key stays unnoticed until
        the next key: what draws looks for signals only once it waits (readline_until_enter_or_signal of CPython)."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while psutil.Process(self._process.pid).status() != psutil.STATUS_SLEEPING:
            assert time.monotonic() < deadline, f"the program never waits; the terminal shows:\n{self.output}"
            time.sleep(0.001)

    def wait(self) -> int:
        """The exit status, once all output is read."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._read(deadline - time.monotonic()):
            assert time.monotonic() < deadline, f"the program goes on; the terminal shows:\n{self.output}"
        return self._process.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def _read(self, seconds: float) -> bool:
        """Wait for output; False at its end."""
        if not select.select([self._master], [], [], max(0.0, seconds))[0]:
            return True
        try:
            text = os.read(self._master, 65536).decode(errors="replace")
        except OSError:  # Linux reports a terminal whose last user left as EIO
            return False
        self.output += text
        self._unread += text
        return bool(text)


@contextmanager
def on_terminal(command: Sequence[str], kind: str = "xterm-256color") -> Iterator[PtyProcess]:
    """A program on a terminal of a kind (`TERM`), killed at the end if it still runs."""
    process = PtyProcess(command, kind)
    try:
        yield process
    finally:
        process.close()
