"""Finds the engine process of a run directory, or starts one; ends it, and leaves no trace of it.

The starter opens the listening socket and hands it to the child, so that connecting never has to be retried, and a
child that dies is noticed as the end of the connection. The engine outlives the web worker that started it: the next
worker finds it, and need not load the model again.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from service.engine.base import EngineConfig
from service.engine.process import wire
from service.engine.process.run_dir import locked, pid_path, prepare, recorded_pid, remove_traces, socket_path
from service.errors import EngineFailed

logger = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", "service.engine.worker")
HELLO_TIMEOUT = 10.0
"""Seconds in which a running engine introduces itself. Its listener does nothing else, but an import may hold it up."""
EXIT_TIMEOUT = 15.0
"""Seconds an engine gets to end before it is killed."""
SPIN_COUNT = "1000"
"""Turns for which an idle OpenMP thread spins before it sleeps. By default it spins for milliseconds, and on a machine
or in a container whose cores are shared the threads then wait for each other's time slices: ten times slower steps
were measured on two busy cores (SmolLM2-135M, 1320 against 128 ms)."""


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What a starter tells the engine process, as JSON on its standard input."""

    config: EngineConfig
    run_dir: str
    listener: int  # file descriptor of the listening socket
    orphan_seconds: float


@dataclass(slots=True)
class EngineProcess:
    """An engine process: a child of this process, or one that was found."""

    pid: int
    child: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """End it at once. Only while connected to it, or as its parent: then the pid can be nobody else's."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def disown(self) -> None:
        """Leave a child to others who use it; should it end before this process does, it leaves no zombie."""
        if self.child is not None:
            threading.Thread(target=self.child.wait, name="engine reaper", daemon=True).start()

    def reap(self) -> str:
        """Wait for the end of a process whose connection has ended, and say how it ended. Blocks.

        Raises EngineFailed for one that not even SIGKILL ends: what it holds of the GPU is lost to a new one.
        """
        if self.child is None:
            return f"the engine process {self.pid} went away"
        for _ in range(2):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return describe_exit(self.child.wait(EXIT_TIMEOUT))
            self.kill()
        raise EngineFailed(
            f"the engine process {self.pid} was killed and does not end: it hangs in the kernel, most likely in the "
            "GPU's driver; the node's kernel log (dmesg) says more, and the node may need a restart"
        )


@dataclass(slots=True)
class Found:
    """An engine process and a connection to it."""

    process: EngineProcess
    connection: socket.socket


def describe_exit(status: int) -> str:
    """A sentence for an exit status as `subprocess` counts it: negative for a signal."""
    if status >= 0:
        return f"the engine process ended with exit code {status}"
    name = signal.Signals(-status).name
    hint = ", perhaps out of memory" if name == "SIGKILL" else ""
    return f"the engine process was killed by {name}{hint}"


def find_or_start(config: EngineConfig, run_dir: Path, command: Sequence[str], orphan_seconds: float) -> Found:
    """Connect to the run directory's engine if it is the one wanted; else end it and start that one. Blocks.

    Raises ConfigurationError for a run directory that cannot be used, OSError when no process can be started.
    """
    prepare(run_dir)
    with locked(run_dir):
        found = _find(config, run_dir)
        if found is not None:
            logger.info("found a running engine process", extra={"fields": {"pid": found.process.pid}})
            return found
        remove_traces(run_dir)
        try:
            found = _start(config, run_dir, command, orphan_seconds)
        except OSError:
            remove_traces(run_dir)
            raise
        logger.info("started an engine process", extra={"fields": {"pid": found.process.pid}})
        return found


def _find(config: EngineConfig, run_dir: Path) -> Found | None:
    """The running engine, if it is the wanted one; any other is ended."""
    connection = _connect(run_dir)
    if connection is None:
        return None
    hello = _greet(connection)
    if hello is not None and hello == wire.hello_of(config, hello.pid):
        connection.settimeout(None)
        return Found(EngineProcess(hello.pid), connection)
    with connection:
        _end(connection, hello.pid if hello else recorded_pid(run_dir), asked=hello is not None)
    return None


def _connect(run_dir: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(HELLO_TIMEOUT)
    try:
        connection.connect(str(socket_path(run_dir)))
    except OSError:
        connection.close()
        return None
    return connection


def _greet(connection: socket.socket) -> wire.Hello | None:
    """The engine's Hello; None when it is silent, gone, or no engine of this version."""
    try:
        hello = wire.receive(connection, wire.engine_decoder())
    except (TimeoutError, msgspec.DecodeError):
        return None
    return hello if isinstance(hello, wire.Hello) else None


def _end(connection: socket.socket, pid: int | None, *, asked: bool) -> None:
    """Have an engine end that is not wanted: ask one that can listen, kill one that does not."""
    logger.warning("ending an engine process that has other settings or is stuck", extra={"fields": {"pid": pid}})
    if asked:
        with contextlib.suppress(OSError):
            connection.sendall(wire.frame(wire.Stop(force=True)))
    if not _gone(connection, EXIT_TIMEOUT if asked else 0.0) and pid is not None:
        EngineProcess(pid).kill()
        _gone(connection, EXIT_TIMEOUT)


def _gone(connection: socket.socket, seconds: float) -> bool:
    """Read until the other side has gone; False when it is still there after so many seconds, silent or not.

    The kernel closes the connection when the process ends: this works for processes that are nobody's child.
    """
    deadline = time.monotonic() + seconds
    try:
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(65536):
                return True
    except ConnectionError:
        return True
    except TimeoutError:
        pass
    return False


def _start(config: EngineConfig, run_dir: Path, command: Sequence[str], orphan_seconds: float) -> Found:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(socket_path(run_dir)))
        listener.listen()
        orders = Orders(config=config, run_dir=str(run_dir), listener=listener.fileno(), orphan_seconds=orphan_seconds)
        child = subprocess.Popen(  # noqa: S603 - the command is ours
            command,
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            env={"GOMP_SPINCOUNT": SPIN_COUNT} | os.environ,
            start_new_session=True,  # Ctrl-C in a terminal is for the server, which then stops the engine in order
        )
        pid_path(run_dir).write_text(str(child.pid))
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(socket_path(run_dir)))
    assert child.stdin is not None
    # A child that has died already is found out by the end of its connection.
    with contextlib.suppress(BrokenPipeError), child.stdin:
        child.stdin.write(msgspec.json.encode(orders))
    return Found(EngineProcess(child.pid, child), connection)
