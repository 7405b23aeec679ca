"""Figures side by side: more is better for a rate, less for a time, and a ratio says how much better the engine is."""

import pytest

from tests.bench.load import Rates
from tests.bench.measures import CONTINUOUS_BATCHING, ENGINE, LIMIT, REFERENCE, Measure, Table, measures_of

STEP = Measure("decode_step", "batch", 64)
RATE = Measure("tokens_per_second", "concurrent", 64, is_time=False)


def table(measure: Measure, **row: float) -> Table:
    found = Table()
    for who, figure in row.items():
        found.put(measure, who, figure)
    return found


def test_a_time_is_shown_in_milliseconds_and_the_shorter_one_is_the_better() -> None:
    line = table(STEP, limit=0.006, engine=0.008, reference=0.048).line(STEP)
    assert line == {
        "measure": "decode_step",
        "batch": 64,
        "limit_ms": 6.0,
        "engine_ms": 8.0,
        "reference_ms": 48.0,
        "of_limit": 0.75,
        "over_reference": 6.0,
    }


def test_the_higher_rate_is_the_better() -> None:
    line = table(RATE, engine=6000, limit=8000, continuous_batching=1000).line(RATE)
    assert (line["of_limit"], line["over_continuous_batching"]) == (0.75, 6.0)
    assert line["engine"] == 6000


def test_without_the_engine_there_is_nothing_to_compare() -> None:
    found = table(RATE, limit=8000)
    assert found.line(RATE) == {"measure": "tokens_per_second", "concurrent": 64, "limit": 8000}
    for other in (LIMIT, REFERENCE, CONTINUOUS_BATCHING):
        with pytest.raises(KeyError):
            found.ratio(RATE, other)


def test_a_measure_of_another_size_is_another_row() -> None:
    found = table(STEP, engine=0.008)
    found.put(Measure("decode_step", "batch", 1), ENGINE, 0.006)
    assert found.line(STEP)["engine_ms"] == 8.0


def test_only_the_rate_of_requests_is_none_of_their_times() -> None:
    found = measures_of(Rates(5, 1, 2, 3, 4), "concurrent", 1)
    assert {measure.name: (measure.is_time, figure) for measure, figure in found} == {
        "tokens_per_second": (False, 5),
        "ttft_p50": (True, 1),
        "ttft_p99": (True, 2),
        "tpot_p50": (True, 3),
        "tpot_p99": (True, 4),
    }
