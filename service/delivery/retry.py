"""Again, after a pause: exponential back-off with jitter, until it works, is hopeless, or the budget is spent.

The budget counts seconds of failing without progress worth the name, and so do the attempts that a cause is worth:
a link that keeps getting further is never given up. Bytes that have to be fetched again are no progress.
"""

import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from service.delivery.failures import Cause, DeliveryFailed
from service.delivery.hubs.client import LEAST_BYTES_PER_SECOND

log = logging.getLogger(__name__)

T = TypeVar("T")
MAX_DELAY_SECONDS = 60.0
MAX_RETRY_AFTER_SECONDS = 600.0


def keep_trying(
    attempt: Callable[[], T],
    high_water: Callable[[], int],
    *,
    budget: float,
    first_delay: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    jitter: Callable[[float, float], float] = random.uniform,
) -> T:
    """The result of the first attempt that succeeds; raises the last DeliveryFailed otherwise.

    `high_water` is the most bytes that ever lay on the volume: bytes that had to be thrown away do not count twice.
    """
    failed: Counter[Cause] = Counter()
    mark, since, streak = high_water(), clock(), 0
    while True:
        try:
            return attempt()
        except DeliveryFailed as failure:
            gained = high_water() - mark
            if gained > LEAST_BYTES_PER_SECOND * (clock() - since):
                mark, since, streak = mark + gained, clock(), 0
                failed.clear()
            failed[failure.cause] += 1
            streak += 1
            delay = _delay(failure, streak, first_delay, jitter)
            _give_up_if_hopeless(failure, failed, clock() + delay - since, budget)
            log.warning("%s; trying again in %.1f s", failure, delay)
            sleep(delay)


def _delay(failure: DeliveryFailed, streak: int, first: float, jitter: Callable[[float, float], float]) -> float:
    """Half to all of the doubled delay, so that pods that failed together do not come back together; or what the hub
    asks for, if that lies ahead."""
    if failure.retry_after is not None and failure.retry_after > 0:
        return min(failure.retry_after, MAX_RETRY_AFTER_SECONDS)
    longest = min(first * 2.0 ** min(streak - 1, 30), MAX_DELAY_SECONDS)
    return jitter(longest / 2, longest)


def _give_up_if_hopeless(failure: DeliveryFailed, failed: Counter[Cause], spent: float, budget: float) -> None:
    if failure.attempts is not None and failed[failure.cause] >= failure.attempts:
        raise failure
    if spent > budget:
        log.error("no progress for the %.0f s of INTERNLM_DOWNLOAD_BUDGET", budget)
        raise failure
