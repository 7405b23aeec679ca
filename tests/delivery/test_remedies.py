"""What is named against a model that does not fit: values that would do, and no more than would do."""

import re
from dataclasses import replace

import pytest

from service.delivery.checks.fit import Demand, compute_fit
from service.delivery.checks.remedies import LOWERED, MOST_FRACTION, FitsHow, remedies
from service.engine.config import INTERNLM3_8B
from service.engine.defaults import BLOCK_TOKENS
from tests.delivery.test_fit import ELEMENTS, GIB

DEFAULT = Demand(32_768, 256, 2048, 0.9)
EIGHT_BIT = replace(DEFAULT, quantization="int8")
FIELDS = {each.setting: each.field for each in LOWERED} | {"INTERNLM_GPU_MEMORY_FRACTION": "memory_fraction"}
STEPS = {each.field: each.step for each in LOWERED} | {"memory_fraction": -0.01}


def on_gpu_of(gib: float) -> FitsHow:
    total = int(gib * GIB)
    return lambda demand: compute_fit(INTERNLM3_8B, ELEMENTS, demand, total, total)


def named(demand: Demand, gib: float) -> dict[str, float]:
    """The values by the fields of `Demand`."""
    said = remedies(demand, on_gpu_of(gib), int(gib * GIB))
    return {FIELDS[name]: float(value) for name, value in re.findall(r"(INTERNLM_\w+)=([\d.]+)", said)}


CASES = {
    "a batch too large": (replace(DEFAULT, running=1024), 23.0),
    "steps too large": (replace(DEFAULT, step_tokens=100_000), 24.0),
    "a little more of the GPU": (DEFAULT, 22.0),
    "a cache too large": (replace(DEFAULT, kv_cache_tokens=300_000), 30.0),
}


@pytest.mark.parametrize(("demand", "gib"), CASES.values(), ids=CASES.keys())
def test_each_setting_that_is_named_does_alone_and_no_less_would(demand: Demand, gib: float) -> None:
    fits = on_gpu_of(gib)
    assert not fits(demand).is_whole
    values = named(demand, gib)
    assert values
    for field, value in values.items():
        kind = type(getattr(demand, field))
        assert fits(replace(demand, **{field: kind(value)})).is_whole, (field, value)
        beyond = kind(value + STEPS[field])
        assert not fits(replace(demand, **{field: beyond})).is_whole, (field, beyond)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("a batch too large", {"running", "max_context"}),
        ("steps too large", {"step_tokens"}),
        ("a little more of the GPU", {"max_context", "memory_fraction"}),
        ("a cache too large", {"kv_cache_tokens"}),
    ],
)
def test_settings_that_would_not_do_are_not_named(case: str, expected: set[str]) -> None:
    assert named(*CASES[case]).keys() == expected


@pytest.mark.parametrize("demand", [replace(DEFAULT, running=1024), replace(DEFAULT, step_tokens=100_000)])
def test_where_none_holds_a_whole_context_settings_that_serve_at_all_are_named(demand: Demand) -> None:
    """On a card of 22 GiB, whose default context shrinks."""
    fits = on_gpu_of(22)
    assert not any(fits(replace(demand, **{field: 1})).is_whole for field in ("running", "step_tokens"))
    values = named(demand, 22)
    assert values
    for field, value in values.items():
        assert fits(replace(demand, **{field: type(getattr(demand, field))(value)})).is_enough


@pytest.mark.parametrize(("demand", "gib"), [(EIGHT_BIT, 12.0), (DEFAULT, 11.2)])
def test_where_no_single_setting_does_several_are_named_that_do_together(demand: Demand, gib: float) -> None:
    said = remedies(demand, on_gpu_of(gib), int(gib * GIB)).removeprefix("no single setting makes it fit: set ")
    assert said.startswith("INTERNLM_QUANTIZATION=int8 and ") == (demand is DEFAULT)
    assert "INTERNLM_GPU_MEMORY_FRACTION=0.97 and INTERNLM_MAX_" in said
    values = {field: type(getattr(DEFAULT, field))(value) for field, value in named(demand, gib).items()}
    assert values.keys() == {"memory_fraction", "running", "step_tokens", "max_context"}
    assert on_gpu_of(gib)(replace(EIGHT_BIT, **values)).is_enough  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gib", "others"), [(16, []), (19, []), (22, ["INTERNLM_MAX_CONTEXT", "INTERNLM_GPU_MEMORY_FRACTION"])]
)
def test_quantization_is_named_behind_what_changes_no_answer_or_alone(gib: int, others: list[str]) -> None:
    said = remedies(DEFAULT, on_gpu_of(gib), gib * GIB)
    assert re.findall(r"(INTERNLM_\w+)=", said) == [*others, "INTERNLM_QUANTIZATION"]
    assert " or INTERNLM_QUANTIZATION=int8, or use a GPU of 24 GiB" in said.replace("set ", "set or ")
    assert on_gpu_of(gib)(EIGHT_BIT).is_whole


def test_quantization_is_not_named_where_it_would_not_do_or_is_there() -> None:
    assert "QUANTIZATION" not in remedies(DEFAULT, on_gpu_of(9), 9 * GIB)
    assert "QUANTIZATION" not in remedies(EIGHT_BIT, on_gpu_of(12), 12 * GIB)


def test_a_cache_between_two_blocks_is_missing_the_larger_one() -> None:
    whole = on_gpu_of(40)(DEFAULT).tokens
    demand = replace(DEFAULT, kv_cache_tokens=whole + 1)
    assert int(remedies(demand, on_gpu_of(40), 40 * GIB).rpartition(" of ")[2].removesuffix(" GiB")) == 41


@pytest.mark.parametrize("demand", [DEFAULT, EIGHT_BIT])
def test_where_the_weights_alone_are_too_large_only_another_gpu_helps(demand: Demand) -> None:
    said = remedies(demand, on_gpu_of(9), 9 * GIB)
    size = int(said.removeprefix("no setting makes it fit: use a GPU of ").removesuffix(" GiB"))
    assert on_gpu_of(size)(demand).is_whole
    assert not on_gpu_of(size - 1)(demand).is_whole


def test_the_gpu_that_would_do_holds_the_cache_that_was_asked_for() -> None:
    demand = CASES["a cache too large"][0]
    said = remedies(demand, on_gpu_of(30), 30 * GIB)
    size = int(said.rpartition("use a GPU of ")[2].removesuffix(" GiB"))
    fit = on_gpu_of(size)(demand)
    assert fit.tokens >= 300_000
    assert not on_gpu_of(size - 1)(demand).is_whole


def test_some_memory_is_left_to_others() -> None:
    demand = replace(DEFAULT, memory_fraction=MOST_FRACTION)
    assert "memory_fraction" not in named(demand, 20.0)


def test_a_cache_is_asked_for_in_whole_blocks() -> None:
    fits = on_gpu_of(80)
    assert fits(replace(DEFAULT, kv_cache_tokens=1)).least_tokens == BLOCK_TOKENS
    assert fits(replace(DEFAULT, kv_cache_tokens=BLOCK_TOKENS + 1)).least_tokens == 2 * BLOCK_TOKENS
    assert fits(DEFAULT).least_tokens == BLOCK_TOKENS
