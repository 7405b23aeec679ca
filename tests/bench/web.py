"""The whole product under load: the server as an operator starts it, and clients that stream from it."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from service.settings import PREFIX

START_SECONDS = 300
"""The 8B model is up in one. A command that may take ten is to say why it is not."""
STOP_SECONDS = 60
TAIL_BYTES = 1 << 17
"""The last event repeats the whole answer, and its usage comes after it."""
TEXT = b'"delta":"'
"""In every event with new text, and once in the last one, which has none."""
LEAST_TEXTS = 0.9
"""Events with text, by tokens. Only the end of an answer and parts of characters have none; a server that had less to
send than tokens came would be measured doing nothing."""
WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Stream:
    """What one stream was: tokens as the server counted them, and events with text."""

    prompt_tokens: int
    completion_tokens: int
    texts: int


@dataclass(frozen=True)
class WebRun:
    """Tokens and events with text per second over HTTP, and what the streams were."""

    streams: list[Stream]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return sum(stream.completion_tokens for stream in self.streams) / self.seconds

    @property
    def texts_per_second(self) -> float:
        return sum(stream.texts for stream in self.streams) / self.seconds

    def require_texts(self) -> None:
        """Raise RuntimeError when tokens came without the events that carry their text."""
        texts = sum(stream.texts for stream in self.streams)
        tokens = sum(stream.completion_tokens for stream in self.streams)
        if texts < LEAST_TEXTS * tokens:
            raise RuntimeError(
                f"only {texts} events with text for {tokens} tokens: most of the server's work was spared"
            )


@contextmanager
def server(model_dir: Path, settings: dict[str, object]) -> Iterator[str]:
    """The URL of a server that is ready, with these settings beside ours. Raises RuntimeError with its last words when
    it is not in time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ours = {"host": "127.0.0.1", "port": port, "metrics_port": 0, "model_dir": model_dir, "log_level": "warning"}
    names = {f"{PREFIX}{name}".upper(): str(value) for name, value in (ours | settings).items()}
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "service", "serve"]
        process = subprocess.Popen(command, env=os.environ | names, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            if not _becomes_ready(url, process):
                log.seek(0)
                raise RuntimeError(f"the server did not become ready: {log.read()[-2000:]}")
            yield url
        finally:
            _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Raises TimeoutExpired when it had to be killed. Its engine goes, too, which would keep the GPU's memory."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        for each in (process, *family):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        raise


def _becomes_ready(url: str, process: "subprocess.Popen[bytes]") -> bool:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, timeout=5).json().get("status") == "healthy":
                return True
        except (httpx.TransportError, ValueError):
            pass
        time.sleep(0.1)
    return False


async def load(url: str, streams: int, words: int, new_tokens: int) -> WebRun:
    """`streams` streaming requests at once, after as many short ones, from the first byte sent to the last one read.

    Raises RuntimeError when a stream broke off, or most tokens had no event.
    """
    await _ask_all(url, [f"warm up {index}" for index in range(streams)], WARM_UP_TOKENS)
    prompts = [f"{index} " + " ".join(f"word{index * i}" for i in range(words)) for index in range(streams)]
    started = time.perf_counter()
    found = WebRun(await _ask_all(url, prompts, new_tokens), time.perf_counter() - started)
    found.require_texts()
    return found


async def _ask_all(url: str, prompts: list[str], new_tokens: int) -> list[Stream]:
    return await asyncio.gather(*(_ask(url, prompt, new_tokens) for prompt in prompts))


async def _ask(url: str, prompt: str, new_tokens: int) -> Stream:
    """One stream to its end. By hand, since an HTTP library takes longer over an event than the server."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": prompt, "stream": True, "max_new_tokens": new_tokens, "seed": 1}).encode()
    head = f"POST /v1/chat HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    try:
        return await _read(reader)
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> Stream:
    end, texts = b"", 0
    while piece := await reader.read(1 << 16):
        texts += (end[1 - len(TEXT) :] + piece).count(TEXT)  # one may lie across two pieces
        end = (end + piece)[-TAIL_BYTES:]
    usages = re.findall(rb'"usage":\s*(\{[^}]*\})', end)
    if not usages:
        raise RuntimeError(f"a stream ended without its usage: {end[:500]!r}")
    usage: dict[str, int] = json.loads(usages[-1])
    return Stream(int(usage["prompt_tokens"]), int(usage["completion_tokens"]), texts - 1)
