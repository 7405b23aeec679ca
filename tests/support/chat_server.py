"""A service of a few lines on a real socket: `POST /v1/chat` and `GET /` answer as a test scripts them."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[["ChatHandler"], None]


class ChatServer(ThreadingHTTPServer):
    """Answers each chat with the next of `scripts` (the last one again and again); `chats` are the bodies it got."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ChatHandler)
        self.scripts: list[Script] = [says("Hello", " there.")]
        self.health: list[tuple[int, dict[str, str]]] = [(200, {"status": "healthy", "model": "tiny"})]
        self.chats: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.health_checks = 0
        self.client_left = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class ChatHandler(BaseHTTPRequestHandler):
    """One request; the methods are what scripts are made of."""

    server: ChatServer

    def do_GET(self) -> None:
        status, body = _next(self.server.health, self.server.health_checks)
        self.server.health_checks += 1
        self.refuse(status, body, {"Retry-After": "0"})

    def do_POST(self) -> None:
        assert self.path == "/v1/chat"
        self.server.authorizations.append(self.headers["Authorization"])
        self.server.chats.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        try:
            _next(self.server.scripts, len(self.server.chats) - 1)(self)
        except ConnectionError:
            self.server.client_left.set()

    def refuse(self, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
        """A whole JSON answer."""
        payload = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(payload)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)

    def begin(self) -> None:
        """The head of a stream; the body ends with the connection."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()

    def send_delta(self, text: str) -> None:
        self.send_raw(f"data: {json.dumps({'id': 'a', 'delta': text}, ensure_ascii=False)}\n\n")

    def send_end(self, reason: str = "stop") -> None:
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "cached_tokens": 0}
        last = {"id": "a", "delta": "", "finish_reason": reason, "response": "…", "status": 200, "usage": usage}
        self.send_raw(f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n")

    def send_raw(self, text: str) -> None:
        self.wfile.write(text.encode())
        self.wfile.flush()

    def wait_until_client_leaves(self) -> None:
        """A client that sends nothing more makes this return only when it closes the connection."""
        assert self.rfile.read(1) == b""
        self.server.client_left.set()

    def log_message(self, *args: object) -> None:
        """Requests are recorded, not printed."""


def says(*pieces: str, reason: str = "stop") -> Script:
    """A script: the pieces, then the end."""

    def script(handler: ChatHandler) -> None:
        handler.begin()
        for piece in pieces:
            handler.send_delta(piece)
        handler.send_end(reason)

    return script


def begins(*pieces: str) -> Script:
    """A script: the pieces, then silence until the client leaves."""

    def script(handler: ChatHandler) -> None:
        handler.begin()
        for piece in pieces:
            handler.send_delta(piece)
        handler.wait_until_client_leaves()

    return script


def refuses(status: int, detail: str, code: str = "", **headers: str) -> Script:
    """A script: a problem document; header names with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.refuse(status, {"status": status, "detail": detail, "code": code}, named)


@contextmanager
def serve_chats() -> Iterator[ChatServer]:
    """A running server, for as long as the context lasts."""
    with ChatServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def _next(scripts: list[Any], number: int) -> Any:
    return scripts[min(number, len(scripts) - 1)]
