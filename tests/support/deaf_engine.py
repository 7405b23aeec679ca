"""An engine process that says Hello, beats, and hears neither Stop nor SIGTERM. Argument: the run directory."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

from service.engine.base import EngineStats
from service.engine.process import wire

run_dir = Path(sys.argv[1])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
run_dir.mkdir(mode=0o700)
(run_dir / "engine.pid").write_text(str(os.getpid()))
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
    listener.bind(str(run_dir / "engine.sock"))
    listener.listen()
    print("listening", flush=True)
    connection, _ = listener.accept()
    connection.sendall(wire.frame(wire.Hello("of another version", "", os.getpid())))
    while True:
        connection.sendall(wire.frame(wire.Beat("", 0.0, EngineStats(), None)))
        time.sleep(0.02)
