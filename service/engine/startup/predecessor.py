"""The GPU's memory may still be held by a predecessor that is being replaced: it is waited for, within bounds."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

Look = TypeVar("Look")

PREDECESSOR_SECONDS = 60.0
"""How long a predecessor may take to give its memory back: a pod's grace is over by then, a killed engine gone."""
NEIGHBOUR_SECONDS = 10.0
"""How long to wait where the engine can serve beside the other process, which may be there for good."""
NOTICE_SECONDS = 5.0
POLL_SECONDS = 0.5


def once_free(
    look: Callable[[], Look],
    in_the_way: Callable[[Look], str],
    patience: Callable[[Look], float],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Look:
    """The first look at the GPU with nobody else in the way, or the last one once the patience with it, in seconds, is
    over.

    `in_the_way` says what is wrong with a look only because another process holds memory; empty: nothing.
    """
    began = notice = clock()
    while True:
        found = look()
        complaint = in_the_way(found)
        if not complaint or clock() - began >= patience(found):
            return found
        if clock() >= notice:
            log.info("another process still holds memory of the GPU; waiting for it to go: %s", complaint)
            notice = clock() + NOTICE_SECONDS
        sleep(POLL_SECONDS)
