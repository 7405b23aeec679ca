"""The open requests of an event loop: who gets which event, and what stays when readers leave."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from service.engine.base import EngineState, EngineStatus, Event, Finish, FinishReason, GenerationRequest, Token
from service.engine.process.streams import DEADLINE_GRACE, Streams, refusal
from tests.support.engines import a_request


class Recorder:
    """Stands where the engine would be: keeps what is submitted and cancelled."""

    def __init__(self, refuse: bool = False) -> None:
        self.submitted: list[str] = []
        self.cancelled: list[str] = []
        self.refuse = refuse
        self.streams = Streams(self._submit, self.cancelled.append)

    def _submit(self, request: GenerationRequest) -> Finish | None:
        self.submitted.append(request.id)
        return Finish(request.id, FinishReason.ERROR, "not now") if self.refuse else None

    async def begin(self, id_: str, seconds: float = 600) -> tuple[AsyncGenerator[Event], Event]:
        """A stream that has read its first token."""
        events = self.streams.follow(a_request(id_=id_, seconds=seconds))
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        self.streams.deliver([Token(id_, 1)])
        return events, await first


async def test_each_reader_gets_its_own_events_in_order() -> None:
    engine = Recorder()
    a, _ = await engine.begin("a")
    b, _ = await engine.begin("b")
    end = FinishReason.STOP
    engine.streams.deliver([Token("a", 2), Token("b", 7), Token("a", 3), Finish("b", end), Finish("a", end)])
    assert [event async for event in a] == [Token("a", 2), Token("a", 3), Finish("a", end)]
    assert [event async for event in b] == [Token("b", 7), Finish("b", end)]
    assert (len(engine.streams), engine.cancelled) == (0, [])


async def test_a_reader_that_never_reads_holds_up_nobody() -> None:
    engine = Recorder()
    slow, _ = await engine.begin("slow")
    fast, _ = await engine.begin("fast")
    for token in range(10_000):
        engine.streams.deliver([Token("slow", token), Token("fast", token)])
        assert await anext(fast) == Token("fast", token)
    assert await anext(slow) == Token("slow", 0)
    await slow.aclose()
    await fast.aclose()


async def test_leaving_cancels_once_and_drops_what_comes_later() -> None:
    engine = Recorder()
    events, _ = await engine.begin("a")
    await events.aclose()
    engine.streams.deliver([Token("a", 2), Finish("a", FinishReason.CANCELLED)])
    assert engine.cancelled == ["a"]
    assert len(engine.streams) == 0


async def test_leaving_after_the_end_was_delivered_cancels_nothing() -> None:
    engine = Recorder()
    events, _ = await engine.begin("a")
    engine.streams.deliver([Token("a", 2), Finish("a", FinishReason.STOP)])
    await events.aclose()
    assert engine.cancelled == []


async def test_an_id_used_again_is_not_cancelled_by_its_former_owner() -> None:
    engine = Recorder()
    former, _ = await engine.begin("a")
    engine.streams.deliver([Finish("a", FinishReason.STOP)])
    latter, _ = await engine.begin("a")
    await former.aclose()
    assert (len(engine.streams), engine.cancelled) == (1, [])
    await latter.aclose()
    assert engine.cancelled == ["a"]


async def test_a_stream_nobody_iterates_is_never_submitted() -> None:
    engine = Recorder()
    await engine.streams.follow(a_request()).aclose()
    assert engine.submitted == []


async def test_what_the_engine_refuses_ends_at_once() -> None:
    engine = Recorder(refuse=True)
    assert [event async for event in engine.streams.follow(a_request(id_="a"))] == [
        Finish("a", FinishReason.ERROR, "not now")
    ]
    assert (len(engine.streams), engine.cancelled) == (0, [])


async def test_a_second_request_with_an_open_id_is_not_submitted() -> None:
    engine = Recorder()
    first, _ = await engine.begin("a")
    (finish,) = [event async for event in engine.streams.follow(a_request(id_="a"))]
    assert isinstance(finish, Finish)
    assert finish.reason is FinishReason.ERROR
    assert (engine.submitted, engine.cancelled) == (["a"], [])
    await first.aclose()


async def test_the_engines_death_ends_every_stream_with_the_reason_once() -> None:
    engine = Recorder()
    streams = [(await engine.begin(id_))[0] for id_ in "abc"]
    engine.streams.fail_all("it died")
    engine.streams.fail_all("again")
    for id_, events in zip("abc", streams, strict=True):
        assert [event async for event in events] == [Finish(id_, FinishReason.ERROR, "it died")]
    assert engine.cancelled == []


async def test_only_what_is_well_past_its_deadline_is_ended_here() -> None:
    engine = Recorder()
    early, _ = await engine.begin("early", seconds=1)
    late, _ = await engine.begin("late", seconds=100)
    now = asyncio.get_running_loop().time()  # the same clock as time.monotonic
    engine.streams.expire(now + 1)
    assert len(engine.streams) == 2
    engine.streams.expire(now + 2 + DEADLINE_GRACE)
    (finish,) = [event async for event in early]
    assert isinstance(finish, Finish)
    assert finish.reason is FinishReason.DEADLINE
    assert (len(engine.streams), engine.cancelled) == (1, ["early"])
    await late.aclose()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (EngineStatus(state=EngineState.LOADING, reason="reading weights"), "the engine is loading: reading weights"),
        (EngineStatus(state=EngineState.STARTING), "the engine is starting"),
    ],
)
def test_a_refusal_says_what_the_engine_does_instead(status: EngineStatus, message: str) -> None:
    assert refusal(a_request(), status).message == message
