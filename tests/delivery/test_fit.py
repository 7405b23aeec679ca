"""The memory arithmetic against known figures, and what the doctor makes of it."""

import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from service.delivery.checks.finding import State
from service.delivery.checks.fit import (
    Demand,
    Fit,
    compute_fit,
    count_elements,
    fit_of,
    kv_bytes_per_token,
    weight_bytes,
    working_bytes,
)
from service.delivery.checks.gpu import judge_fit
from service.delivery.disk.safetensors_header import read_header
from service.engine.attention import PagedCache
from service.engine.base import EngineConfig
from service.engine.config import INTERNLM3_8B, read_config
from service.engine.defaults import BLOCK_TOKENS, Quantization
from service.engine.quantization import Matrix, kept
from service.engine.startup.capacity import plan_capacity
from service.engine.weights import Weights, allocate
from service.settings import Settings
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.model_files import SHARDS, make_repository, write_shard

GIB = 1 << 30
README = Path(__file__).parents[2] / "charts/internlm-chat/README.md"
ELEMENTS = 8_804_241_408


def internlm3_fit(demand: Demand, free: int, total: int) -> Fit:
    return compute_fit(INTERNLM3_8B, ELEMENTS, demand, free, total)


def internlm3(total_gib: float, free_gib: float | None = None, **settings: object) -> tuple[State, str, str]:
    """The finding for InternLM3-8B-Instruct on a GPU of that size."""
    asked = Settings(**settings)  # type: ignore[arg-type]
    free = total_gib if free_gib is None else free_gib
    finding = judge_fit(asked, internlm3_fit, int(free * GIB), int(total_gib * GIB))
    return finding.state, finding.found, finding.remedy


def test_internlm3_needs_48_kib_for_a_token_and_17_6_gb_for_its_weights() -> None:
    assert kv_bytes_per_token(INTERNLM3_8B, 2) == 48 * 1024
    fit = compute_fit(INTERNLM3_8B, ELEMENTS, Demand(32768, 256, 512, 0.9), 80 * GIB, 80 * GIB)
    assert fit.weights == 17_608_482_816


def test_an_80_gib_gpu_holds_about_a_million_tokens() -> None:
    state, found, _ = internlm3(79.6)
    assert state is State.OK
    tokens = int(found.split("KV cache of ")[1].split(" tokens")[0].replace(",", ""))
    assert 1_000_000 < tokens < 1_200_000


def test_a_24_gib_gpu_serves_the_whole_context() -> None:
    assert internlm3(24)[0] is State.OK


def test_a_gpu_smaller_than_the_weights_is_refused_with_the_shortfall() -> None:
    state, found, remedy = internlm3(16)
    assert state is State.FAIL
    assert "16.4 GiB weights" in found
    assert "GiB short" in found
    assert remedy == "set INTERNLM_QUANTIZATION=int8, or use a GPU of 24 GiB"


def test_quantized_it_fits_a_gpu_smaller_than_the_weights() -> None:
    state, found, _ = internlm3(16, quantization="int8")
    assert state is State.OK, "the whole context"
    assert "8.7 GiB weights" in found
    assert internlm3(12, quantization="int8")[0] is State.FAIL


@pytest.mark.parametrize("quantization", get_args(Quantization))
@pytest.mark.parametrize("shape", [Shape(), Shape(tied=True, qkv_bias=True, bias=True), Shape(heads=4, kv_heads=1)])
def test_the_weights_bytes_are_those_the_engine_allocates(
    tmp_path: Path, shape: Shape, quantization: Quantization
) -> None:
    config = read_config(write_checkpoint(tmp_path, shape))
    weights = allocate(config, torch.device("cpu"), torch.bfloat16, quantization)
    tensors = {id(t): t for each in every(weights) for t in kept(each) if t is not None}
    demand = replace(Demand(512, 8, 512, 0.9), quantization=quantization)
    assert weight_bytes(config, count_elements(tmp_path), demand) == sum(tensor.nbytes for tensor in tensors.values())


def test_the_charts_readme_says_what_fits_with_eight_bits_and_without() -> None:
    table = README.read_text("utf-8").split("## Eight-bit weights")[1].split("\n## ")[0]
    rows = re.findall(r"^\| .*? of ([\d.]+) GiB .*? \| (.*?) \| (.*?) \|$", table, re.MULTILINE)
    assert len(rows) == 3
    for gib, *told in rows:
        total = int(float(gib) * GIB)
        for quantization, said in zip(get_args(Quantization), told, strict=True):
            asked = Demand.on_gpu(Settings(quantization=quantization), 2, total)
            fit = internlm3_fit(asked, total, total)
            assert said == (f"{fit.tokens:,}" if fit.is_enough else "does not fit"), (gib, quantization)
    weights = [
        weight_bytes(INTERNLM3_8B, ELEMENTS, replace(Demand(1, 1, 1, 1), quantization=q)) for q in ("none", "int8")
    ]
    assert f"| {weights[0] / GIB:.1f} GiB | {weights[1] / GIB:.1f} GiB |" in table


def test_a_context_that_shrinks_need_not_with_eight_bits() -> None:
    state, _, remedy = internlm3(22)
    assert (state, remedy.split(" or ")[-1]) == (State.WARN, "INTERNLM_QUANTIZATION=int8")
    assert "QUANTIZATION" not in internlm3(15, quantization="int8")[2]


def test_an_engine_that_does_not_quantize_is_not_told_to() -> None:
    for gib in (16, 22):
        assert "QUANTIZATION" in internlm3(gib)[2]
        assert "QUANTIZATION" not in internlm3(gib, engine="reference")[2]


def every(weights: Weights) -> Iterator[Matrix]:
    yield from (weights.embedding, weights.norm, weights.head)
    for layer in weights.layers:
        yield from (value for field in fields(layer) if (value := getattr(layer, field.name)) is not None)


def test_memory_that_another_process_holds_counts() -> None:
    remedy = "free the GPU: another process holds its memory"
    assert internlm3(80, free_gib=12)[::2] == (State.FAIL, remedy)
    assert internlm3(80, free_gib=8.01 + 20.5)[::2] == (State.WARN, remedy), "the context shrinks to what is left"


def test_a_context_that_was_asked_for_must_fit_and_the_setting_that_fits_is_named() -> None:
    state, _, remedy = internlm3(22.4, max_context=32768)
    assert state is State.FAIL
    context = int(remedy.removeprefix("set INTERNLM_MAX_CONTEXT="))
    assert 64 <= context < 32768
    assert internlm3(22.4, max_context=context)[0] is State.OK


def test_a_cache_that_was_asked_for_comes_before_a_context_that_may_shrink() -> None:
    state, _, remedy = internlm3(22.0, kv_cache_tokens=20_000)
    assert state is State.FAIL
    assert remedy.startswith("set INTERNLM_KV_CACHE_TOKENS=")


def test_the_default_context_shrinks_with_a_warning_that_says_to_what() -> None:
    state, found, remedy = internlm3(22.4)
    assert state is State.WARN
    tokens = int(remedy.removeprefix("set INTERNLM_MAX_CONTEXT=").split(" or ")[0])
    assert f"room for {tokens:,} tokens" in found


@pytest.mark.parametrize("gib", [22.8, 80])
@pytest.mark.parametrize("context", [{}, {"max_context": 32768}])
def test_a_cache_that_was_asked_for_is_all_there_will_be_and_the_context_shrinks_to_it(
    gib: float, context: dict[str, int]
) -> None:
    state, found, _ = internlm3(gib, kv_cache_tokens=4096, **context)
    assert state is State.OK
    assert found.endswith("; KV cache of 4,096 tokens: 1 request of 4,096 tokens at once, or 64 of 64")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "34 requests of 32,768 tokens at once, or 256 of 4,416"),
        ({"max_context": 1000}, "256 requests of 1,000 tokens at once"),
        ({"max_running": 2}, "2 requests of 32,768 tokens at once"),
    ],
)
def test_no_more_requests_are_promised_at_once_than_run_at_once(settings: dict[str, int], told: str) -> None:
    assert internlm3(80, **settings)[1].endswith(told)


@pytest.mark.parametrize("cache", [0, 1, 4096, 20_000])
@pytest.mark.parametrize("context", [100, 32768])
def test_the_engine_allocates_what_was_promised(monkeypatch: pytest.MonkeyPatch, cache: int, context: int) -> None:
    config = EngineConfig(kind="native", model_dir="", max_context=context, kv_cache_tokens=cache)
    total = int(22.6 * GIB)
    fit = internlm3_fit(Demand.on_gpu(config, 2, total), total, total)
    left = total - fit.weights - fit.working
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (left, total))
    planned = plan_capacity(config, INTERNLM3_8B, torch.device("cuda"), torch.bfloat16)
    assert (planned.num_blocks - 1) * BLOCK_TOKENS == fit.cache_tokens
    assert planned.max_context == fit.longest


def test_a_cache_larger_than_the_room_is_refused_with_the_size_that_fits() -> None:
    state, found, remedy = internlm3(24, kv_cache_tokens=10_000_000)
    assert state is State.FAIL
    assert "10,000,000" in found
    tokens = int(re.findall(r"INTERNLM_KV_CACHE_TOKENS=(\d+)", remedy)[0])
    assert internlm3(24, kv_cache_tokens=tokens)[0] is State.OK


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_token_takes_what_is_reckoned(dtype: torch.dtype) -> None:
    cache = PagedCache(INTERNLM3_8B, num_blocks=2, block_size=BLOCK_TOKENS, device=torch.device("cpu"), dtype=dtype)
    taken = sum(tensor.nbytes for tensor in (*cache.keys, *cache.values))
    assert taken == 2 * BLOCK_TOKENS * kv_bytes_per_token(INTERNLM3_8B, dtype.itemsize)


@pytest.mark.parametrize("more", [{"running": 512}, {"step_tokens": 4096}, {"max_context": 65_536}])
def test_working_memory_grows_with_what_a_step_computes(more: dict[str, int]) -> None:
    demand = Demand(32_768, 256, 2048, 0.9)
    assert working_bytes(INTERNLM3_8B, replace(demand, **more)) > working_bytes(INTERNLM3_8B, demand)  # type: ignore[arg-type]


def test_the_same_weights_in_another_format_beside_them_do_not_count(tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", 3000, "layer.0", 0)
    write_shard(tmp_path / "consolidated.safetensors", 3000, "layers.0", 0)
    assert count_elements(tmp_path) == 1500


def test_the_fit_is_that_of_the_directorys_model(tmp_path: Path) -> None:
    make_repository(tmp_path, (3000, 1000))
    assert count_elements(tmp_path) == 2000
    fit = fit_of(tmp_path)(Demand.on_gpu(Settings(), 4, 8 * GIB), 8 * GIB, 8 * GIB)
    assert (fit.weights, fit.context) == (8000, 256)
    assert fit.kv_per_token == 2 * 2 * 2 * 16 * 4


def test_a_header_says_how_long_its_file_is(tmp_path: Path) -> None:
    make_repository(tmp_path, (3000, 1000))
    header = read_header(tmp_path / SHARDS[0])
    assert header.file_bytes == (tmp_path / SHARDS[0]).stat().st_size
    assert header.elements == 1500
    entry = header.tensors["layer.0"]
    assert (entry.dtype, entry.shape, entry.size) == ("BF16", (1500,), 3000)
    assert entry.offset + entry.size == header.file_bytes
