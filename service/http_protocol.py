"""uvicorn's HTTP/1.1, but a connection on which no request arrives does not stay open for ever."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0
"""How long a request's head may take to arrive: since the connection opened, or, on a reused one, its first byte."""


class HttpProtocol(H11Protocol):
    """uvicorn bounds how long a connection may idle between requests, not how long a request may take to begin."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._follow_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # A next request may have come in part; with nothing of it here, the connection idles as uvicorn has it.
        if self.conn.their_state is not h11.IDLE or self.conn.trailing_data[0]:
            self._follow_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_head()

    def _follow_head(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self._await_head()
        else:
            self._forget_head()

    def _await_head(self) -> None:
        # Never anew: a byte now and then would keep the connection open.
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
