"""Server-sent events, read: bytes become events (WHATWG HTML, "Interpreting an event stream"; no ids, no retries)."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Event(NamedTuple):
    """One event; `name` is empty for the ordinary kind."""

    name: str
    data: str


def read_events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """The events in a body that arrives in pieces cut anywhere. One that no blank line ends is dropped."""
    name, data = "", list[str]()
    for line in _lines(chunks):
        field, _, value = line.partition(":")
        if not line and data:
            yield Event(name, "\n".join(data))
        if not line:
            name, data = "", []
        elif field == "event":
            name = value.removeprefix(" ")
        elif field == "data":
            data.append(value.removeprefix(" "))


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    # Not httpx's iter_lines: it also breaks lines at U+2028, U+0085 and others, which JSON strings may hold.
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")
