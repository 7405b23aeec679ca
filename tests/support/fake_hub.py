"""A model hub on loopback with ModelScope's and Hugging Face's HTTP shapes, and switches for everything that breaks.

`python -m tests.support.fake_hub DIRECTORY --repo owner/name --port 8080 [--fault KIND[:ARGUMENT][@PATH]] …` serves
any directory as a repository, e.g. inside a pod: it needs nothing but Python's standard library.
"""

import argparse
import hashlib
import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

BLOCK = 64 << 10
LISTING = "<listing>"
"""The path of a fault that concerns listings instead of a file."""

COMMIT = "c0ffee" * 6 + "c0ff"
STALL_SECONDS = 600.0


@dataclass
class Fault:
    """What goes wrong with requests for `path` (a pattern), `times` times; then all is well.

    kind      argument                what happens
    status    HTTP status             answered with it and no content
    cut       bytes                   the connection is closed after so many bytes of the answer
    endless   bytes                   no length is announced, and the connection is closed after so many bytes
    stall     bytes                   nothing more comes after so many bytes
    trickle   bytes a second          that slow
    corrupt   -                       one byte of the content is another
    short     bytes                   the hub's object is so many bytes shorter than listed, headers included
    long      bytes                   so many bytes more
    no-range  -                       Range is ignored
    redirect  -                       302 to another address that has the file
    html      -                       200 and a web page instead
    """

    kind: str
    argument: int = 0
    path: str = "*"
    times: int = 1_000_000
    headers: dict[str, str] = field(default_factory=dict)
    seen: int = 0

    def takes(self, path: str) -> bool:
        """Does it concern this request? Counts it if so."""
        if self.seen >= self.times or (path == LISTING) != (self.path == LISTING) or not fnmatchcase(path, self.path):
            return False
        self.seen += 1
        return True


@dataclass
class Request:
    """One request as it came, for assertions."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]


class FakeHub:
    """Serves `directory` as `repo`. Change `faults`, `rate` or the directory at any time; `requests` is the log."""

    def __init__(self, directory: Path, repo: str = "owner/model", address: str = "127.0.0.1", port: int = 0) -> None:
        self.directory = directory
        self.repo = repo
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.rate = 0
        """Bytes a second of one answer; 0: as fast as it goes."""
        self.token: str | None = None
        self.storage: str | None = None
        """Address of the hub that redirected requests are sent to; None: this one."""
        self.hashes = True
        self.revisions = {"master", "main", COMMIT}
        self.commit = COMMIT
        self.extra_entries: list[dict[str, Any]] = []
        """Entries the listing has beside the directory's files: for a hub that lies."""
        self.many_entries = 0
        self.page_size = 0
        """Entries of one page of a Hugging Face listing; 0: all on one."""
        self.closing = threading.Event()
        self._hashes: dict[tuple[str, int, int], tuple[str, str]] = {}
        self.lock = threading.Lock()
        self._server = _Server((address, port), _handler_for(self))

    @property
    def endpoint(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    @property
    def file_requests(self) -> list[Request]:
        return [r for r in self.requests if "FilePath" in r.query or "/resolve/" in r.path]

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def serve_forever(self) -> None:
        self._server.serve_forever()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def fault_for(self, path: str) -> Fault | None:
        with self.lock:
            return next((fault for fault in self.faults if fault.takes(path)), None)

    def files(self) -> Iterator[tuple[str, Path]]:
        for path in sorted(self.directory.rglob("*")):
            if path.is_file():
                yield path.relative_to(self.directory).as_posix(), path

    def digests(self, path: Path) -> tuple[str, str]:
        """SHA-256 and git blob id, computed once for each state of a file."""
        state = path.stat()
        key = (str(path), state.st_size, state.st_mtime_ns)
        if key not in self._hashes:
            self._hashes[key] = _digests(path, state.st_size)
        return self._hashes[key]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """Clients that go away are what this hub is for."""


def _digests(path: Path, size: int) -> tuple[str, str]:
    sha256, blob = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode())
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            blob.update(block)
    return sha256.hexdigest(), blob.hexdigest()


def _handler_for(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"hub": hub})


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(split.query).items()}
        self.hub.requests.append(Request(unquote(split.path), query, {k.lower(): v for k, v in self.headers.items()}))
        try:
            self._route(unquote(split.path), query)
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def _route(self, path: str, query: dict[str, str]) -> None:
        repo = self.hub.repo
        if path == "/":
            self._send_json({"hub": "fake"})
        elif self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._send_status(401)
        elif path == f"/api/v1/models/{repo}/repo/files":
            self._list_modelscope(query.get("Revision", "master"))
        elif path == f"/api/v1/models/{repo}/repo":
            self._send_file(query["FilePath"], query.get("Revision", "master"))
        elif path.startswith(f"/api/models/{repo}/revision/"):
            self._huggingface_revision(path.rpartition("/")[2])
        elif path.startswith(f"/api/models/{repo}/tree/"):
            self._list_huggingface(path.rpartition("/")[2])
        elif path.startswith(f"/{repo}/resolve/"):
            revision, _, name = path.removeprefix(f"/{repo}/resolve/").partition("/")
            self._send_file(name, revision)
        elif path.startswith("/elsewhere/"):
            self._send_file(path.removeprefix("/elsewhere/"), "master", redirected=True)
        else:
            self._send_status(404)

    def _list_modelscope(self, revision: str) -> None:
        if self._spoiled_listing(revision):
            return
        if self.hub.many_entries:
            self._send_many(self.hub.many_entries)
            return
        files = []
        for name, path in self.hub.files():
            sha256 = self.hub.digests(path)[0] if self.hub.hashes else ""
            entry = {"Name": path.name, "Path": name, "Type": "blob", "Size": path.stat().st_size, "Sha256": sha256}
            files.append(entry | {"Revision": self.hub.commit, "CommittedDate": int(path.stat().st_mtime)})
        tree = {"Name": "figures", "Path": "figures", "Type": "tree", "Size": 0, "Sha256": ""}
        data = {"Files": [tree, *files, *self.hub.extra_entries]}
        self._send_json({"Code": 200, "Success": True, "Message": "", "Data": data})

    def _huggingface_revision(self, revision: str) -> None:
        if not self._spoiled_listing(revision):
            self._send_json({"id": self.hub.repo, "sha": self.hub.commit})

    def _list_huggingface(self, revision: str) -> None:
        if self._spoiled_listing(revision):
            return
        entries: list[dict[str, Any]] = [{"type": "directory", "path": "figures", "size": 0, "oid": "0" * 40}]
        for name, path in self.hub.files():
            sha256, blob = self.hub.digests(path)
            entry = {"type": "file", "path": name, "size": path.stat().st_size, "oid": blob}
            large = {"lfs": {"oid": sha256, "size": path.stat().st_size, "pointerSize": 134}}
            entries.append(entry | large if name.endswith(".safetensors") else entry)
        self._send_page([*entries, *self.hub.extra_entries])

    def _send_page(self, entries: list[dict[str, Any]]) -> None:
        """One page of a listing; the next one's address is in a header, as on Hugging Face."""
        cursor = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        size = self.hub.page_size or len(entries)
        following = f"{self.hub.storage or self.hub.endpoint}{urlsplit(self.path).path}?cursor={cursor + size}"
        link = {"Link": f'<{following}>; rel="next"'} if cursor + size < len(entries) else {}
        self._send_body(json.dumps(entries[cursor : cursor + size]).encode(), "application/json", link)

    def _spoiled_listing(self, revision: str) -> bool:
        """Answer a listing as its fault has it; False if there is none."""
        if revision not in self.hub.revisions:
            self._send_status(404)
            return True
        fault = self.hub.fault_for(LISTING)
        if fault is None:
            return False
        if fault.kind == "html":
            self._send_body(b"<html>Welcome to the airport's wireless network</html>", "text/html")
        elif fault.kind == "stall":
            self.hub.closing.wait(STALL_SECONDS)
        elif fault.kind == "cut":
            self.close_connection = True
        else:
            self._send_status(fault.argument, fault.headers)
        return True

    def _send_file(self, name: str, revision: str, redirected: bool = False) -> None:
        fault = self.hub.fault_for(name)
        path = self.hub.directory / name
        if revision not in self.hub.revisions or not path.is_file():
            self._send_status(404)
        elif fault and fault.kind == "status":
            self._send_status(fault.argument, fault.headers)
        elif fault and fault.kind == "redirect" and not redirected:
            self._send_status(302, {"Location": f"{self.hub.storage or self.hub.endpoint}/elsewhere/{name}"})
        elif fault and fault.kind == "html":
            self._send_body(b"<html>Too many requests</html>", "text/html")
        else:
            self._send_content(path, fault)

    def _send_content(self, path: Path, fault: Fault | None) -> None:
        kind, argument = (fault.kind, fault.argument) if fault else ("", 0)
        total = path.stat().st_size + {"short": -argument, "long": argument}.get(kind, 0)
        start = 0 if kind == "no-range" else self._range_start()
        if start >= total > 0:
            self._send_status(416, {"Content-Range": f"bytes */{total}"})
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if kind != "endless":
            self.send_header("Content-Length", str(total - start))
        self.end_headers()
        limit = argument if kind in ("cut", "stall", "endless") else None
        rate = argument if kind == "trickle" else self.hub.rate
        sent = self._stream(_blocks(path, start, total, corrupt=kind == "corrupt"), limit, rate)
        if limit is not None and sent >= limit:
            if kind == "stall":
                self.hub.closing.wait(STALL_SECONDS)
            self.close_connection = True

    def _stream(self, blocks: Iterable[bytes], limit: int | None, rate: int) -> int:
        """Send blocks up to `limit` bytes at `rate`; the bytes sent."""
        sent, began = 0, time.monotonic()
        step = BLOCK if not rate else max(1, min(BLOCK, rate // 20))
        for block in blocks:
            for at in range(0, len(block), step):
                piece = block[at : at + step] if limit is None else block[at : at + min(step, limit - sent)]
                self.wfile.write(piece)
                sent += len(piece)
                if sent == limit:
                    self.wfile.flush()
                    return sent
                if rate and self.hub.closing.wait(max(0.0, sent / rate - (time.monotonic() - began))):
                    return sent
        return sent

    def _range_start(self) -> int:
        value = self.headers.get("Range", "")
        return int(value.removeprefix("bytes=").partition("-")[0]) if value.startswith("bytes=") else 0

    def _send_many(self, count: int) -> None:
        """A listing of `count` entries, written as it is made."""
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self.wfile.write(b'{"Code":200,"Data":{"Files":[')
        entry = '{"Path":"model-%d.safetensors","Type":"blob","Size":1,"Sha256":"%064d"}'
        for first in range(0, count, 1000):
            text = ",".join(entry % (i, i) for i in range(first, min(first + 1000, count)))
            self.wfile.write(("," if first else "").encode() + text.encode())
        self.wfile.write(b"]}}")

    def _send_json(self, body: object) -> None:
        self._send_body(json.dumps(body).encode(), "application/json")

    def _send_body(self, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_status(self, status: int, headers: dict[str, str] | None = None) -> None:
        body = json.dumps({"Code": status, "Success": False, "Message": f"fault {status}"}).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _blocks(path: Path, start: int, total: int, *, corrupt: bool) -> Iterator[bytes]:
    """The bytes `start` to `total` of a file, zeros where it is shorter; the last bit flipped if corrupt."""
    with path.open("rb") as file:
        file.seek(start)
        position = start
        while position < total:
            block = file.read(min(BLOCK, total - position)) or bytes(min(BLOCK, total - position))
            position += len(block)
            yield block[:-1] + bytes([block[-1] ^ 1]) if corrupt and position == total else block


@contextmanager
def running_hub(directory: Path, repo: str = "owner/model") -> Iterator[FakeHub]:
    """A hub on a free port of loopback, closed at the end."""
    hub = FakeHub(directory, repo)
    hub.start()
    try:
        yield hub
    finally:
        hub.close()


def parse_fault(text: str) -> Fault:
    """`status:503@*.json` and the like."""
    what, _, path = text.partition("@")
    kind, _, argument = what.partition(":")
    return Fault(kind, int(argument or 0), path or "*")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--repo", default="owner/model")
    parser.add_argument("--address", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--rate", type=int, default=0, help="bytes a second of one answer; 0: no limit")
    parser.add_argument("--token", help="the only access token that is let in")
    parser.add_argument("--fault", action="append", default=[], type=parse_fault)
    options = parser.parse_args()
    hub = FakeHub(options.directory, options.repo, options.address, options.port)
    hub.rate, hub.token, hub.faults = options.rate, options.token, options.fault
    print(f"serving {options.directory} as {options.repo} on {hub.endpoint}", flush=True)
    hub.serve_forever()


if __name__ == "__main__":
    main()
