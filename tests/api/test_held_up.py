"""What one connection does does not hold up others, nor make the service keep what nobody asked for."""

import asyncio
import json
import socket
from contextlib import closing
from typing import Any

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from service import http_protocol
from service.engine.fake import FakeScript
from tests.api.conftest import Service, Start
from tests.support.server import until

IN_CHUNKS = b"POST /v1/chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
READ_AT_ONCE = 256 * 1024
GET = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"


def in_chunks_of(size: int, body: bytes) -> bytes:
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """In which turn of the event loop how many bytes were parsed in one go."""
    found: list[tuple[int, int]] = []
    turn = 0

    def count() -> None:
        nonlocal turn
        turn += 1
        asyncio.get_running_loop().call_soon(count)

    parse = H11Protocol.data_received

    def noting(self: H11Protocol, data: bytes) -> None:
        if not turn:
            count()
        found.append((turn, len(data)))
        parse(self, data)

    monkeypatch.setattr(H11Protocol, "data_received", noting)
    return found


async def send(service: Service, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(service.running.host, service.running.port)
    writer.write(data)
    async with asyncio.timeout(30):
        answer = await reader.readuntil(b"\r\n\r\n") + await reader.read(10_000)
    writer.close()
    return answer


async def test_bodies_in_tiny_chunks_are_parsed_piece_by_piece_and_one_at_a_time(
    service: Service, parsed: list[tuple[int, int]]
) -> None:
    body = json.dumps({"prompt": "hi"}).encode() + b" " * 20_000
    connections = [send(service, IN_CHUNKS + in_chunks_of(1, body)) for _ in range(4)]
    answers = await asyncio.gather(*connections)
    assert all(b"200 OK" in answer for answer in answers)
    assert max(size for _, size in parsed) <= http_protocol.PIECE_BYTES
    in_line = [turn for turn, size in parsed if size == http_protocol.PIECE_BYTES]
    assert len(in_line) > 4 * 100_000 // http_protocol.PIECE_BYTES
    # The first turn is counted twice: there is no counting before something is parsed.
    assert len(set(in_line)) >= len(in_line) - 1, "others are served in between"


@pytest.mark.parametrize("size", [100, 5000, 70_000])
async def test_a_body_in_chunks_of_any_size_arrives_whole(service: Service, size: int) -> None:
    body = json.dumps({"prompt": "hello " + "x" * 1000, "max_new_tokens": 5}).encode() + b" " * 200_000
    assert b"200 OK" in await send(service, IN_CHUNKS + in_chunks_of(size, body))


async def test_a_body_of_a_known_length_is_parsed_at_once(service: Service, parsed: list[tuple[int, int]]) -> None:
    body = json.dumps({"prompt": "hi", "max_new_tokens": 5}).encode() + b" " * 1_000_000
    head = b"POST /v1/chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    assert b"200 OK" in await send(service, head % len(body) + body)
    assert max(size for _, size in parsed) > 10 * http_protocol.PIECE_BYTES


async def test_of_who_sends_on_and_on_while_it_is_answered_no_more_is_read(start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.05))
    body = json.dumps({"prompt": "word " * 40, "stream": True}).encode()
    head = b"POST /v1/chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    _, writer = await asyncio.open_connection(service.running.host, service.running.port)
    writer.write(head % len(body) + body)
    await until(lambda: service.engine.status.stats.running == 1)
    (connection,) = [each for each in service.running.server.server_state.connections if is_answered(each)]
    for _ in range(8):
        writer.write(HEALTHZ * 20_000)  # megabytes, most of which must stay with the client
        await asyncio.sleep(0.2)
        kept = len(connection._arrived) + len(connection.conn.trailing_data[0])
        assert kept < 2 * READ_AT_ONCE, "what one read may bring behind what is too much"
        assert service.engine.status.stats.running == 1
    writer.transport.abort()
    await until(lambda: service.engine.status.stats.running == 0)


def is_answered(connection: Any) -> bool:
    return connection.cycle is not None and not connection.cycle.response_complete


async def test_requests_that_come_ahead_are_answered_in_turn(service: Service) -> None:
    reader, writer = await asyncio.open_connection(service.running.host, service.running.port)
    writer.write(HEALTHZ * 3000)  # more than are read ahead
    async with asyncio.timeout(60):
        for _ in range(3000):
            head = await reader.readuntil(b"\r\n\r\n")
            (length,) = (line for line in head.split(b"\r\n") if line.startswith(b"content-length: "))
            await reader.readexactly(int(length.split()[1]))
            assert b"200 OK" in head
    writer.close()


async def test_a_client_that_does_not_read_its_answers_is_let_go(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "UNREAD_SECONDS", 0.5)
    with closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, (service.running.host, service.running.port))
        connections = service.running.server.server_state.connections
        before = len(connections)
        await until(lambda: len(connections) > before or before > 1)
        sending = asyncio.create_task(loop.sock_sendall(client, GET * 400))
        await until(lambda: len(connections) <= 1)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_a_request_with_two_lengths_is_the_last_of_its_connection(service: Service) -> None:
    """RFC 9112, section 6.1: a proxy in front may have taken what comes behind it for a part of its body."""
    both = IN_CHUNKS.replace(b"Host: x\r\n", b"Host: x\r\nContent-Length: 5\r\n")
    body = json.dumps({"prompt": "hi"}).encode()
    reader, writer = await asyncio.open_connection(service.running.host, service.running.port)
    writer.write(both + in_chunks_of(50, body) + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(30):
        answers = await reader.read()
    assert b"200 OK" in answers
    assert b"smuggled" not in answers
    writer.close()
