"""Back-off, jitter and budget, on a clock that the test moves."""

import math
from collections.abc import Callable

import pytest

from service.delivery.failures import TREATMENTS, Cause, DeliveryFailed
from service.delivery.retry import MAX_DELAY_SECONDS, MAX_RETRY_AFTER_SECONDS, keep_trying


class World:
    """A clock, a volume, and attempts that fail as told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.bytes = 0
        self.delays: list[float] = []
        self.attempts = 0

    def sleep(self, seconds: float) -> None:
        self.delays.append(seconds)
        self.now += seconds

    def keep_trying(self, attempt: Callable[[], str], budget: float = 100.0) -> str:
        def counted() -> str:
            self.attempts += 1
            return attempt()

        return keep_trying(
            counted,
            lambda: self.bytes,
            budget=budget,
            first_delay=1,
            clock=lambda: self.now,
            sleep=self.sleep,
            jitter=lambda low, high: (low + high) / 2,
        )

    def breaking(self, cause: Cause, until: int | None = None) -> Callable[[], str]:
        """An attempt that takes a while, brings a megabyte and breaks, but for number `until`."""

        def attempt() -> str:
            self.now += 50
            self.bytes += 1_000_000
            if self.attempts == until:
                return "done"
            raise DeliveryFailed(cause, "it broke")

        return attempt


def failing(cause: Cause, retry_after: float | None = None) -> Callable[[], str]:
    def attempt() -> str:
        raise DeliveryFailed(cause, "it broke", retry_after=retry_after)

    return attempt


def test_delays_double_up_to_a_minute_and_the_budget_ends_them() -> None:
    world = World()
    with pytest.raises(DeliveryFailed, match="hub-error: it broke"):
        world.keep_trying(failing(Cause.HUB_ERROR), budget=300)
    expected = [min(2.0**n, MAX_DELAY_SECONDS) * 0.75 for n in range(len(world.delays))]
    assert world.delays == expected
    assert world.now <= 300


def test_what_succeeds_is_returned() -> None:
    outcomes = iter([Cause.DNS, Cause.TIMEOUT, None])

    def attempt() -> str:
        cause = next(outcomes)
        if cause:
            raise DeliveryFailed(cause, "not yet")
        return "done"

    world = World()
    assert world.keep_trying(attempt) == "done"
    assert world.attempts == 3


@pytest.mark.parametrize("cause", [cause for cause in Cause if TREATMENTS[cause].attempts is not None])
def test_a_cause_that_waiting_does_not_mend_gets_no_more_than_its_attempts(cause: Cause) -> None:
    world = World()
    with pytest.raises(DeliveryFailed):
        world.keep_trying(failing(cause), budget=1e9)
    assert world.attempts == TREATMENTS[cause].attempts


def test_every_cause_has_a_treatment_that_names_what_to_do() -> None:
    assert set(TREATMENTS) == set(Cause)
    assert all(treatment.remedy for treatment in TREATMENTS.values())


def test_a_link_that_keeps_getting_further_is_never_given_up() -> None:
    world = World()
    assert world.keep_trying(world.breaking(Cause.UNREACHABLE, until=100), budget=60) == "done"
    assert set(world.delays) == {0.75}, "progress starts the back-off anew"


LIMITED = [cause for cause in Cause if (TREATMENTS[cause].attempts or 0) > 1]


@pytest.mark.parametrize("cause", LIMITED)
def test_what_gets_further_is_not_given_up_for_what_it_overcame(cause: Cause) -> None:
    world = World()
    assert world.keep_trying(world.breaking(cause, until=20)) == "done"


@pytest.mark.parametrize("cause", LIMITED)
def test_where_it_gets_no_further_the_attempts_since_then_count(cause: Cause) -> None:
    world = World()

    def attempt() -> str:
        world.now += 50
        world.bytes = min(10, world.attempts) * 1_000_000
        raise DeliveryFailed(cause, "it broke")

    with pytest.raises(DeliveryFailed):
        world.keep_trying(attempt, budget=1e9)
    assert world.attempts == 10 + (TREATMENTS[cause].attempts or 0) - 1


@pytest.mark.parametrize("cause", [cause for cause in Cause if TREATMENTS[cause].attempts == 1])
def test_a_cause_that_is_worth_one_attempt_ends_even_what_got_further(cause: Cause) -> None:
    world = World()
    with pytest.raises(DeliveryFailed):
        world.keep_trying(world.breaking(cause))
    assert world.attempts == 1


def test_a_trickle_is_no_progress() -> None:
    world = World()

    def attempt() -> str:
        world.now += 50
        world.bytes += 100
        raise DeliveryFailed(Cause.STALLED, "slow")

    with pytest.raises(DeliveryFailed):
        world.keep_trying(attempt, budget=200)
    assert world.attempts < 6


def test_the_hub_may_say_when_to_come_back() -> None:
    world = World()
    with pytest.raises(DeliveryFailed):
        world.keep_trying(failing(Cause.THROTTLED, retry_after=30), budget=100)
    assert set(world.delays) == {30}


@pytest.mark.parametrize("retry_after", [-5.0, 0.0, math.nan])
def test_a_moment_that_does_not_lie_ahead_is_none(retry_after: float) -> None:
    world = World()
    with pytest.raises(DeliveryFailed):
        world.keep_trying(failing(Cause.THROTTLED, retry_after=retry_after))
    assert world.delays[:3] == [0.75, 1.5, 3.0]


def test_the_hub_may_not_say_to_wait_for_days() -> None:
    world = World()
    with pytest.raises(DeliveryFailed):
        world.keep_trying(failing(Cause.THROTTLED, retry_after=math.inf), budget=2000)
    assert set(world.delays) == {MAX_RETRY_AFTER_SECONDS}


def test_pods_that_failed_together_do_not_come_back_together() -> None:
    delays: list[float] = []
    ticks = iter(range(10**6))
    with pytest.raises(DeliveryFailed):
        keep_trying(
            failing(Cause.DNS),
            lambda: 0,
            budget=50,
            first_delay=1,
            clock=lambda: next(ticks),
            sleep=delays.append,
        )
    longest = [min(2.0**n, MAX_DELAY_SECONDS) for n in range(len(delays))]
    assert all(limit / 2 <= delay <= limit for limit, delay in zip(longest, delays, strict=True))
    assert len(set(delays)) == len(delays)
