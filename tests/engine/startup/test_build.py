"""Building a core: what it reports, how large its cache gets, and which settings cannot work."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from service.delivery.checks.fit import Demand, kv_bytes_per_token
from service.engine.base import Core, EngineConfig, FinishReason
from service.engine.config import read_config
from service.engine.cuda.choose_paths import Choice, choose_paths
from service.engine.device import available_memory, choose_device, choose_dtype, usable_cores
from service.engine.kernels.candidate import ServedShapes
from service.engine.kernels.trials import Trials
from service.engine.startup.build import build_core
from service.engine.startup.build_runner import build_runner
from service.engine.startup.capacity import plan_capacity, step_limit
from service.errors import ConfigurationError
from tests.support.checkpoints import Shape, tensors_of, write_checkpoint
from tests.support.driving import drain, native, reasons_of
from tests.support.engines import a_request

CPU = torch.device("cpu")
SHAPE = Shape(max_positions=512)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), SHAPE)


def config_for(model_dir: Path, **changes: Any) -> EngineConfig:
    return EngineConfig(**({"kind": "native", "model_dir": str(model_dir), "device": "cpu", "threads": 1} | changes))


def build(model_dir: Path, **changes: Any) -> Core:
    return build_core(config_for(model_dir, **changes), lambda message: None)


@pytest.mark.parametrize("kind", ["native", "reference"])
def test_a_core_reports_what_was_loaded_and_how_long_it_took(model_dir: Path, kind: str) -> None:
    said: list[str] = []
    info = build_core(config_for(model_dir, kind=kind), said.append).info
    assert (info.kind, info.device, info.dtype) == (kind, "cpu", "float32")
    assert (info.max_context, info.vocab_size) == (512, SHAPE.vocab)
    assert info.max_running == {"native": 8, "reference": 1}[kind]
    assert info.versions["torch"] == torch.__version__
    assert ("transformers" in info.versions) == (kind == "reference")
    assert "weights" in info.startup_seconds
    assert (info.weights_bytes_per_second > 0) == (kind == "native")
    assert all(seconds >= 0 for seconds in info.startup_seconds.values())
    assert any("weights" in message for message in said)


def test_a_core_says_what_could_not_be_recorded(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_recorded(*arguments: Any) -> Any:
        runner, capacity = build_runner(*arguments)
        runner.graphs = SimpleNamespace(degraded=["cuda_graphs: batch size 8"])  # type: ignore[assignment]
        runner.segments = SimpleNamespace(degraded=["segments: 64 rows"])  # type: ignore[assignment]
        return runner, capacity

    monkeypatch.setattr("service.engine.startup.build.build_runner", half_recorded)
    assert build(model_dir).info.degraded == ["cuda_graphs: batch size 8", "segments: 64 rows"]


def test_a_core_says_which_fast_paths_do_not_serve(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(*arguments: Any) -> Choice:
        return replace(choose_paths(*arguments), degraded=["silu_mul: off"])

    monkeypatch.setattr("service.engine.startup.build.choose_paths", choose)
    assert build(model_dir).info.degraded == ["silu_mul: off"]


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_kernels_are_proved_for_the_weights_that_serve(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, quantization: str
) -> None:
    proved: list[str] = []

    def choose(shapes: ServedShapes, *rest: Any) -> Choice:
        proved.append(shapes.quantization)
        return choose_paths(shapes, *rest)

    monkeypatch.setattr("service.engine.startup.build.choose_paths", choose)
    assert build(model_dir, quantization=quantization).info.quantization == quantization
    assert proved == [quantization]
    assert ("a CPU widens quantized weights" in caplog.text) == (quantization == "int8")


def test_what_is_on_trial_is_noted_where_the_process_was_told(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[Trials] = []

    def choose(shapes: ServedShapes, max_running: int) -> Choice:
        noted.append(shapes.trials)
        return choose_paths(shapes, max_running)

    monkeypatch.setattr("service.engine.startup.build.choose_paths", choose)
    build(model_dir, trial_file=str(tmp_path / "trial"))
    build(model_dir)
    assert noted == [Trials(tmp_path / "trial"), Trials(None)]


def test_the_reports_are_structures_a_socket_can_carry(model_dir: Path) -> None:
    import msgspec

    core = build(model_dir)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(core.info), type=type(core.info)) == core.info
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(core.stats()), type=type(core.stats())) == core.stats()


@pytest.mark.parametrize(
    ("setting", "context"), [({}, 512), ({"max_context": 100}, 100), ({"kv_cache_tokens": 130}, 192)]
)
def test_the_context_is_the_least_of_setting_model_and_cache(
    model_dir: Path, setting: dict[str, int], context: int
) -> None:
    core = build(model_dir, **setting)
    assert core.info.max_context == context
    assert reasons_of(core.add(a_request([1] * 50, new=context))) != {}
    fitting = a_request([1] * 3, new=4)
    assert reasons_of(drain(core, [fitting])) == {fitting.id: FinishReason.LENGTH}


def test_the_engine_takes_the_threads_it_is_given(model_dir: Path) -> None:
    build(model_dir, threads=2)
    assert torch.get_num_threads() == 2
    build(model_dir, threads=0)
    assert torch.get_num_threads() == usable_cores()
    build(model_dir)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_can_be_asked_for(model_dir: Path, dtype: str) -> None:
    core = build(model_dir, dtype=dtype)
    assert core.info.dtype == dtype
    request = a_request([1, 2, 3], new=4)
    assert reasons_of(drain(core, [request])) == {request.id: FinishReason.LENGTH}


@pytest.mark.parametrize("kind", ["native", "reference"])
def test_a_checkpoint_with_a_tensor_missing_is_refused_by_both_engines(tmp_path: Path, kind: str) -> None:
    tensors = tensors_of(SHAPE)
    del tensors["model.norm.weight"]
    write_checkpoint(tmp_path, SHAPE, tensors=tensors)
    with pytest.raises(ConfigurationError, match=r"missing: model\.norm\.weight"):
        build(tmp_path, kind=kind)


def test_an_engine_without_a_model_is_not_built_here(model_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match="native or reference"):
        build(model_dir, kind="fake")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="INTERNLM_DEVICE=cuda"):
        choose_device("cuda")
    assert choose_device("auto") == CPU


def test_a_cpu_computes_in_fp32_unless_told_otherwise() -> None:
    assert choose_dtype("auto", CPU) == torch.float32
    assert choose_dtype("bfloat16", CPU) == torch.bfloat16


def capacity_blocks(model_dir: Path, **changes: Any) -> int:
    return plan_capacity(config_for(model_dir, **changes), read_config(model_dir), CPU, torch.float32).num_blocks


def test_a_cpus_cache_holds_every_running_request_at_its_longest(model_dir: Path) -> None:
    assert capacity_blocks(model_dir, max_running=3, block_size=64) == 3 * 512 // 64 + 1
    assert capacity_blocks(model_dir, max_running=3, max_context=100, block_size=16) == 300 // 16 + 1


@pytest.mark.parametrize(("tokens", "blocks"), [(1, 2), (64, 2), (65, 3), (6400, 101)])
def test_a_cache_size_that_is_asked_for_is_rounded_up_to_blocks(model_dir: Path, tokens: int, blocks: int) -> None:
    assert capacity_blocks(model_dir, kv_cache_tokens=tokens) == blocks


def test_a_cache_is_bounded_by_free_memory(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    per_token = kv_bytes_per_token(read_config(model_dir), 4)
    assert per_token == 2 * SHAPE.layers * SHAPE.kv_heads * SHAPE.head_dim * 4
    monkeypatch.setattr("service.engine.startup.capacity.available_memory", lambda: 4 * 1000 * per_token)
    assert capacity_blocks(model_dir, block_size=16) == 1000 // 16 + 1


def test_a_cache_that_does_not_fit_is_refused_with_the_numbers(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    per_token = kv_bytes_per_token(read_config(model_dir), 4)
    monkeypatch.setattr("service.engine.startup.capacity.available_memory", lambda: 500 * per_token)
    with pytest.raises(
        ConfigurationError,
        match=r"room for 1024 tokens of 256 bytes .* room for 500 .*; set INTERNLM_KV_CACHE_TOKENS=448",
    ):
        capacity_blocks(model_dir, kv_cache_tokens=1000)
    monkeypatch.setattr("service.engine.startup.capacity.available_memory", lambda: 0)
    with pytest.raises(ConfigurationError, match="room for 0"):
        capacity_blocks(model_dir)


@pytest.mark.parametrize(
    ("asked", "gib", "on_gpu", "on_cpu"),
    [(0, 24, 2048, 512), (0, 69.9, 2048, 512), (0, 79, 4096, 512), (64, 79, 64, 64)],
)
def test_a_gpus_step_computes_more_than_a_cpus_unless_told_otherwise(
    model_dir: Path, asked: int, gib: float, on_gpu: int, on_cpu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = int(gib * (1 << 30))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (total // 3, total))
    config = config_for(model_dir, step_tokens=asked)
    assert (step_limit(config, torch.device("cuda")), step_limit(config, CPU)) == (on_gpu, on_cpu)
    assert Demand.on_gpu(config, 2, total).step_tokens == on_gpu, "what is reckoned with before"


def test_a_built_core_computes_long_prompts_in_a_cpus_chunks(model_dir: Path) -> None:
    core = build(model_dir)
    assert core.add(a_request([1] * 505, new=2)) == []
    assert build(model_dir, step_tokens=100).info.max_context == core.info.max_context
    assert native(core)._scheduler._limits.step_tokens == 512


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", None), ("50000 100000", 1), ("100000 100000", 1), ("garbage", None), (None, None)],
)
def test_cores_are_bounded_by_the_containers_quota(tmp_path: Path, quota: str | None, cores: int | None) -> None:
    import os

    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path) == (cores or len(os.sched_getaffinity(0)))


MEMINFO = "MemTotal:       8000000 kB\nMemAvailable:    4000000 kB\n"
FREE = 4_000_000 * 1024


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, FREE),
        ({"memory.max": "max", "memory.current": "5"}, FREE),
        ({"memory.max": "1000000", "memory.current": "400000"}, 600_000),
        (
            {
                "memory.max": "1000000",
                "memory.current": "900000",
                "memory.stat": "anon 5\ninactive_file 300000\nactive_file 100000",
            },
            500_000,
        ),
        ({"memory.max": "1000000", "memory.current": "1200000"}, 0),
    ],
)
def test_free_memory_is_bounded_by_the_containers_limit(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(MEMINFO)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert available_memory(tmp_path, meminfo) == expected
