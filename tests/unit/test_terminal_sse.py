"""Events are read as the standard says, wherever the network cuts the bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.terminal.sse import Event, read_events

STREAMS = {
    "one event": (b"data: hi\n\n", [Event("", "hi")]),
    "no space after the colon": (b"data:hi\n\n", [Event("", "hi")]),
    "only one space is taken off": (b"data:  hi\n\n", [Event("", " hi")]),
    "several lines of data": (b"data: a\ndata: b\n\n", [Event("", "a\nb")]),
    "a named event, then an ordinary one": (
        b"event: error\ndata: x\n\ndata: y\n\n",
        [Event("error", "x"), Event("", "y")],
    ),
    "comments and unknown fields": (b": ping\nid: 7\nretry: 10\ndata: hi\n\n", [Event("", "hi")]),
    "blank lines": (b"\n\n\ndata: hi\n\n\n", [Event("", "hi")]),
    "carriage returns": (b"data: hi\r\n\r\n", [Event("", "hi")]),
    "an event without data is none": (b"event: error\n\ndata: y\n\n", [Event("", "y")]),
    "an event that no blank line ends": (b"data: hi\n\ndata: lost", [Event("", "hi")]),
    "nothing": (b"", []),
    "line separators of Unicode": ("data: a\u2028b\u0085c\x0bd\n\n".encode(), [Event("", "a\u2028b\u0085c\x0bd")]),
    "bytes that are no UTF-8": (b"data: \xff\n\n", [Event("", "\ufffd")]),
}


@pytest.mark.parametrize(("stream", "events"), STREAMS.values(), ids=STREAMS)
def test_a_stream_is_read(stream: bytes, events: list[Event]) -> None:
    assert list(read_events([stream])) == events


@given(
    st.lists(st.text(alphabet=st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), min_size=1),
    st.data(),
)
def test_events_are_the_same_wherever_the_bytes_are_cut(texts: list[str], data: st.DataObject) -> None:
    stream = b"".join(f"data: {text}\n\n".encode() for text in texts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)))))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [event.data for event in read_events(chunks)] == texts
