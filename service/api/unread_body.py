"""An answer given before the request's body was read: the rest is read away within bounds, then the connection ends."""

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DISCARD_BYTES = 64 << 20
DISCARD_SECONDS = 10.0
"""A client that sends all before it reads the answer has so long to get there."""


class UnreadBody:
    """Around everything else, so that the request is logged and counted when it is answered.

    To close at once would reset the connection, and that may take the answer away before the client has read it
    (RFC 9112, section 9.6); to keep it open would be to read whatever a client cares to send, for ever.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _announces_body(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(receive, send)
        await self._app(scope, exchange.receive, exchange.send)
        await exchange.end()


class _Exchange:
    """One request with a body, and its answer. The answer's last message is held back while the body is unread."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._is_whole = False
        self._closes = False
        self._is_held_back = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._is_whole = self._is_whole or not message.get("more_body", False)  # a disconnect ends the body, too
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._closes = not self._is_whole
            if self._closes:
                MutableHeaders(raw=message["headers"])["Connection"] = "close"
        elif self._closes and not message.get("more_body", False):
            self._is_held_back = True
            message = {**message, "more_body": True}
        await self._send(message)

    async def end(self) -> None:
        if self._is_held_back:
            with suppress(TimeoutError):
                async with asyncio.timeout(DISCARD_SECONDS):
                    await self._discard()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _discard(self) -> None:
        discarded = 0
        while not self._is_whole and discarded < DISCARD_BYTES:
            discarded += len((await self.receive()).get("body", b""))


def _announces_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
