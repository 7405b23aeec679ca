"""A client that goes away frees its slot, whether it streamed or waited for JSON. Real sockets, real closes."""

import asyncio
import json

import pytest
from starlette.types import Message, Scope

from service.engine.fake import FakeScript
from tests.api.conftest import Service, Start
from tests.api.test_failures import samples
from tests.support.server import PATIENCE, until

PROMPT = "hello " * 2000


async def connect_and_ask(service: Service, stream: bool) -> asyncio.StreamWriter:
    """Send a request that would run for minutes; the caller closes the connection."""
    body = json.dumps({"prompt": PROMPT, "stream": stream, "max_new_tokens": 20_000}).encode()
    reader, writer = await asyncio.open_connection(service.running.host, service.running.port)
    head = f"POST /v1/chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    if stream:
        await reader.readuntil(b"data: ")
    return writer


@pytest.fixture
async def endless(start: Start) -> Service:
    """A slow engine: the echo of PROMPT takes it minutes, so that only a cancel ends a request soon."""
    return await start(FakeScript(step_seconds=0.02), max_running=2)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
async def test_a_leaving_client_frees_its_slot_within_a_step(endless: Service, stream: bool) -> None:
    writer = await connect_and_ask(endless, stream)
    await until(lambda: endless.engine.status.stats.running == 1)
    writer.transport.abort()
    await until(lambda: endless.engine.status.stats.running == 0)
    assert endless.running.lifecycle.active == 0


@pytest.mark.parametrize("more", [b"\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["line break", "request"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
async def test_a_client_that_sent_more_is_missed_too(endless: Service, stream: bool, more: bytes) -> None:
    writer = await connect_and_ask(endless, stream)
    await until(lambda: endless.engine.status.stats.running == 1)
    protocol = next(iter(endless.running.server.server_state.connections))
    writer.write(more)
    await until(lambda: protocol.flow.read_paused)
    writer.transport.abort()
    await until(lambda: endless.engine.status.stats.running == 0)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
async def test_a_waiting_request_leaves_the_queue_with_its_client(endless: Service, stream: bool) -> None:
    running = [await connect_and_ask(endless, stream) for _ in range(2)]
    await until(lambda: endless.engine.status.stats.running == 2)
    waiting = await connect_and_ask(endless, stream=False)
    await until(lambda: endless.engine.status.stats.waiting == 1)
    waiting.transport.abort()
    await until(lambda: endless.engine.status.stats.waiting == 0)
    assert endless.engine.status.stats.running == 2
    for writer in running:
        writer.transport.abort()
    await until(lambda: endless.engine.status.stats.running == 0)


async def test_a_client_that_leaves_while_it_sends_its_body_made_no_mistake(service: Service) -> None:
    head = "POST /v1/chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    _, writer = await asyncio.open_connection(service.running.host, service.running.port)
    writer.write(head.encode() + b'{"prompt": ')
    await writer.drain()
    writer.transport.abort()
    await until(lambda: samples(service).get(("internlm_http_requests_total", "/v1/chat 499")) == 1)
    assert ("internlm_http_requests_total", "/v1/chat 400") not in samples(service)


async def test_the_others_do_not_notice(endless: Service) -> None:
    leaving = await connect_and_ask(endless, stream=True)
    asking = asyncio.create_task(endless.ask(max_new_tokens=50))
    leaving.transport.abort()
    answer = await asking
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] <= 50


async def test_a_client_that_leaves_between_the_first_piece_and_the_first_byte_ends_its_request(
    endless: Service,
) -> None:
    """Called as by a server whose connection takes nothing: the head of the answer is what the client never gets."""
    body = json.dumps({"prompt": PROMPT, "stream": True}).encode()
    head_is_due, messages = asyncio.Event(), [{"type": "http.request", "body": body}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await head_is_due.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        head_is_due.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(PATIENCE):
        await endless.running.server.config.app(a_post("/v1/chat"), receive, send)
    assert endless.running.lifecycle.active == 0


def a_post(path: str) -> Scope:
    headers = [(b"host", b"x"), (b"content-type", b"application/json")]
    return {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
