"""Streaming over a real socket: pieces as they come, errors with their own status, one [DONE]."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from starlette.types import Message

from service.api import sse
from service.engine.fake import FakeScript
from tests.api.conftest import Service, Start
from tests.support.server import PATIENCE


async def events(service: Service, **body: Any) -> AsyncIterator[tuple[str, Any]]:
    """(event name, data) of each event, as a browser's EventSource would see them."""
    request = {"prompt": "hello", "stream": True} | body
    async with service.http.stream("POST", "/v1/chat", json=request) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        name = "message"
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data = line.removeprefix("data: ")
                yield name, data if data == "[DONE]" else json.loads(data)
                name = "message"


async def test_the_pieces_make_the_whole_answer(service: Service) -> None:
    seen = [data async for _, data in events(service, prompt="你好，世界 🌍")]
    *pieces, last, done = seen
    assert done == "[DONE]"
    assert len(pieces) > 3
    assert "".join(piece["delta"] for piece in pieces) == last["response"]
    assert "你好，世界 🌍" in last["response"]
    assert "\ufffd" not in last["response"]


async def test_the_last_piece_is_the_unstreamed_answer(service: Service) -> None:
    last = [data async for _, data in events(service)][-2]
    whole = (await service.ask()).json()
    assert last.keys() == whole.keys() | {"delta"}
    assert {key: last[key] for key in ("response", "status", "finish_reason")} == {
        key: whole[key] for key in ("response", "status", "finish_reason")
    }


async def test_pieces_arrive_while_the_answer_is_being_made(start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.01))
    async for _, _data in events(service, max_new_tokens=20):
        assert service.engine.status.stats.running or service.running.lifecycle.active
        break


async def test_an_error_before_the_first_piece_has_its_own_status(start: Start) -> None:
    # The echo's first token is a special one, without text: the deadline comes before the first piece.
    service = await start(FakeScript(hang_at_step=3), request_timeout=1.5)
    response = await service.ask(stream=True)
    assert response.status_code == 504
    assert response.headers["content-type"] == "application/problem+json"


async def test_an_error_after_it_is_an_error_event(start: Start) -> None:
    service = await start(FakeScript(crash_at_step=8))
    seen = [pair async for pair in events(service)]
    names = [name for name, _ in seen]
    assert names[-2:] == ["error", "message"]
    assert seen[-2][1]["status"] == 503
    assert seen[-2][1]["code"] == "engine_failed"
    assert seen[-1][1] == "[DONE]"


@pytest.mark.parametrize(
    "prompt", ['a "quote" and a \\ backslash', "line\nbreak\r\nand tab\t", "data: [DONE]", "\x85\u2028\u2029"]
)
async def test_any_text_survives_the_event_format(service: Service, prompt: str) -> None:
    seen = [data async for _, data in events(service, prompt=prompt)]
    assert prompt in seen[-2]["response"]


def stream_of(pieces: AsyncGenerator[str]) -> sse.EventStream[str]:
    return sse.EventStream("first", pieces, str.encode, sse.error)


@pytest.mark.parametrize("taken", [0, 1], ids=["not even the head", "only the head"])
async def test_a_client_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    monkeypatch.setattr(sse, "SEND_TIMEOUT_SECONDS", 0.01)
    sent: list[Message] = []

    async def receive() -> Message:
        return await asyncio.get_running_loop().create_future()

    async def send(message: Message) -> None:
        if len(sent) == taken:
            await receive()
        sent.append(message)

    async def endless() -> AsyncGenerator[str]:
        while True:
            yield "more"

    pieces = endless()
    await stream_of(pieces)({"type": "http"}, receive, send)
    assert len(sent) == taken
    with pytest.raises(StopAsyncIteration):
        await anext(pieces)


async def test_a_client_that_does_not_take_the_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "SEND_TIMEOUT_SECONDS", 0.01)

    async def never() -> Message:
        return await asyncio.get_running_loop().create_future()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body" and not message["more_body"]:
            await never()

    async def short() -> AsyncGenerator[str]:
        yield "more"

    async with asyncio.timeout(PATIENCE):
        await stream_of(short())({"type": "http"}, never, send)
