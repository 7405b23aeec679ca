"""The series an operator can rely on, with and without a GPU."""

import re

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.engine.base import EngineInfo, EngineState, EngineStats, EngineStatus, FinishReason, GpuMemory
from service.metrics import Metrics

INFO = EngineInfo(
    kind="native",
    device="cuda:0",
    dtype="bfloat16",
    max_context=32768,
    max_running=256,
    vocab_size=128512,
    versions={"torch": "2.13.0"},
    degraded=["gemv: off by 3.0e-01", "cuda_graphs: batch size 4: no", "cuda_graphs: batch size 8: no"],
    startup_seconds={"weights": 8.5},
    weights_bytes_per_second=2e9,
)
GPU = GpuMemory(index=0, name="H100", total=80, used=60, allocated=40, reserved=50)


def scrape(status: EngineStatus, ready: bool = True) -> dict[str, list[tuple[dict[str, str], float]]]:
    text = generate_latest(Metrics(lambda: status, lambda: ready).registry).decode()
    return {
        sample.name: [(s.labels, s.value) for s in family.samples if s.name == sample.name]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_an_engine_that_is_not_up_yet_has_a_state_and_no_info() -> None:
    found = scrape(EngineStatus(state=EngineState.STARTING), ready=False)
    assert ({"state": "starting"}, 1.0) in found["internlm_engine_state"]
    assert sum(value for _, value in found["internlm_engine_state"]) == 1
    assert found["internlm_ready"] == [({}, 0.0)]
    assert "internlm_engine_info" not in found


def test_a_running_engine_tells_load_totals_phases_and_what_is_degraded() -> None:
    stats = EngineStats(running=3, waiting=2, kv_blocks_total=100, kv_blocks_used=40, generation_tokens=7, steps=9)
    found = scrape(EngineStatus(state=EngineState.READY, info=INFO, stats=stats, restarts=1))
    assert found["internlm_num_requests_running"] == [({}, 3.0)]
    assert found["internlm_num_requests_waiting"] == [({}, 2.0)]
    assert ({"use": "running"}, 40.0) in found["internlm_kv_blocks_in_use"]
    assert found["internlm_generation_tokens_total"] == [({}, 7.0)]
    assert found["internlm_engine_restarts_total"] == [({}, 1.0)]
    assert found["internlm_startup_seconds"] == [({"phase": "weights"}, 8.5)]
    assert found["internlm_weights_bytes_per_second"] == [({}, 2e9)]
    assert found["internlm_engine_degraded"] == [({"path": name}, 1.0) for name in ("cuda_graphs", "gemv")]
    assert found["internlm_engine_info"][0][0]["torch"] == "2.13.0"
    assert found["internlm_engine_info"][0][0]["quantization"] == "none"


def test_the_model_is_one_by_its_manifest_and_the_last_one_found_counts() -> None:
    metrics = Metrics(lambda: EngineStatus(state=EngineState.STARTING), lambda: False)
    assert "internlm_model_info{" not in generate_latest(metrics.registry).decode()
    metrics.model_found("old", None, None)
    metrics.model_found("internlm3-8b-instruct", "9fd2", "ab" * 32)
    (line,) = re.findall("^internlm_model_info{.*", generate_latest(metrics.registry).decode(), re.MULTILINE)
    assert line == f'internlm_model_info{{manifest="{"ab" * 32}",model="internlm3-8b-instruct",revision="9fd2"}} 1.0'


def test_gpu_memory_is_absent_without_a_gpu() -> None:
    found = scrape(EngineStatus(state=EngineState.READY, info=INFO))
    assert not [name for name in found if "gpu_memory" in name]


def test_gpu_memory_tells_device_from_process() -> None:
    found = scrape(EngineStatus(state=EngineState.READY, info=INFO, stats=EngineStats(gpus=[GPU])))
    used = {labels["scope"]: value for labels, value in found["internlm_gpu_memory_used_bytes"]}
    assert used == {"device": 60, "process_allocated": 40, "process_reserved": 50}
    assert found["internlm_gpu_memory_total_bytes"] == [({"gpu": "0", "name": "H100"}, 80.0)]


@pytest.mark.parametrize("reason", list(FinishReason))
def test_every_outcome_exists_at_zero_from_the_first_scrape(reason: FinishReason) -> None:
    found = scrape(EngineStatus(state=EngineState.READY))
    assert ({"outcome": reason.value}, 0.0) in found["internlm_requests_total"]


def test_every_series_has_our_prefix_and_no_colon() -> None:
    found = scrape(EngineStatus(state=EngineState.READY, info=INFO, stats=EngineStats(gpus=[GPU])))
    ours = {name for name in found if not name.startswith("process_")}
    assert all(name.startswith("internlm_") and ":" not in name for name in ours)


def test_the_web_process_tells_its_age_memory_and_open_files() -> None:
    found = scrape(EngineStatus(state=EngineState.READY))
    for name in ("process_start_time_seconds", "process_resident_memory_bytes", "process_open_fds", "process_max_fds"):
        assert found[name][0][1] > 0


@pytest.mark.parametrize("name", ["request_duration", "time_to_first_token", "request_queue_time"])
def test_a_request_that_takes_as_long_as_it_may_has_a_bucket(name: str) -> None:
    """Longer than 60 s all would look alike; a request may take 300 s, and an operator may allow more."""
    found = scrape(EngineStatus(state=EngineState.READY))
    bounds = {labels["le"] for labels, _ in found[f"internlm_{name}_seconds_bucket"]}
    assert {"120.0", "300.0", "600.0"} <= bounds
