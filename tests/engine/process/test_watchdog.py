"""The watchdog's judgement, on a clock of our own."""

import pytest

from service.engine.process.watchdog import Watchdog


def a_watchdog() -> Watchdog:
    return Watchdog(step_timeout=60, heartbeat_timeout=10, heard=1000)


@pytest.mark.parametrize(
    ("age_at_beat", "silence", "complaint", "hopeless"),
    [
        (0, 0, "", False),
        (0, 10, "", False),
        (0, 11, "no sign of life for 11 s", False),
        (0, 121, "no sign of life for 121 s", True),
        (59, 0.5, "", False),
        (59, 1.5, "running for 60 s, longer than 60 s", False),
        (100, 1, "running for 101 s, longer than 60 s", False),
        (120, 1, "running for 121 s, longer than 60 s", True),
    ],
)
def test_the_age_of_a_step_and_silence_are_judged(
    age_at_beat: float, silence: float, complaint: str, hopeless: bool
) -> None:
    watchdog = a_watchdog()
    watchdog.beat(2000, age_at_beat)
    assert complaint in watchdog.complaint(2000 + silence)
    assert bool(watchdog.complaint(2000 + silence)) == bool(complaint)
    assert watchdog.hopeless(2000 + silence) is hopeless


def test_silence_from_the_start_counts_from_the_start() -> None:
    assert not a_watchdog().complaint(1009)
    assert a_watchdog().complaint(1011)


def test_the_result_of_a_step_ends_the_complaint() -> None:
    watchdog = a_watchdog()
    watchdog.beat(2000, 70)
    assert watchdog.complaint(2000)
    watchdog.progress(2001)
    assert not watchdog.complaint(2005)


def test_a_short_step_limit_does_not_shorten_the_patience_with_silence() -> None:
    watchdog = Watchdog(step_timeout=1, heartbeat_timeout=10, heard=0)
    assert not watchdog.hopeless(9)
    assert watchdog.hopeless(11)
