"""Messages and their framing: every message comes back as it was sent, and what is no message is said to be none."""

import asyncio
import socket

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.base import EngineInfo, EngineStats, Finish, FinishReason, GpuMemory, Token
from service.engine.process import wire
from tests.support.engines import a_request, fake_config

GPU = GpuMemory(index=0, name="GPU", total=80 << 30, used=1, allocated=2, reserved=3)
INFO = EngineInfo(
    kind="native",
    device="cuda:0",
    dtype="bfloat16",
    max_context=32_768,
    max_running=256,
    vocab_size=128_512,
    versions={"torch": "2"},
    degraded=["rms_norm"],
    startup_seconds={"load": 8.5},
)
FROM_CLIENT: list[wire.FromClient] = [
    wire.Submit(a_request([1, 2, 128_511], stop=[2, 128_131])),
    wire.Cancel("a"),
    wire.Stop(),
    wire.Stop(force=True),
]
FROM_ENGINE: list[wire.FromEngine] = [
    wire.Hello("0.1.0", "digest", 4711),
    wire.Beat("reading weights", 0.0, EngineStats(), None),
    wire.Beat("", 1.5, EngineStats(running=3, gpus=[GPU]), INFO),
    wire.Report([Token("a", 17, 0.25, 64), Token("b", 0), Finish("b", FinishReason.REJECTED, "full", 3)]),
    wire.Report([], EngineStats(waiting=2)),
    wire.Ended("it broke", restart=True),
    wire.Kept(),
]


async def read_all(data: bytes) -> list[wire.FromEngine]:
    """What a reader makes of these bytes, up to their end."""
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    decoder, messages = wire.engine_decoder(), []
    while (message := await wire.read(reader, decoder)) is not None:
        messages.append(message)
    return messages


async def test_every_message_of_the_engine_comes_back_as_it_was_sent() -> None:
    assert await read_all(b"".join(map(wire.frame, FROM_ENGINE))) == FROM_ENGINE


@pytest.mark.parametrize("message", FROM_CLIENT, ids=lambda message: type(message).__name__)
def test_every_message_of_the_client_comes_back_as_it_was_sent(message: wire.FromClient) -> None:
    here, there = socket.socketpair()
    with here, there:
        here.sendall(wire.frame(message))
        assert wire.receive(there, wire.client_decoder()) == message


@given(st.lists(st.integers(0, 200_000), max_size=200), st.text(max_size=40))
def test_any_prompt_and_any_id_survive(prompt: list[int], id_: str) -> None:
    message = wire.Submit(a_request(prompt, id_=id_ or "x"))
    assert wire.client_decoder().decode(wire.frame(message)[4:]) == message


async def test_a_message_cut_short_is_the_end_of_the_connection() -> None:
    whole = wire.frame(FROM_ENGINE[2])
    for length in range(len(whole)):
        assert await read_all(whole[:length]) == []


def test_a_message_that_arrives_in_pieces_is_put_together() -> None:
    here, there = socket.socketpair()
    with here, there:
        here.sendall(wire.frame(wire.Hello("v", "d" * 200_000, 1))[:3])
        there.settimeout(0.01)
        with pytest.raises(TimeoutError):
            wire.receive(there, wire.engine_decoder())


def test_the_other_side_going_away_is_no_message() -> None:
    here, there = socket.socketpair()
    with there:
        here.close()
        assert wire.receive(there, wire.engine_decoder()) is None


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\xc1",
        wire.frame(wire.Stop()),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["too long", "not msgpack", "the client's message", "another protocol"],
)
async def test_what_is_no_message_of_the_engine_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        await read_all(data)


def test_engines_started_alike_have_one_digest_and_others_another() -> None:
    assert wire.digest(fake_config()) == wire.digest(fake_config())
    assert wire.digest(fake_config()) != wire.digest(fake_config(max_running=3))
