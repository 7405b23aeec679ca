"""A connection on which no request comes to be is closed; one that idles between two is not, nor is a slow answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service import http_protocol
from service.engine.fake import FakeScript
from tests.api.conftest import Service, Start

HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.5)


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(service: Service) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection(service.running.host, service.running.port)
    try:
        async with asyncio.timeout(10):
            yield reader, writer
    finally:
        writer.close()


async def answer(connection: Connection) -> bytes:
    reader, writer = connection
    writer.write(HEAD)
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = (line for line in head.split(b"\r\n") if line.startswith(b"content-length: "))
    await reader.readexactly(int(length.split()[1]))
    return head


@pytest.mark.parametrize("begin", [b"", b"GET / HTTP/1.1\r\nHost:"], ids=["nothing", "half"])
async def test_a_head_that_does_not_come_ends_the_connection(service: Service, begin: bytes) -> None:
    async with connected(service) as (reader, writer):
        writer.write(begin)
        assert await reader.read() == b""


async def test_a_byte_now_and_then_does_not_keep_the_connection_open(service: Service) -> None:
    async with connected(service) as (reader, writer):
        ending = asyncio.create_task(reader.read())
        for byte in HEAD:
            writer.write(bytes([byte]))
            await asyncio.wait([ending], timeout=0.05)
        assert await ending == b""


async def test_a_second_head_that_does_not_end_is_no_idle_connection(service: Service) -> None:
    async with connected(service) as connection:
        assert b"200 OK" in await answer(connection)
        connection[1].write(b"GET / HTTP/1.1\r\n")
        assert await connection[0].read() == b""


async def test_a_half_head_behind_a_whole_one_is_no_idle_connection(service: Service) -> None:
    async with connected(service) as (reader, writer):
        writer.write(HEAD + b"GET / HTTP/1.1\r\n")
        assert b"200 OK" in await reader.read()


async def test_a_connection_may_idle_between_requests_for_longer(service: Service) -> None:
    async with connected(service) as connection:
        await answer(connection)
        await asyncio.sleep(1.0)
        assert b"200 OK" in await answer(connection)


async def test_a_slow_answer_is_not_cut(start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.05))
    response = await service.ask(prompt="hello " * 20, max_new_tokens=20)
    assert response.elapsed.total_seconds() > 0.6
    assert response.status_code == 200
