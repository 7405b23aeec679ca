"""The events of a streamed response: their order, their numbers, and that each says what the whole response says."""

import json
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest

from service.api.answer import Transcript
from service.api.health import Identity
from service.api.openai.responses.request import LOGPROBS, ResponseRequest
from service.api.openai.responses.writer import ResponseWriter
from service.chat.logprobs import Likelihood, TokenReport
from service.chat.pieces import CallDelta, Delta, Done, TextDelta
from service.chat.stopwatch import Counts
from service.errors import EngineFailed
from tests.api.conftest import Service

COUNTS = Counts(3, 1, 3)
MESSAGE = ["response.output_item.added", "response.content_part.added"]
MESSAGE_ENDS = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
BEGINS = ["response.created", "response.in_progress"]
CALL_ENDS = ["response.function_call_arguments.done", "response.output_item.done"]


def report(token: str) -> TokenReport:
    return TokenReport(token, -0.5, list(token.encode()), [Likelihood(token, -0.5, list(token.encode()))])


def text(said: str, *tokens: str) -> TextDelta:
    return TextDelta(said, COUNTS, list(map(report, tokens)))


def call(name: str, arguments: str) -> CallDelta:
    return CallDelta(name, arguments, COUNTS)


def done(reason: str = "stop", *tokens: str) -> Done:
    return Done(reason, COUNTS, list(map(report, tokens)))


def writer(**body: Any) -> ResponseWriter:
    return ResponseWriter(Identity(model="m"), ResponseRequest.model_validate({"input": "hi"} | body))


def parsed(stream: bytes) -> Iterator[dict[str, Any]]:
    """The events, each of which must go by the name that its data says."""
    for event in stream.decode().removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        told: dict[str, Any] = json.loads(data.removeprefix("data: "))
        assert name == f"event: {told['type']}"
        yield told


def events(*pieces: Delta | Done, **body: Any) -> list[dict[str, Any]]:
    transcript = Transcript(writer(**body), None, choices=1)
    told = list(parsed(b"".join(map(transcript.encode, pieces))))
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    return told


async def whole(*pieces: Delta | Done, **body: Any) -> dict[str, Any]:
    async def answer() -> AsyncGenerator[Delta | Done]:
        for piece in pieces:
            yield piece

    collected = await Transcript(writer(**body), None, choices=1).collect(answer())
    told: dict[str, Any] = json.loads(collected.model_dump_json())
    return told


ANSWERS: dict[str, tuple[list[Delta | Done], list[str], list[str]]] = {
    "text": (
        [text("Hel"), text("lo"), done()],
        [*BEGINS, *MESSAGE, *["response.output_text.delta"] * 2, *MESSAGE_ENDS, "response.completed"],
        ["message completed"],
    ),
    "text that is cut": (
        [text("Hel"), done("length")],
        [*BEGINS, *MESSAGE, "response.output_text.delta", *MESSAGE_ENDS, "response.incomplete"],
        ["message incomplete"],
    ),
    "nothing": ([done()], [*BEGINS, *MESSAGE, *MESSAGE_ENDS, "response.completed"], ["message completed"]),
    "a call": (
        [call("now", ""), call("", "{"), call("", "}"), done("tool_calls")],
        [
            *BEGINS,
            "response.output_item.added",
            *["response.function_call_arguments.delta"] * 2,
            *CALL_ENDS,
            "response.completed",
        ],
        ["function_call completed"],
    ),
    "a call behind text": (
        [text("Well."), call("now", "{}"), done("tool_calls")],
        [
            *BEGINS,
            *MESSAGE,
            "response.output_text.delta",
            *MESSAGE_ENDS,
            "response.output_item.added",
            "response.function_call_arguments.delta",
            *CALL_ENDS,
            "response.completed",
        ],
        ["message completed", "function_call completed"],
    ),
    "a call that is cut": (
        [text("Well."), call("now", '{"a'), done("length")],
        [
            *BEGINS,
            *MESSAGE,
            "response.output_text.delta",
            *MESSAGE_ENDS,
            "response.output_item.added",
            "response.function_call_arguments.delta",
            *CALL_ENDS,
            "response.incomplete",
        ],
        ["message completed", "function_call incomplete"],
    ),
}
each_answer = pytest.mark.parametrize(("pieces", "types", "items"), ANSWERS.values(), ids=ANSWERS)


@each_answer
async def test_events_come_in_order_and_end_in_the_whole_response(
    pieces: list[Delta | Done], types: list[str], items: list[str]
) -> None:
    told = events(*pieces)
    assert [event["type"] for event in told] == types
    last = told[-1]["response"]
    assert [f"{item['type']} {item['status']}" for item in last["output"]] == items
    apart = {"id", "call_id", "created_at", "completed_at"}
    assert without(apart, last) == without(apart, await whole(*pieces)), "streamed or not, it is the same"


def without(names: set[str], value: Any) -> Any:
    if isinstance(value, list):
        return [without(names, each) for each in value]
    if isinstance(value, dict):
        return {name: without(names, each) for name, each in value.items() if name not in names}
    return value


@each_answer
async def test_every_item_is_told_of_at_its_place_under_one_id(
    pieces: list[Delta | Done], types: list[str], items: list[str]
) -> None:
    told = events(*pieces)
    output = told[-1]["response"]["output"]
    assert len({item["id"] for item in output}) == len(output)
    for event in told:
        if "output_index" in event:
            item = output[event["output_index"]]
            assert event.get("item_id", item["id"]) == event.get("item", item)["id"] == item["id"]
    ended = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert ended == output
    assert [event["item"]["status"] for event in told if event["type"] == "response.output_item.added"] == [
        "in_progress"
    ] * len(output)


@each_answer
async def test_deltas_add_up_to_what_is_told_at_the_end(
    pieces: list[Delta | Done], types: list[str], items: list[str]
) -> None:
    told = events(*pieces)
    for kind, field in (("output_text", "text"), ("function_call_arguments", "arguments")):
        deltas = "".join(event["delta"] for event in told if event["type"] == f"response.{kind}.delta")
        ends = [event[field] for event in told if event["type"] == f"response.{kind}.done"]
        assert "".join(ends) == deltas


async def test_a_response_that_begins_says_what_was_asked_for_and_nothing_else() -> None:
    first, second, *_ = events(text("a"), done(), instructions="Be brief.", temperature=0.25)
    assert (first["response"], first["type"]) == (second["response"], "response.created")
    response = first["response"]
    assert (response["status"], response["output"], response["usage"]) == ("in_progress", [], None)
    assert (response["instructions"], response["temperature"], response["completed_at"]) == ("Be brief.", 0.25, None)


async def test_tokens_are_counted_in_the_whole_response() -> None:
    usage = (await whole(text("a"), done()))["usage"]
    assert usage == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 6,
    }


async def test_log_probabilities_go_with_their_text() -> None:
    asked = {"include": [LOGPROBS], "top_logprobs": 1}
    pieces: list[Delta | Done] = [text("a", "a"), text("bc", "b", "c"), done("stop", "d")]
    told = events(*pieces, **asked)
    deltas = [event for event in told if event["type"] == "response.output_text.delta"]
    assert [[token["token"] for token in event["logprobs"]] for event in deltas] == [["a"], ["b", "c"]]
    assert deltas[0]["logprobs"][0]["top_logprobs"] == [{"token": "a", "logprob": -0.5, "bytes": [97]}]
    (end,) = [event for event in told if event["type"] == "response.output_text.done"]
    (message,) = told[-1]["response"]["output"]
    (unstreamed,) = (await whole(*pieces, **asked))["output"]
    for logprobs in (end["logprobs"], message["content"][0]["logprobs"], unstreamed["content"][0]["logprobs"]):
        assert [token["token"] for token in logprobs] == ["a", "b", "c", "d"]


async def test_a_failure_is_the_last_event_and_carries_on_the_count() -> None:
    failing = writer()
    transcript = Transcript(failing, None, choices=1)
    stream = transcript.encode(text("Hel")) + failing.error(EngineFailed("the engine failed"))
    told = list(parsed(stream))
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert told[-1]["type"] == "response.failed"
    assert told[-1]["response"]["error"] == {"code": "engine_failed", "message": "the engine failed"}
    assert told[-1]["response"]["status"] == "failed"


async def test_a_stream_on_the_wire_ends_as_the_specification_has_it(service: Service) -> None:
    response = await service.http.post("/v1/responses", json={"input": "hello\u2028there", "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("\n\ndata: [DONE]\n\n")
    told = list(parsed(response.content.removesuffix(b"data: [DONE]\n\n")))
    assert told[-1]["type"] == "response.completed"
    counts = Counter(event["type"] for event in told)
    assert counts["response.output_text.delta"] > 4
    assert all(counts[kind] == 1 for kind in [*BEGINS, *MESSAGE, *MESSAGE_ENDS])
