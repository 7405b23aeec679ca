"""The use case without a server: how a request ends, and that each end is counted once, with what is known of it."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.api.openai.errors import RETRIES, headers
from service.chat.form import Form
from service.chat.generation import Chat, Generation
from service.chat.pieces import Done
from service.chat.templates import ChatTemplate, Message
from service.chat.verbatim import Verbatim
from service.engine.base import (
    EngineInfo,
    EngineState,
    EngineStatus,
    Event,
    Finish,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    Token,
)
from service.errors import ContextTooLong, DeadlineExceeded, EngineFailed, InvalidRequest, NotReady, QueueFull
from service.lifecycle import Lifecycle, State
from service.metrics import Metrics
from service.tokenizer.loading import load_tokenizer
from tests.support.server import PATIENCE
from tests.support.tokenizers import write_byte_level_dir

SHORT = Chat([Message("user", "hi")], SamplingParams(), max_new_tokens=8)
LONG = Chat([Message("user", "the quick brown fox 你好世界 " * 10_000)], SamplingParams(), max_new_tokens=8)
"""Longer than the context, which is known only once it is tokenized."""
LONG_TEXT = replace(LONG, prompt=Verbatim("the quick brown fox 你好世界 " * 10_000))
NO_TEXT = replace(LONG, prompt=Verbatim(""))
NO_SUCH_ROLE = Chat([Message("tool", "hi")], SamplingParams(), max_new_tokens=8)
NO_ROOM = Chat([Message("user", "hi")], SamplingParams(), max_new_tokens=64)
TOKENS = [Token("", 40), Token("", 41)]
IN_TIME, TOO_LATE = 300.0, 0.001


def with_context(tokens: int) -> EngineStatus:
    """What an engine says whose sequences have room for so many."""
    info = EngineInfo(kind="fake", device="cpu", dtype="", max_context=tokens, max_running=1, vocab_size=500)
    return EngineStatus(state=EngineState.READY, info=info)


class ScriptedEngine:
    """Gives every request the same events; after those it raises `error`, or waits for ever if `hangs`."""

    def __init__(self, *events: Event, error: Exception | None = None, hangs: bool = False) -> None:
        self._events = events
        self._error = error
        self._hangs = hangs
        self.status = with_context(64)

    async def submit(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        for event in self._events:
            yield event
        if self._error:
            raise self._error
        if self._hangs:
            await asyncio.Event().wait()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(lambda: EngineStatus(state=EngineState.READY), lambda: True)


class Make:
    """Makes the use case around an engine; the tokenizer is loaded once."""

    def __init__(self, model_dir: Path, metrics: Metrics) -> None:
        self._tokenizer = load_tokenizer(write_byte_level_dir(model_dir))
        self._template = ChatTemplate.load(model_dir, self._tokenizer)
        self._metrics = metrics

    def __call__(self, engine: Any, request_timeout: float = IN_TIME, state: State = State.READY) -> Generation:
        lifecycle = Lifecycle()
        lifecycle.move(state)
        return Generation(engine, self._tokenizer, self._template, request_timeout, lifecycle, self._metrics)


@pytest.fixture
def make(tmp_path: Path, metrics: Metrics) -> Make:
    return Make(tmp_path, metrics)


def counted(metrics: Metrics) -> dict[str, float]:
    """What a scrape would find of requests, without what is zero: outcomes, and how often each figure was noted."""
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    found = {s.labels["outcome"]: s.value for s in samples if s.name == "internlm_requests_total"}
    found |= {s.name: s.value for s in samples if s.name.endswith("_count")}
    return {name.removeprefix("internlm_").removesuffix("_count"): value for name, value in found.items() if value}


async def take(generation: Generation, chat: Chat) -> None:
    async with asyncio.timeout(PATIENCE), aclosing(generation.stream(chat)) as pieces:
        async for _ in pieces:
            pass


async def test_the_context_is_that_of_the_engine_as_it_is_now(make: Make) -> None:
    """Started again beside a neighbour on the GPU it may have less."""
    engine = ScriptedEngine(*TOKENS, Finish("", FinishReason.STOP))
    generation = make(engine)
    await take(generation, SHORT)
    engine.status = with_context(12)
    with pytest.raises(ContextTooLong, match="context length of 12"):
        await take(generation, SHORT)


WAITED = {"request_queue_time_seconds": 1}
LATENCIES = {"time_to_first_token_seconds": 1, "time_per_output_token_seconds": 1, "request_queue_time_seconds": 1}
TAKEN_IN = {"request_duration_seconds": 1, "request_prompt_tokens": 1, "request_generation_tokens": 1}


@pytest.mark.parametrize("reason", [FinishReason.STOP, FinishReason.LENGTH])
async def test_a_whole_answer_is_counted_with_all_its_figures(
    make: Make, metrics: Metrics, reason: FinishReason
) -> None:
    await take(make(ScriptedEngine(*TOKENS, Finish("", reason))), SHORT)
    assert counted(metrics) == {reason.value: 1} | TAKEN_IN | LATENCIES


ENGINE_ENDINGS = {
    "deadline": (
        ScriptedEngine(Finish("", FinishReason.DEADLINE)),
        DeadlineExceeded,
        {"deadline": 1} | TAKEN_IN | WAITED,
    ),
    "full": (ScriptedEngine(Finish("", FinishReason.REJECTED, retry_after=3)), QueueFull, {"rejected": 1}),
    "a grammar, from the start": (
        ScriptedEngine(Finish("", FinishReason.REJECTED, "no such type", of_grammar=True)),
        InvalidRequest,
        {"rejected": 1},
    ),
    "a grammar, half-way": (
        ScriptedEngine(*TOKENS, Finish("", FinishReason.REJECTED, "too complex", of_grammar=True)),
        InvalidRequest,
        {"rejected": 1, "request_queue_time_seconds": 1, "time_to_first_token_seconds": 1},
    ),
    "never fits": (ScriptedEngine(Finish("", FinishReason.REJECTED, "too long")), InvalidRequest, {"rejected": 1}),
    "failed": (ScriptedEngine(Finish("", FinishReason.ERROR)), EngineFailed, {"error": 1} | TAKEN_IN),
    "no end": (ScriptedEngine(), EngineFailed, {"error": 1} | TAKEN_IN),
    "a bug": (ScriptedEngine(error=ZeroDivisionError()), ZeroDivisionError, {"error": 1} | TAKEN_IN),
}


@pytest.mark.parametrize(("engine", "problem", "found"), ENGINE_ENDINGS.values(), ids=ENGINE_ENDINGS)
async def test_an_answer_the_engine_does_not_give_is_counted_as_what_it_says(
    make: Make, metrics: Metrics, engine: ScriptedEngine, problem: type[Exception], found: dict[str, float]
) -> None:
    with pytest.raises(problem):
        await take(make(engine), SHORT)
    assert counted(metrics) == found


NEVER_SUBMITTED = {
    "too late": (
        LONG,
        TOO_LATE,
        DeadlineExceeded,
        ["deadline", "request_duration_seconds", "request_generation_tokens"],
    ),
    "too long": (LONG, IN_TIME, ContextTooLong, ["rejected"]),
    "a text too late": (
        LONG_TEXT,
        TOO_LATE,
        DeadlineExceeded,
        ["deadline", "request_duration_seconds", "request_generation_tokens"],
    ),
    "a text too long": (LONG_TEXT, IN_TIME, ContextTooLong, ["rejected"]),
    "no text": (NO_TEXT, IN_TIME, InvalidRequest, ["rejected"]),
    "no room": (NO_ROOM, IN_TIME, ContextTooLong, ["rejected"]),
    "no such role": (NO_SUCH_ROLE, IN_TIME, InvalidRequest, ["rejected"]),
}


@pytest.mark.parametrize(("chat", "seconds", "problem", "found"), NEVER_SUBMITTED.values(), ids=NEVER_SUBMITTED)
async def test_what_never_reaches_the_engine_is_counted_too_with_what_is_known_of_it(
    make: Make, metrics: Metrics, chat: Chat, seconds: float, problem: type[Exception], found: list[str]
) -> None:
    """The seconds that tokenizing takes are among those of the request."""
    with pytest.raises(problem):
        await take(make(ScriptedEngine(), seconds), chat)
    assert counted(metrics) == dict.fromkeys(found, 1)


async def test_a_client_that_leaves_in_its_answer_is_counted_as_cancelled(make: Make, metrics: Metrics) -> None:
    async with aclosing(make(ScriptedEngine(*TOKENS, hangs=True)).stream(SHORT)) as pieces:
        await anext(pieces)
    assert counted(metrics).keys() == {"cancelled"} | TAKEN_IN.keys() | LATENCIES.keys() - {
        "time_per_output_token_seconds"
    }


async def test_a_client_that_leaves_the_queue_is_counted_with_the_time_it_waited(make: Make, metrics: Metrics) -> None:
    """Else the queue would look shortest when nobody gets out of it."""
    asking = asyncio.create_task(take(make(ScriptedEngine(hangs=True)), SHORT))
    await asyncio.sleep(0.1)
    asking.cancel()
    await asyncio.wait([asking])
    assert counted(metrics) == {"cancelled": 1} | TAKEN_IN | WAITED
    (waited,) = [s.value for f in metrics.queue_seconds.collect() for s in f.samples if s.name.endswith("_sum")]
    assert 0.05 < waited < 30


TOO_LATE_AT = {
    "in the queue": ([Finish("", FinishReason.DEADLINE, queued=True)], ["waited 0 s in the queue", "Come back later"]),
    "before a token": ([Finish("", FinishReason.DEADLINE)], ["had not begun", "Shorten the conversation"]),
    "in its answer": ([*TOKENS, Finish("", FinishReason.DEADLINE)], ["it had 2 tokens", "(max_new_tokens)"]),
}


@pytest.mark.parametrize(("events", "said"), TOO_LATE_AT.values(), ids=TOO_LATE_AT)
async def test_an_answer_that_is_too_late_says_where_the_time_went_and_what_helps(
    make: Make, events: list[Event], said: list[str]
) -> None:
    with pytest.raises(DeadlineExceeded) as caught:
        await take(make(ScriptedEngine(*events)), SHORT)
    assert all(part in caught.value.message for part in [*said, "300 s, the most a request may take"])
    assert "stream" not in caught.value.message


async def test_a_client_that_leaves_while_its_prompt_is_tokenized_is_counted_as_cancelled(
    make: Make, metrics: Metrics
) -> None:
    asking = asyncio.create_task(take(make(ScriptedEngine()), LONG))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    assert counted(metrics).keys() == {"cancelled", "request_duration_seconds", "request_generation_tokens"}


async def test_who_takes_no_more_than_the_whole_answer_has_not_left(make: Make, metrics: Metrics) -> None:
    async with aclosing(make(ScriptedEngine(*TOKENS, Finish("", FinishReason.STOP))).stream(SHORT)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Done):
                break
    assert counted(metrics)["stop"] == 1


async def test_a_request_that_is_not_let_in_is_none(make: Make, metrics: Metrics) -> None:
    with pytest.raises(NotReady):
        await take(make(ScriptedEngine(), state=State.DRAINING), SHORT)
    assert counted(metrics) == {}


async def test_the_probe_is_counted_nowhere_however_it_ends(make: Make, metrics: Metrics) -> None:
    await make(ScriptedEngine(*TOKENS, Finish("", FinishReason.LENGTH)), state=State.LOADING).probe(SHORT)
    with pytest.raises(DeadlineExceeded):
        await make(ScriptedEngine(*TOKENS, Finish("", FinishReason.DEADLINE)), state=State.LOADING).probe(SHORT)
    assert counted(metrics) == {}


async def test_a_complaint_about_a_grammar_names_its_field(make: Make) -> None:
    engine = ScriptedEngine(Finish("", FinishReason.REJECTED, "no such type", of_grammar=True))
    with pytest.raises(InvalidRequest, match="no such type") as caught:
        await make(engine).probe(replace(SHORT, form=Form("format", "format.schema", {})))
    assert caught.value.field == "format.schema"


async def test_a_request_that_the_engine_never_had_may_be_sent_again(make: Make) -> None:
    """One that it may have been broken by is not."""
    with pytest.raises(NotReady, match="restarting") as early:
        await make(ScriptedEngine(Finish("", FinishReason.ERROR, "the engine is restarting", 7))).probe(SHORT)
    with pytest.raises(EngineFailed, match="died"):
        await make(ScriptedEngine(*TOKENS, Finish("", FinishReason.ERROR, "it died"))).probe(SHORT)
    assert early.value.retry_after == 7
    assert RETRIES not in headers(early.value)


async def test_a_long_prompt_does_not_wait_for_grammars_nor_they_for_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has threads of its own."""
    release = threading.Event()
    monkeypatch.setattr("service.chat.preparation.problem_of", lambda grammar: release.wait(PATIENCE) and "")
    model = make(ScriptedEngine(*TOKENS, Finish("", FinishReason.STOP)))
    held = [
        asyncio.create_task(model.probe(replace(SHORT, form=Form("format", "format.schema", {})))) for _ in range(5)
    ]
    with pytest.raises(ContextTooLong):
        await asyncio.wait_for(model.probe(LONG), PATIENCE)
    assert not any(task.done() for task in held)
    release.set()
    await asyncio.gather(*held)
