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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

START_SECONDS = 600
TAIL_BYTES = 1 << 17
"""The last event repeats the whole answer, and its usage comes after it."""


@dataclass(frozen=True)
class WebRun:
    """Tokens per second over HTTP, and the lengths of the prompts as the server counted them."""

    tokens_per_second: float
    prompt_lengths: list[int]
    new_tokens: list[int]


@contextmanager
def server(model_dir: Path, settings: dict[str, object]) -> Iterator[str]:
    """The URL of a server that is ready. Raises RuntimeError with its last words when it is not in time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ours = {"HOST": "127.0.0.1", "PORT": port, "METRICS_PORT": 0, "MODEL_DIR": model_dir, "LOG_LEVEL": "warning"}
    names = {f"INTERNLM_{name}": str(value) for name, value in (ours | settings).items()}
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
            process.terminate()
            process.wait(60)


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
    """`streams` streaming requests at once, measured from the first byte sent to the last one read."""
    await _ask(url, "warm up", 4)
    prompts = [f"{index} " + " ".join(f"word{index * i}" for i in range(words)) for index in range(streams)]
    started = time.perf_counter()
    usages = await asyncio.gather(*(_ask(url, prompt, new_tokens) for prompt in prompts))
    took = time.perf_counter() - started
    generated = [int(usage["completion_tokens"]) for usage in usages]
    return WebRun(sum(generated) / took, [int(usage["prompt_tokens"]) for usage in usages], generated)


async def _ask(url: str, prompt: str, new_tokens: int) -> dict[str, int]:
    """The usage at the end of one stream. By hand, since an HTTP library takes longer over an event than the server."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": prompt, "stream": True, "max_new_tokens": new_tokens, "seed": 1}).encode()
    head = f"POST /v1/chat HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    received = b""
    while piece := await reader.read(1 << 16):
        received = (received + piece)[-TAIL_BYTES:]
    writer.close()
    usages = re.findall(rb'"usage":\s*(\{[^}]*\})', received)
    if not usages:
        raise RuntimeError(f"a stream ended without its usage: {received[:500]!r}")
    usage: dict[str, int] = json.loads(usages[-1])
    return usage
