"""The metrics' own port, on real sockets."""

import asyncio
import socket
import threading

import httpx
import pytest
from prometheus_client import CollectorRegistry

from service import metrics_port
from service.metrics_port import serve_metrics
from service.settings import Settings
from tests.support.engines import until
from tests.system.conftest import free_port


def scrape(port: int) -> int:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/metrics").status_code
    except httpx.ConnectError:
        return 0


async def test_clients_that_do_not_send_their_request_hold_neither_threads_nor_files(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """They are of the process that answers chats."""
    monkeypatch.setattr(metrics_port, "HEAD_SECONDS", 0.3)
    port = free_port()
    serving = asyncio.create_task(serve_metrics(Settings(host="127.0.0.1", metrics_port=port), CollectorRegistry()))
    while await asyncio.to_thread(scrape, port) != httpx.codes.OK:
        await asyncio.sleep(0.01)
    before = threading.active_count()
    begun = (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\nHost: a")
    silent = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(12)]
    for at, connection in enumerate(silent):
        connection.sendall(begun[at % len(begun)])
    assert await asyncio.to_thread(scrape, port) == httpx.codes.OK
    ends = [await asyncio.to_thread(connection.recv, 1) for connection in silent]
    assert ends == [b""] * len(silent)
    await until(lambda: threading.active_count() <= before + 1)  # the threads of asyncio's own
    for connection in silent:
        connection.close()
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    assert await asyncio.to_thread(scrape, port) == 0
    assert "Traceback" not in capfd.readouterr().err
