"""What work must cost at least, by hand; and the machine's own rates."""

import threading
from pathlib import Path

import pytest

from service.engine.config import INTERNLM3_8B
from tests.bench import limits
from tests.bench.floor import Floor, matrix_numbers, prefill_flop, step_bytes
from tests.bench.limits import Limits
from tests.bench.scale import FULL

BYTES_OF_WEIGHTS = step_bytes(INTERNLM3_8B, 1, 0, 2)
EASY = Floor(INTERNLM3_8B, Limits(memory=1e12, matmul=1e15), itemsize=2)
"""A machine whose times are easily read: a terabyte and a thousand TFLOP per second."""


def test_the_full_scale_is_the_8b_model() -> None:
    assert FULL.shape.layers == INTERNLM3_8B.num_layers
    numbers = matrix_numbers(INTERNLM3_8B) + 2 * INTERNLM3_8B.vocab_size * INTERNLM3_8B.hidden_size
    assert numbers == pytest.approx(8.804e9, rel=0.001)
    assert step_bytes(INTERNLM3_8B, 1, 0, 2) == pytest.approx(16.55e9, rel=0.001)
    assert step_bytes(INTERNLM3_8B, 64, 512, 2) - step_bytes(INTERNLM3_8B, 64, 511, 2) == 64 * 48 * 1024
    assert prefill_flop(INTERNLM3_8B, 1000) == pytest.approx(15.5e12, rel=0.05)


def test_a_step_waits_for_its_bytes() -> None:
    assert EASY.step(64, 512) == step_bytes(INTERNLM3_8B, 64, 512, 2) / 1e12


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
    monkeypatch.setattr(limits, "PIECE", 1000)
    monkeypatch.setattr(limits, "_own", threading.local())
    (tmp_path / "a.safetensors").write_bytes(bytes(2500))
    (tmp_path / "b.safetensors").write_bytes(bytes(1000))
    ticks = iter([10.0, 12.0])
    monkeypatch.setattr(limits.time, "perf_counter", lambda: next(ticks))
    assert limits.file_rate(tmp_path) == 1750.0
