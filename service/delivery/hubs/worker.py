"""The child process that talks to a hub: requests as lines on standard input, replies on standard output.

A process of its own because a client library may hang, leak, print or read its environment at import; the parent can
end it at any moment and lose nothing but the last few bytes. Its standard input stays open as a lifeline: when the
parent is gone, however it went, the child leaves at once instead of writing on to a volume nobody guards.
"""

import json
import logging
import os
import queue
import resource
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from service.delivery.hubs.catalog import MAX_ENTRIES
from service.delivery.symptoms import Symptom, describe

MEMORY_BYTES = 192 << 20
"""Most private memory of the child (RLIMIT_DATA; the stacks of threads count whole). With the parent's 50 MiB
this keeps the download below 300 MB even where a hub answers with a listing of a million files."""

STACK_BYTES = 1 << 20
"""Of a thread; the usual 8 MiB would fill the limit with the threads of sixteen transfers."""

CLIENT_SCRATCH = "client"
"""Folder of the scratch directory for what the client keeps: its home, its cache. Removed at the end."""


@dataclass(frozen=True)
class Request:
    """What the child is to do. `operation` is list or fetch; `files` are path, size and sha256 of what to fetch."""

    operation: str
    repo: str
    revision: str
    endpoint: str
    token: str | None
    directory: str
    scratch: str
    workers: int
    stall_timeout: float
    files: list[dict[str, Any]]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Listing:
    """A hub's answer, not yet judged: entries with path, size, sha256, git_oid, version; the commit if known."""

    entries: list[dict[str, Any]]
    commit: str | None


class Hub(Protocol):
    """What a source must be able to do."""

    def list_files(self, request: Request) -> Listing:
        """All files of the repository at the revision; raises whatever its client raises."""

    def fetch(self, request: Request) -> dict[str, BaseException]:
        """Bring `request.files` into `request.directory`; the error of each file that could not be brought.

        A file grows under its name plus `.incomplete` and is resumed there; it gets its name when it is whole.
        """


class ListingTooLong(MemoryError):
    """More entries than a model can have."""


def main(connect: Callable[[Request], Hub]) -> None:
    """Serve requests until the parent goes. `connect` imports the client, so the limits are set before."""
    replies, requests = sys.stdout, queue.SimpleQueue[str]()
    threading.stack_size(STACK_BYTES)
    threading.Thread(target=_receive, args=(requests,), daemon=True).start()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s: %(message)s")
    sys.stdout = sys.stderr  # whatever the client prints is no reply
    hub: Hub | None = None
    while True:
        request = Request(**json.loads(requests.get()))
        try:
            hub = hub or connect(request)
            reply = _serve(hub, request)
        except MemoryError:
            reply = {"error": Symptom("the hub's listing is far longer than a model's", ["MemoryError"]).to_json()}
        except Exception as error:
            reply = {"error": describe(error).to_json()}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _serve(hub: Hub, request: Request) -> dict[str, Any]:
    if request.operation == "list":
        return asdict(_bounded(hub.list_files(request)))
    return {"failures": {path: describe(error).to_json() for path, error in hub.fetch(request).items()}}


def _receive(requests: "queue.SimpleQueue[str]") -> None:
    """Pass requests on; when the parent's end of the pipe is closed, leave, whatever is going on."""
    for line in sys.stdin:
        requests.put(line)
    os._exit(1)


def _bounded(listing: Listing) -> Listing:
    if len(listing.entries) > MAX_ENTRIES:
        raise ListingTooLong
    return listing
