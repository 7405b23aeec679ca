"""SIGTERM on the real server: new chats are refused, the running answer ends whole, then the listener closes."""

import asyncio
import json
import os
import signal
import socket
import time

import httpx
import pytest
import uvicorn

from service.engine.fake import FakeScript
from service.lifecycle import Lifecycle, State
from service.server import DrainingServer
from service.settings import Settings
from tests.api.conftest import Service, Start
from tests.support.server import PATIENCE, until


async def streamed(service: Service) -> str:
    """The last object of a streamed answer, read line by line."""
    body = {"prompt": "hello " * 20, "stream": True}
    lines: list[str] = []
    async with service.http.stream("POST", "/v1/chat", json=body) as response:
        async for line in response.aiter_lines():
            lines += [line] if line else []
    assert lines[-1] == "data: [DONE]"
    return str(json.loads(lines[-2].removeprefix("data: "))["finish_reason"])


@pytest.fixture
async def slow(start: Start) -> Service:
    return await start(FakeScript(step_seconds=0.02), drain_delay=0.3)


async def terminate_while_streaming(service: Service) -> "asyncio.Task[str]":
    answer = asyncio.create_task(streamed(service))
    await until(lambda: service.engine.status.stats.running == 1)
    os.kill(os.getpid(), signal.SIGTERM)
    await until(lambda: service.running.lifecycle.state is State.DRAINING)
    return answer


async def test_the_running_answer_ends_whole_and_the_server_ends_after_it(slow: Service) -> None:
    answer = await terminate_while_streaming(slow)
    assert not slow.running.server.should_exit
    assert await answer == "stop"
    await until(lambda: slow.running.server.should_exit)


async def test_while_draining_readiness_is_off_and_new_chats_are_told_to_go_elsewhere(slow: Service) -> None:
    answer = await terminate_while_streaming(slow)
    ready, alive, asked = await asyncio.gather(slow.http.get("/"), slow.http.get("/healthz"), slow.ask())
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    assert (asked.status_code, asked.json()["code"]) == (503, "not_ready")
    assert asked.headers["retry-after"]
    assert asked.headers["connection"] == "close"
    assert alive.status_code == 200
    await answer


async def test_after_the_drain_the_port_is_closed(slow: Service) -> None:
    await (await terminate_while_streaming(slow))
    await until(lambda: slow.running.server.should_exit)
    await until(lambda: not slow.running.server.servers[0].is_serving())
    async with httpx.AsyncClient() as late:
        with pytest.raises(httpx.ConnectError):
            await late.get(slow.running.url)


async def test_an_idle_kept_alive_connection_does_not_hold_the_end_up(slow: Service) -> None:
    _, writer = await asyncio.open_connection(slow.running.host, slow.running.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    await (await terminate_while_streaming(slow))
    await until(lambda: not slow.running.server.servers[0].is_serving())
    writer.close()


async def test_a_connection_taken_as_the_listener_closes_is_closed_too(
    slow: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks as the port closes is told so at once, not when the process ends."""
    server = slow.running.server
    server.config.timeout_graceful_shutdown = None  # by these it would be closed, too
    monkeypatch.setattr("service.http_protocol.HEAD_SECONDS", 2 * PATIENCE)
    with socket.create_connection((slow.running.host, slow.running.port)) as last:
        last.setblocking(False)
        await asyncio.sleep(0)  # it is accepted in the next step, and would begin to be served in the one after
        closing = asyncio.create_task(server.shutdown())
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.get_running_loop().sock_recv(last, 1) == b""
        await closing


async def test_a_drain_that_takes_too_long_cuts_what_still_runs(start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.05), drain_delay=0.0, request_timeout=1.5)
    answer = await terminate_while_streaming(service)
    await until(lambda: service.running.server.should_exit)
    await asyncio.gather(answer, return_exceptions=True)


async def test_a_drain_takes_no_longer_than_delay_and_longest_request_together(start: Start) -> None:
    service = await start(drain_delay=0.5, request_timeout=1.5)
    with service.running.lifecycle.serving():  # an answer without an end
        os.kill(os.getpid(), signal.SIGTERM)
        begun = time.monotonic()
        await until(lambda: service.running.server.should_exit)
        assert time.monotonic() - begun < 10


def test_a_signal_before_the_listener_is_there_is_a_clean_end_too() -> None:
    """Whoever stops a server that still starts is not told that it died."""
    server = DrainingServer(uvicorn.Config(app="none"), Lifecycle(), Settings())
    server.handle_exit(signal.SIGTERM, None)
    assert (server.should_exit, server._captured_signals) == (True, [])
    server.handle_exit(signal.SIGTERM, None)
    assert server._captured_signals == [signal.SIGTERM], "a second one is heard by uvicorn itself"
