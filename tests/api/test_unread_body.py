"""Bodies that nobody reads: the answer arrives, then the connection ends, however much the client would still send."""

import asyncio
import contextlib

import pytest

from service.api import unread_body
from tests.api.conftest import Service, Start

HEAD = b"Host: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
PATIENCE = 30


@pytest.fixture
async def small(start: Start) -> Service:
    return await start(max_body_bytes=1 << 20, body_timeout=0.2)


class Client:
    """One connection, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, service: Service) -> "Client":
        return cls(*await asyncio.open_connection(service.running.host, service.running.port))

    async def answer(self) -> tuple[bytes, bytes]:
        """Head and body of the answer."""
        async with asyncio.timeout(PATIENCE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            return head, await self.reader.readexactly(length)

    async def send_without_end(self) -> int:
        """Chunks until the server has closed; returns how many bytes it took."""
        sent = 0
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE):
                while not self.reader.at_eof():
                    self.writer.write(CHUNK)
                    await self.writer.drain()
                    await asyncio.sleep(0)
                    sent += len(CHUNK)
        return sent

    async def closed(self) -> bool:
        """Whether the server closes the connection, if nothing more is sent."""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE):
                return await self.reader.read() == b""
        return True


@pytest.mark.parametrize(
    ("path", "status"), [(b"/v1/chat", b"413"), (b"/v2/chat", b"404"), (b"/", b"405")], ids=["413", "404", "405"]
)
async def test_a_body_without_end_is_discarded_up_to_a_bound(
    small: Service, monkeypatch: pytest.MonkeyPatch, path: bytes, status: bytes
) -> None:
    monkeypatch.setattr(unread_body, "DISCARD_BYTES", 4 << 20)
    client = await Client.connect(small)
    client.writer.write(b"POST " + path + b" HTTP/1.1\r\n" + HEAD + CHUNK * 20)
    head, body = await client.answer()
    assert head.startswith(b"http/1.1 " + status)
    assert b"connection: close" in head
    assert b'"status":' + status in body
    assert await client.send_without_end() < 64 << 20
    client.writer.close()


async def test_a_body_that_stalls_is_waited_for_up_to_a_bound(small: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_body, "DISCARD_SECONDS", 0.1)
    client = await Client.connect(small)
    client.writer.write(b"POST /v1/chat HTTP/1.1\r\n" + HEAD + b'9\r\n{"prompt"\r\n')
    head, _ = await client.answer()
    assert head.startswith(b"http/1.1 408")
    assert await client.closed()
    client.writer.close()


async def test_a_client_that_sends_all_before_it_reads_gets_its_answer(small: Service) -> None:
    body = b" " * (12 << 20)
    request = (
        f"POST /v1/chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    client = await Client.connect(small)
    client.writer.write(request.encode() + body)
    await client.writer.drain()
    head, _ = await client.answer()
    assert head.startswith(b"http/1.1 413")
    assert await client.closed()
    client.writer.close()


@pytest.mark.parametrize(("length", "status"), [(100, b"100"), (2 << 20, b"413")])
async def test_a_body_is_invited_unless_it_is_said_to_be_too_large(small: Service, length: int, status: bytes) -> None:
    head = f"POST /v1/chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    client = await Client.connect(small)
    client.writer.write(head.encode() + b"Expect: 100-continue\r\n\r\n")
    async with asyncio.timeout(PATIENCE):
        assert (await client.reader.readline()).startswith(b"HTTP/1.1 " + status)
    client.writer.close()


async def test_the_answer_is_logged_before_the_rest_is_discarded(
    small: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    client = await Client.connect(small)
    client.writer.write(b"POST /v2/chat HTTP/1.1\r\n" + HEAD)
    await client.answer()
    async with asyncio.timeout(unread_body.DISCARD_SECONDS / 2):
        while "POST /v2/chat 404" not in caplog.text:
            await asyncio.sleep(0.005)
    client.writer.close()


async def test_a_body_that_was_read_leaves_the_connection_open(small: Service) -> None:
    client = await Client.connect(small)
    for content in (b'{"prompt": ""}', b'{"prompt": "hi"}'):
        head = f"POST /v1/chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
        client.writer.write(head.encode() + b"\r\n\r\n" + content)
        answered, _ = await client.answer()
        assert b"connection: close" not in answered
    client.writer.close()
