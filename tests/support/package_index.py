"""A package index on a real socket: PEP 503 pages over a directory of wheels, requests recorded, downloads held."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class PackageIndex(ThreadingHTTPServer):
    """`downloads` are the wheels asked for; clear `may_serve` to hold the next one at its first byte."""

    daemon_threads = True

    def __init__(self, wheels: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.wheels = wheels
        self.downloads: list[str] = []
        self.asked = threading.Event()
        self.may_serve = threading.Event()
        self.may_serve.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/simple/"


class _Handler(BaseHTTPRequestHandler):
    server: PackageIndex

    def do_GET(self) -> None:
        wheel = self.server.wheels / self.path.rsplit("/", 1)[-1]
        if self.path.endswith(".whl") and wheel.is_file():
            self._serve_wheel(wheel)
        else:
            links = "".join(
                f'<a href="/files/{file.name}">{file.name}</a>' for file in self.server.wheels.glob("*.whl")
            )
            self._answer(f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), "text/html")

    def _serve_wheel(self, wheel: Path) -> None:
        self.server.downloads.append(wheel.name)
        self.server.asked.set()
        self.server.may_serve.wait()
        self._answer(wheel.read_bytes(), "application/octet-stream")

    def _answer(self, body: bytes, content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Requests are recorded, not printed."""


@contextmanager
def serve_index(wheels: Path) -> Iterator[PackageIndex]:
    """An index over `wheels`, for as long as the context lasts."""
    with PackageIndex(wheels) as index:
        threading.Thread(target=index.serve_forever, daemon=True).start()
        try:
            yield index
        finally:
            index.may_serve.set()
            index.shutdown()
