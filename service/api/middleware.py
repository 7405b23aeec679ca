"""Around every request: an id for it, one log line, one count. Pure ASGI, so that streams pass untouched."""

import logging
import re
import time
import uuid
from http import HTTPMethod
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.lifecycle import Lifecycle, State
from service.log import request_id, request_notes
from service.metrics import Metrics

logger = logging.getLogger("service.access")

_PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
PROBES = {"/", "/health", "/healthz"}
METHODS = frozenset(HTTPMethod)
LONGEST_PATH = 200
LONGEST_METHOD = 20


class RequestContext:
    """Gives each request its id (the client's X-Request-Id if it is a plain one) and records how it went."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, metrics: Metrics) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, status = time.perf_counter(), 499
        name = _request_id(Headers(scope=scope).get("x-request-id", ""))
        token, notes_token = request_id.set(name), request_notes.set({})

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._mark(MutableHeaders(raw=message["headers"]), name)
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        finally:
            self._record(scope, status, time.perf_counter() - start)
            request_id.reset(token)
            request_notes.reset(notes_token)

    def _mark(self, headers: MutableHeaders, name: str) -> None:
        headers["X-Request-Id"] = name
        if self._lifecycle.state is State.DRAINING:
            headers["Connection"] = "close"  # a kept-alive client must find another pod for its next request

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")  # the template: a raw path would be unbounded
        method = scope["method"] if scope["method"] in METHODS else "other"  # a client may invent any number of them
        self._metrics.http_requests.labels(route, method, status).inc()
        quiet = route in PROBES and status == 200
        client = (scope.get("client") or ("",))[0]
        fields = {"status": status, "route": route, "seconds": round(seconds, 4), "client": client}
        logger.log(
            logging.DEBUG if quiet else logging.INFO,
            "%s %s %d",
            shown_method(scope["method"]),
            shown_path(scope["path"]),
            status,
            extra={"fields": fields | (request_notes.get() or {})},
        )


def shown_method(method: str) -> str:
    """The same of a method, which may be any word."""
    return method[:LONGEST_METHOD]


def shown_path(path: str) -> str:
    """A path as logs and answers may show it: it came decoded and could hold a line of its own, or no end."""
    quoted = quote(path[: LONGEST_PATH + 1])
    return quoted if len(quoted) <= LONGEST_PATH else f"{quoted[:LONGEST_PATH]}..."


def _request_id(wanted: str) -> str:
    return wanted if _PLAIN_ID.fullmatch(wanted) else uuid.uuid4().hex
