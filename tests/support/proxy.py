"""A proxy of a few lines: takes a prefix away from paths, and can break a connection within an answer."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import Any

from service.server import stop_accepting

UNREAD = 0.5
"""Seconds in which a client reads what came before a cut: a reset takes away what it has not read yet."""


@dataclass
class Proxy:
    """`prefix` is taken from requests; the first answer in which `cut_at` comes is cut there, its connection reset."""

    upstream: int
    prefix: str = ""
    cut_at: bytes = b""
    port: int = field(default=0, init=False)
    connections: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.prefix}"

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._join(reader, writer))
        self.connections.add(connection)
        connection.add_done_callback(self.connections.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
            with closing(there_writer):
                await first_of(self._requests(reader, there_writer), self._answers(there_reader, writer))

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data.replace(f" {self.prefix}/".encode(), b" /", 1))
            await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            before, cut, _ = data.partition(self.cut_at) if self.cut_at else (data, b"", b"")
            writer.write(before)
            await writer.drain()
            if cut:
                self.cut_at = b""
                await asyncio.sleep(UNREAD)
                return


async def first_of(*ways: Coroutine[Any, Any, None]) -> None:
    """Until one has ended; the others are ended with it."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def run_proxy(upstream: int, prefix: str = "", cut_at: bytes = b"") -> AsyncIterator[Proxy]:
    """A proxy on a free port."""
    proxy = Proxy(upstream, prefix, cut_at)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        await stop_accepting([server])
        server.close()
        for connection in proxy.connections:
            connection.cancel()
        await asyncio.gather(*proxy.connections, return_exceptions=True)
