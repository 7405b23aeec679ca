"""uvicorn's HTTP/1.1, bounded where a client could hold up others: how long a request takes to begin, and an answer to
be read; how much is parsed in one go, and how much is kept of what nobody asked for.
"""

import asyncio
from collections import deque
from typing import Any
from weakref import WeakKeyDictionary

import h11
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0
"""How long a request's head may take to arrive: since the connection opened, or, on a reused one, its first byte."""

UNREAD_SECONDS = 60.0
"""How long a client may leave more of an answer unread than the socket's buffers hold."""

PIECE_BYTES = 2048
"""Of heads and of bodies in chunks, which are parsed at some five bytes per 30 microseconds where chunks are tiny: ten
milliseconds."""

MOST_AHEAD_BYTES = 64 * 1024
"""Of further requests, while one is answered: beyond, nothing is read until it is, not even that the client leaves."""


class Line:
    """Connections on which much has arrived: in each turn of the event loop a piece of one is parsed, so that however
    many there are, whoever else is served waits for one piece."""

    def __init__(self) -> None:
        self._waiting: deque[HttpProtocol] = deque()

    def join(self, connection: "HttpProtocol") -> None:
        if not self._waiting:
            connection.loop.call_soon(self._turn)
        self._waiting.append(connection)

    def _turn(self) -> None:
        connection = self._waiting.popleft()
        if self._waiting:
            connection.loop.call_soon(self._turn)
        connection.take_turn()


LINES: WeakKeyDictionary[asyncio.AbstractEventLoop, Line] = WeakKeyDictionary()


class HttpProtocol(H11Protocol):
    """uvicorn bounds how long a connection may idle between requests, and none of what stands above."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._arrived = bytearray()  # and not parsed yet
        self._is_in_line = False
        self._line = LINES.setdefault(self.loop, Line())

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = self._flow = _Flow(transport, self)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._arrived += data
        if self._is_in_line or len(self._arrived) > PIECE_BYTES or self._is_in_chunks():
            self._join_line()
        else:
            self._parse(len(self._arrived))

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # A next request may have come in part; with nothing of it here, the connection idles as uvicorn has it.
        if self.conn.their_state is not h11.IDLE or self.conn.trailing_data[0]:
            self._follow_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_unread()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._arrived.clear()
        self._forget_head()
        self._forget_unread()

    @property
    def is_far_ahead(self) -> bool:
        """Whether the client has sent much behind the request that is answered."""
        is_answered = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        return is_answered and len(self._arrived) + len(self.conn.trailing_data[0]) > MOST_AHEAD_BYTES

    def take_turn(self) -> None:
        """Parse a piece of what has arrived; called by the line."""
        self._is_in_line = False
        if self.transport.is_closing():
            self._arrived.clear()
            return
        is_costly = self._is_in_chunks() or self.conn.their_state is not h11.SEND_BODY
        self._parse(PIECE_BYTES if is_costly else len(self._arrived))
        if self._arrived:
            self._join_line()
        else:
            self._flow.release()

    def _join_line(self) -> None:
        self._flow.hold()
        if not self._is_in_line:
            self._is_in_line = True
            self._line.join(self)

    def _parse(self, count: int) -> None:
        piece = bytes(self._arrived[:count])
        del self._arrived[:count]
        before = self.cycle
        super().data_received(piece)
        if self.cycle is not before and self._has_two_lengths():
            self.cycle.keep_alive = False  # RFC 9112, section 6.1: a proxy may have seen another end of this request
        self._follow_head()

    def _is_in_chunks(self) -> bool:
        return self.conn.their_state is h11.SEND_BODY and _names(self.headers) >= {b"transfer-encoding"}

    def _has_two_lengths(self) -> bool:
        return _names(self.headers) >= {b"transfer-encoding", b"content-length"}

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

    def _forget_unread(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None


class _Flow(FlowControl):
    """Nothing more is read while what has arrived waits to be parsed, or there is much of it already: whoever wants to
    read on."""

    def __init__(self, transport: asyncio.Transport, connection: HttpProtocol) -> None:
        super().__init__(transport)
        self._connection = connection
        self._is_held = self._is_wanted_paused = False

    def hold(self) -> None:
        self._is_held = True
        super().pause_reading()

    def release(self) -> None:
        self._is_held = False
        if not self._is_wanted_paused:
            super().resume_reading()

    def pause_reading(self) -> None:
        self._is_wanted_paused = True
        super().pause_reading()

    def resume_reading(self) -> None:
        if self._connection.is_far_ahead:
            return
        self._is_wanted_paused = False
        if not self._is_held:
            super().resume_reading()


def _names(headers: list[tuple[bytes, bytes]]) -> set[bytes]:
    return {name for name, _ in headers}
