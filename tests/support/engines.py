"""Requests, readers and engines for tests: what every engine test needs, whichever engine it tests."""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

from service.engine.base import (
    Engine,
    EngineConfig,
    Event,
    Finish,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    Token,
)

GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0)
PATIENCE = 60.0
"""Seconds after which a test that waits for something gives up; no test depends on it being short."""

SUPPORT = Path(__file__).parent

_ids = itertools.count()


def a_request(
    prompt: list[int] | None = None,
    *,
    new: int = 8,
    stop: list[int] | None = None,
    seconds: float = 600.0,
    id_: str | None = None,
    sampling: SamplingParams = GREEDY,
    grammar: str = "",
    logprobs: int | None = None,
    forced: list[int] | None = None,
) -> GenerationRequest:
    """A request with a fresh id; `seconds` from now is its deadline."""
    return GenerationRequest(
        id=id_ or f"request-{next(_ids)}",
        prompt_ids=[11, 12, 13] if prompt is None else prompt,
        max_new_tokens=new,
        stop_ids=stop or [],
        deadline=time.monotonic() + seconds,
        sampling=sampling,
        grammar=grammar,
        logprobs=logprobs,
        forced=forced or [],
    )


def fake_config(**changes: object) -> EngineConfig:
    """A fake engine's configuration."""
    return EngineConfig(**{"kind": "fake", "model_dir": "", "log_format": "console", **changes})  # type: ignore[arg-type]


async def events_of(engine: Engine, request: GenerationRequest) -> list[Event]:
    """Every event of a request, to its end."""
    async with asyncio.timeout(PATIENCE):
        return [event async for event in engine.submit(request)]


async def leave_after(engine: Engine, request: GenerationRequest, tokens: int) -> list[Event]:
    """Read some tokens, then close the iterator."""
    read: list[Event] = []
    async with asyncio.timeout(PATIENCE), aclosing(engine.submit(request)) as events:
        async for event in events:
            read.append(event)
            if isinstance(event, Finish) or len(read) == tokens:
                break
    return read


def tokens_of(events: list[Event]) -> list[int]:
    """The token ids among events."""
    return [event.token for event in events if isinstance(event, Token)]


def finish_of(events: list[Event]) -> Finish:
    """The one terminal event, which must be the last."""
    finishes = [event for event in events if isinstance(event, Finish)]
    assert len(finishes) == 1, f"exactly one Finish expected, got {finishes}"
    assert events[-1] is finishes[0]
    return finishes[0]


def reason_of(events: list[Event]) -> FinishReason:
    """Why the request of these events ended."""
    return finish_of(events).reason


async def until(condition: Callable[[], object]) -> None:
    """Wait for what other threads or processes bring about."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


def scripted(**script: object) -> tuple[str, ...]:
    """The command of an engine process whose fake core follows a script: `FakeScript`'s fields, and those of
    tests/support/scripted_worker.py."""
    return (sys.executable, str(SUPPORT / "scripted_worker.py"), json.dumps(script))


def is_alive(pid: int) -> bool:
    """True while the process runs; a zombie does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_stopped(pid: int) -> bool:
    """True once SIGSTOP has reached every thread of the process: on a busy machine some run on for a moment."""
    return all("\nState:\tT" in (task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir())


def recorded_pid(run_dir: Path) -> int:
    """The pid of a run directory's engine process."""
    return int((run_dir / "engine.pid").read_text())
