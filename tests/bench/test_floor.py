"""What work must cost at least, by hand; and the machine's own rates."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from service.engine.checkpoint.staging import BUFFER_BYTES
from service.engine.checkpoint.tensors import READERS
from service.engine.config import INTERNLM3_8B
from service.engine.kernels.stopwatch import Work
from tests.bench import limits, timing
from tests.bench.floor import Floor, parameters, prefill_flop, step_bytes
from tests.bench.limits import Limits
from tests.bench.scale import FULL

BYTES_OF_WEIGHTS = step_bytes(INTERNLM3_8B, 1, 0, 2, 2)
EASY = Floor(INTERNLM3_8B, Limits(memory=1e12, matmul=1e15), itemsize=2, matrix_itemsize=2)
"""A machine whose times are easily read: a terabyte and a thousand TFLOP per second."""


def test_the_full_scale_is_the_8b_model() -> None:
    assert FULL.shape.layers == INTERNLM3_8B.num_layers
    assert parameters(INTERNLM3_8B) == pytest.approx(8.804e9, rel=0.001)
    assert step_bytes(INTERNLM3_8B, 1, 0, 2, 2) == pytest.approx(16.55e9, rel=0.001)
    assert step_bytes(INTERNLM3_8B, 64, 512, 2, 2) - step_bytes(INTERNLM3_8B, 64, 511, 2, 2) == 64 * 48 * 1024
    assert prefill_flop(INTERNLM3_8B, 1000) == pytest.approx(15.5e12, rel=0.05)


def test_a_step_waits_for_its_bytes() -> None:
    assert EASY.step(64, 512) == step_bytes(INTERNLM3_8B, 64, 512, 2, 2) / 1e12


def test_a_step_of_eight_bit_weights_waits_for_half_of_them_and_all_of_the_kv() -> None:
    eight = replace(EASY, matrix_itemsize=1)
    assert eight.step(1, 0) == BYTES_OF_WEIGHTS / 2 / 1e12
    assert EASY.step(64, 512) - eight.step(64, 512) == pytest.approx(BYTES_OF_WEIGHTS / 2 / 1e12)


def test_a_prompt_waits_for_its_products_or_for_the_weights() -> None:
    assert EASY.prefill(8192) == prefill_flop(INTERNLM3_8B, 8192) / 1e15
    assert EASY.prefill(1) == BYTES_OF_WEIGHTS / 1e12


def test_what_is_cached_is_read_and_not_computed_again() -> None:
    assert EASY.prefill(4096, cached=4096) == pytest.approx(EASY.prefill(8192) - EASY.prefill(4096))
    assert EASY.prefill(1, cached=4096) == EASY.step(1, 4096)


def test_prompts_that_come_at_once_are_computed_one_after_the_other() -> None:
    first, second = EASY.first_tokens([4096, 8192])
    assert first == EASY.prefill(4096)
    assert second == pytest.approx(first + EASY.prefill(8192))


def test_requests_take_their_prompts_and_a_step_for_every_token_but_the_first() -> None:
    assert EASY.requests([4096, 8192], 1) == EASY.first_tokens([4096, 8192])[-1]
    more = EASY.requests([4096, 8192], 3) - EASY.requests([4096, 8192], 1)
    assert more == pytest.approx(EASY.step(2, 6145) + EASY.step(2, 6146))


def test_the_files_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BUFFER_BYTES", 1000)
    (tmp_path / "a.safetensors").write_bytes(bytes(2500))
    (tmp_path / "b.safetensors").write_bytes(bytes(1000))
    ticks = iter([10.0, 12.0])
    monkeypatch.setattr(limits.time, "perf_counter", lambda: next(ticks))
    assert limits.file_rate(tmp_path) == 1750.0


def test_files_are_read_by_as_many_readers_as_the_engine_has_each_with_two_buffers_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One buffer alone would stay in the CPU's cache, and reading into it be cheaper than the engine's."""
    filled: dict[int, list[int]] = {}
    everybody = threading.Barrier(READERS)

    def preadv(file: int, buffers: list[bytearray], offset: int) -> int:
        mine = filled.setdefault(threading.get_ident(), [])
        if not mine:
            everybody.wait(60)
        mine.append(id(buffers[0]))
        assert len(buffers[0]) == BUFFER_BYTES
        return 0

    monkeypatch.setattr(limits.os, "preadv", preadv)
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.truncate(20 * READERS * BUFFER_BYTES)
    limits.file_rate(tmp_path)
    assert len(filled) == READERS
    assert all(len(set(mine)) == min(len(mine), 2) for mine in filled.values())
    assert all(one != next_ for mine in filled.values() for one, next_ in pairwise(mine))
    assert len({buffer for mine in filled.values() for buffer in mine}) == sum(min(len(m), 2) for m in filled.values())


class Throttled:
    """A GPU whose work takes a millisecond while it is rested, and half as long again after 0.2 s of it."""

    def __init__(self) -> None:
        self.now = 0.0

    def work(self) -> None:
        self.now += 0.001 if self.now < 0.2 else 0.0015

    def event(self, **_: object) -> "Throttled.Event":
        return Throttled.Event(self)

    class Event:
        def __init__(self, gpu: "Throttled") -> None:
            self._gpu = gpu

        def record(self) -> None:
            self.at = self._gpu.now

        def elapsed_time(self, end: "Throttled.Event") -> float:
            return (end.at - self.at) * 1e3


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Throttled:
    throttled = Throttled()

    def burst(works: Sequence[Work], device: torch.device) -> float:
        before = throttled.now
        works[0]()
        return throttled.now - before

    monkeypatch.setattr(timing, "seconds", burst)
    monkeypatch.setattr(torch.cuda, "Event", throttled.event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    return throttled


def test_a_gpus_limit_is_what_it_keeps_up(gpu: Throttled) -> None:
    assert timing.sustained_seconds(gpu.work, torch.device("cuda")) == pytest.approx(0.0015)
    assert gpu.now > 2 * timing.SUSTAINED


def test_a_cpu_is_asked_once(gpu: Throttled) -> None:
    assert timing.sustained_seconds(gpu.work, torch.device("cpu")) == pytest.approx(0.001)


def test_products_and_memory_are_both_measured_as_they_are_kept_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def two_seconds(work: Work, device: torch.device) -> float:
        work()
        return 2.0

    for module in (limits, timing):
        monkeypatch.setattr(module, "sustained_seconds", two_seconds)
    found = limits.measure_limits(torch.device("cpu"), torch.float32)
    assert found == Limits(memory=2 * (1 << 22) / 2.0, matmul=2 * 256**3 / 2.0)
