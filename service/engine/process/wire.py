"""What web worker and engine process say to each other: msgpack messages, each behind four bytes of length."""

import asyncio
import hashlib
import socket
import struct
from typing import TypeVar

import msgspec

from service import __version__
from service.engine.base import EngineConfig, EngineInfo, EngineStats, Event, GenerationRequest

LONGEST_MESSAGE = 64 * 1024 * 1024
"""Bytes. A request is bounded by the body limit, a report by the batch: more than this is no message of ours."""

_LENGTH = struct.Struct(">I")


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Answer this request."""

    request: GenerationRequest


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Nobody reads this request's answer any more."""

    id: str


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End the engine; unless forced, only if no other connection uses it."""

    force: bool = False


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The engine's first message on a connection: what it is. `digest` is that of its configuration."""

    version: str
    digest: str
    pid: int


class Beat(msgspec.Struct, frozen=True, tag=True):
    """The heartbeat, about once a second, whatever the step loop does.

    `phase` says what loading is at, `step_age` (seconds) how long the step that runs now has taken; `info` comes
    once the engine can generate.
    """

    phase: str
    step_age: float
    stats: EngineStats
    info: EngineInfo | None


class Report(msgspec.Struct, frozen=True, tag=True):
    """The events of one step; now and then with fresh statistics."""

    events: list[Event]
    stats: EngineStats | None = None


class Ended(msgspec.Struct, frozen=True, tag=True):
    """The engine's last message: it ends, and why. `restart` False: a new one would end the same way."""

    reason: str
    restart: bool


class Kept(msgspec.Struct, frozen=True, tag=True):
    """The answer to a Stop while another connection uses the engine: it goes on, without this connection."""


FromClient = Submit | Cancel | Stop
FromEngine = Hello | Beat | Report | Ended | Kept

M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()


def client_decoder() -> msgspec.msgpack.Decoder[FromClient]:
    """Decodes what clients send."""
    return msgspec.msgpack.Decoder(FromClient)


def engine_decoder() -> msgspec.msgpack.Decoder[FromEngine]:
    """Decodes what engines send."""
    return msgspec.msgpack.Decoder(FromEngine)


def frame(message: FromClient | FromEngine) -> bytes:
    """The message as it goes over the socket."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


async def read(reader: asyncio.StreamReader, decoder: msgspec.msgpack.Decoder[M]) -> M | None:
    """The next message; None when the other side is gone. Raises msgspec.DecodeError for what is no message."""
    try:
        length = _checked(await reader.readexactly(_LENGTH.size))
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, OSError):
        return None
    return decoder.decode(body)


def receive(connection: socket.socket, decoder: msgspec.msgpack.Decoder[M]) -> M | None:
    """As `read`, blocking. Raises TimeoutError by the socket's timeout, msgspec.DecodeError for what is no message."""
    header = _receive_exactly(connection, _LENGTH.size)
    body = header and _receive_exactly(connection, _checked(header))
    return decoder.decode(body) if body else None


def digest(config: EngineConfig) -> str:
    """Equal for engines that would be started alike."""
    return hashlib.sha256(msgspec.json.encode(config)).hexdigest()


def hello_of(config: EngineConfig, pid: int) -> Hello:
    """How an engine with this configuration introduces itself."""
    return Hello(__version__, digest(config), pid)


def _checked(header: bytes) -> int:
    length: int = _LENGTH.unpack(header)[0]
    if length > LONGEST_MESSAGE:
        raise msgspec.DecodeError(f"a message of {length} bytes; the longest has {LONGEST_MESSAGE}")
    return length


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    """`size` bytes, or none when the other side is gone before."""
    received = b""
    while len(received) < size:
        try:
            piece = connection.recv(size - len(received))
        except ConnectionError:
            return b""
        if not piece:
            return b""
        received += piece
    return received
