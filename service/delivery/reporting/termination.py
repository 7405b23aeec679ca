"""The outcome, left where `kubectl describe pod` shows it."""

import logging
from pathlib import Path

log = logging.getLogger(__name__)

LIMIT_BYTES = 4096
"""Kubernetes keeps no more of a termination message."""


def leave_message(path: Path, message: str) -> None:
    """Write `message` to the termination log, if this is a pod that has one; never raises."""
    try:
        if path.exists():
            path.write_bytes(message.encode()[:LIMIT_BYTES])
    except OSError as error:
        log.debug("no termination message could be left in %s: %s", path, error)
