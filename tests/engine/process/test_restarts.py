"""The restart policy: ever longer waits, and an end to them."""

from service.engine.process.restarts import RestartPolicy


def test_the_wait_doubles_up_to_its_limit_while_the_engine_dies_young() -> None:
    policy = RestartPolicy(first_delay=0.5, longest_delay=5, attempts=3, steady=60)
    assert [policy.delay_after_death(served=1) for _ in range(6)] == [0.5, 1, 2, 4, 5, 5]


def test_an_engine_that_served_for_a_while_is_forgiven_its_past() -> None:
    policy = RestartPolicy(first_delay=0.5, steady=60)
    assert [policy.delay_after_death(served) for served in (1, 1, 59, 60, 1)] == [0.5, 1, 2, 0.5, 1]


def test_it_gives_up_after_some_starts_in_a_row_that_never_got_ready() -> None:
    policy = RestartPolicy(first_delay=0.5, attempts=3)
    assert [policy.delay_after_death(None) for _ in range(3)] == [0.5, 1, None]


def test_a_start_that_got_ready_begins_the_count_anew() -> None:
    policy = RestartPolicy(first_delay=1, attempts=2)
    assert policy.delay_after_death(None) == 1
    assert policy.delay_after_death(0) == 2
    assert policy.delay_after_death(None) == 4
    assert policy.delay_after_death(None) is None


def test_a_thousand_deaths_overflow_nothing() -> None:
    policy = RestartPolicy(longest_delay=30)
    assert {policy.delay_after_death(1) for _ in range(5000)} >= {30.0}
