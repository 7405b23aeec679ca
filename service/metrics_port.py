"""/metrics on a port of its own, in threads: a scrape must work while the event loop does not."""

import asyncio
import contextlib
import logging
import threading
from socketserver import BaseRequestHandler, BaseServer
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server

from service.http_protocol import HEAD_SECONDS
from service.settings import Settings

logger = logging.getLogger(__name__)

RETRY_BIND_SECONDS = 2


async def serve_metrics(settings: Settings, registry: CollectorRegistry) -> None:
    """Serve the metrics of `registry` until it is cancelled; at once done where no port is set.

    During a restart in place the port may still be the predecessor's; it is asked for again until it is free.
    """
    if not settings.metrics_port:
        return
    while True:
        try:
            server, thread = start_http_server(settings.metrics_port, settings.host, registry)
            break
        except OSError as error:
            logger.warning("INTERNLM_METRICS_PORT=%d: %s; trying again", settings.metrics_port, error)
            await asyncio.sleep(RETRY_BIND_SECONDS)
    server.RequestHandlerClass = _impatient(server.RequestHandlerClass)
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.to_thread(_close, server, thread)


def _impatient(handler: Any) -> type[BaseRequestHandler]:
    """A class of request handlers, but a client that does not send its request loses its connection: each holds a
    thread, and one of the files that the API's clients need, too."""

    class Impatient(handler):  # type: ignore[misc]
        timeout = HEAD_SECONDS

        def handle(self) -> None:
            with contextlib.suppress(TimeoutError):
                super().handle()

    return Impatient


def _close(server: BaseServer, thread: threading.Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join()
