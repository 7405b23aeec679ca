"""The benchmark's client: tokens that came without events with their text are no measure of a server."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest

from tests.bench import web
from tests.bench.web import Stream, _read, load

TOKENS = 20


def answer(texts: int) -> bytes:
    """A stream as the server sends it, of TOKENS tokens and so many texts."""
    pieces = [json.dumps({"id": "a", "delta": f' \\w"{i}'}, separators=(",", ":")) for i in range(texts)]
    usage = {"prompt_tokens": 7, "completion_tokens": TOKENS, "cached_tokens": 0}
    last = json.dumps({"response": "...", "usage": usage, "delta": ""}, separators=(",", ":"))
    return "".join(f"data: {piece}\n\n" for piece in (*pieces, last, "[DONE]")).encode()


@asynccontextmanager
async def serving(body: bytes) -> AsyncIterator[str]:
    """The URL of a server that answers everything so."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield "http://{}:{}".format(*server.sockets[0].getsockname())


async def test_streams_are_counted_by_tokens_and_by_texts() -> None:
    async with serving(answer(texts=19)) as url:
        found = await load(url, streams=3, words=2, new_tokens=TOKENS)
    assert found.streams == [Stream(prompt_tokens=7, completion_tokens=TOKENS, texts=19)] * 3
    assert found.tokens_per_second == pytest.approx(60 / found.seconds)
    assert found.texts_per_second == pytest.approx(57 / found.seconds)


async def test_a_server_that_sends_few_texts_is_not_measured() -> None:
    async with serving(answer(texts=17)) as url:
        with pytest.raises(RuntimeError, match="only 51 events with text for 60 tokens"):
            await load(url, streams=3, words=2, new_tokens=TOKENS)


@pytest.mark.parametrize("size", [1, 3, 8, 9, 10, 11, 50])
async def test_no_text_is_lost_or_counted_twice_where_pieces_meet(size: int) -> None:
    class Pieces:
        left = answer(texts=5)

        async def read(self, _: int) -> bytes:
            piece, self.left = self.left[:size], self.left[size:]
            return piece

    assert (await _read(Pieces())).texts == 5  # type: ignore[arg-type]


def test_a_server_that_does_not_end_is_killed_with_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which else keeps the GPU's memory, and every section behind it waits for that and fails."""
    monkeypatch.setattr(web, "STOP_SECONDS", 0.2)
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    starts_engine = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {deaf!r}], start_new_session=True); {deaf}"
    )
    with subprocess.Popen([sys.executable, "-c", starts_engine], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert [process.stdout.readline(), process.stdout.readline()] == [b"deaf\n"] * 2
        (engine,) = psutil.Process(process.pid).children()
        with pytest.raises(subprocess.TimeoutExpired):
            web._stop(process)
        psutil.wait_procs([engine], timeout=10)
        # Nobody may be there to wait for it.
        assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
        assert process.wait(10) == -signal.SIGKILL


async def test_a_stream_that_breaks_off_is_an_error() -> None:
    async with serving(answer(texts=20)[:100]) as url:
        with pytest.raises(RuntimeError, match="without its usage"):
            await load(url, streams=1, words=2, new_tokens=TOKENS)
