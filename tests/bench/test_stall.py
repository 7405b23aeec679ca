"""The stall's measurement on a core whose steps take known times: what is before, what beside, how much of each."""

import itertools
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from service.engine.base import Event, Finish, FinishReason, GenerationRequest, Token
from service.engine.steps.pace import CROWD
from tests.bench.load import Prompts
from tests.bench.results_file import Line
from tests.bench.run import Run
from tests.bench.scale import FULL, TINY, Scale
from tests.bench.sections import requests
from tests.bench.stall import Stall, measure_stall

ALONE, BESIDE = 1.0, 3.0
SCALE = replace(TINY, stall_prompt=300, stall_streams=3, stall_steps=200)


class ScriptedCore:
    """Every stream gets a token per step; a long prompt takes `long_steps` steps, each of which takes longer. Other
    prompts of one new token wait for half of them."""

    def __init__(self, long_steps: int) -> None:
        self.now = 0.0
        self.long_prompts = 0
        self._long_steps = long_steps
        self._streams: list[str] = []
        self._short: list[str] = []
        self._long: tuple[str, int] | None = None

    def add(self, request: GenerationRequest) -> list[Event]:
        if len(request.prompt_ids) == SCALE.stall_prompt:
            self.long_prompts += 1
            self._long = (request.id, self._long_steps)
        else:
            (self._short if request.max_new_tokens == 1 else self._streams).append(request.id)
        return []

    def step(self) -> list[Event]:
        self.now += ALONE if self._long is None else BESIDE
        events: list[Event] = [Token(name, 1) for name in self._streams]
        if self._long is not None:
            name, left = self._long
            self._long = (name, left - 1) if left > 1 else None
            if left == self._long_steps // 2:
                events += [Token(name, 1) for name in self._short]
                self._short = []
            if left == 1:
                events += [Token(name, 1), Finish(name, FinishReason.LENGTH)]
        return events

    def cancel(self, request_id: str) -> list[Event]:
        self._streams = [name for name in self._streams if name != request_id]
        return []

    @property
    def idle(self) -> bool:
        return not self._streams and self._long is None


@pytest.mark.parametrize(("long_steps", "prompts", "steps"), [(300, 1, 300), (100, 2, 200), (70, 3, 210)])
def test_both_sides_are_of_two_hundred_steps_and_of_nothing_else(
    monkeypatch: pytest.MonkeyPatch, long_steps: int, prompts: int, steps: int
) -> None:
    core = ScriptedCore(long_steps)
    monkeypatch.setattr(time, "perf_counter", lambda: core.now)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: 0)
    found = measure_stall(core, Prompts(1000), SCALE, 32_768)  # type: ignore[arg-type]
    assert found.before == [ALONE] * (3 * 200)
    assert found.during == [BESIDE] * (3 * steps)
    assert core.long_prompts == prompts
    assert found.ttft == long_steps * BESIDE, "the first prompt's"
    assert core.idle, "the streams are cancelled"


def test_short_prompts_behind_each_long_one_are_waited_for_too(monkeypatch: pytest.MonkeyPatch) -> None:
    core, ids = ScriptedCore(100), itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: core.now)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(ids))
    found = measure_stall(core, Prompts(1000), SCALE, 32_768, behind=4)  # type: ignore[arg-type]
    assert found.during == [BESIDE] * (3 * 200)
    assert (found.ttft, found.ttft_behind) == (100 * BESIDE, 51 * BESIDE)


def test_a_full_run_takes_enough_steps_for_a_p99() -> None:
    assert FULL.stall_steps >= 200


def test_the_first_long_prompt_beside_streams_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps are the first of their kind, and slow for that."""
    asked: list[tuple[int, int]] = []
    lines: list[Line] = []

    def measure(core: object, prompts: Prompts, scale: Scale, most: int, behind: int = 0) -> Stall:
        asked.append((scale.stall_steps, behind))
        slow = 100.0 if len(asked) == 1 else 1.5
        return Stall(before=[1.0], during=[slow], ttft=0.1, ttft_behind=0.0)

    monkeypatch.setattr(requests, "measure_stall", measure)
    run = Run(TINY, tmp_path, torch.device("cpu"), lines.append)
    run._core = SimpleNamespace()  # type: ignore[assignment]
    requests.stall(run)
    assert asked == [(1, 0), (TINY.stall_steps, 0), (TINY.stall_steps, 2 * CROWD)]
    assert [line["figures"] for line in lines if "figures" in line] == [{"stalled_gap_of_before": 1.5}]
