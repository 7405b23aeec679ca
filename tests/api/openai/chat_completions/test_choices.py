"""`n` answers to one request: whole and streamed, counted once for the prompt, and gone together."""

import asyncio
import json
from typing import Any

import openai

from service.api.answer import Transcript
from service.api.health import Identity
from service.api.openai.chat_completions.writer import ChatCompletionWriter
from service.api.openai.completing import StreamOptions
from service.chat.pieces import Done, TextDelta
from service.chat.stopwatch import Counts
from service.engine.fake import FakeScript
from tests.api.conftest import Service, Start
from tests.api.openai.conftest import official_client
from tests.support.server import until

HELLO: Any = [{"role": "user", "content": "你好，世界 🌍"}]


async def test_n_answers_come_in_one_completion(client: openai.AsyncOpenAI, model: str) -> None:
    one = await client.chat.completions.create(model=model, messages=HELLO)
    three = await client.chat.completions.create(model=model, messages=HELLO, n=3)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert {choice.message.content for choice in three.choices} == {one.choices[0].message.content}
    assert {choice.finish_reason for choice in three.choices} == {"stop"}
    assert one.usage is not None
    assert three.usage is not None
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens == 3 * one.usage.completion_tokens
    assert three.usage.total_tokens == three.usage.prompt_tokens + three.usage.completion_tokens


async def test_streamed_answers_are_told_apart_by_their_index(start: Start) -> None:
    """Of an engine that takes its time: the first answer is not done when the last one begins."""
    service = await start(FakeScript(step_seconds=0.02))
    async with official_client(service) as client:
        asked: Any = {"model": (await client.models.list()).data[0].id, "messages": HELLO, "n": 3}
        whole = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        *chunks, counted = [chunk async for chunk in stream]
    assert counted.choices == []
    assert counted.usage == whole.usage
    for index, expected in enumerate(whole.choices):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(piece.delta.content or "" for piece in mine) == expected.message.content
        assert [piece.delta.role for piece in mine[:2]] == ["assistant", None]
        assert [piece.finish_reason for piece in mine[-2:]] == [None, "stop"]
    order = [chunk.choices[0].index for chunk in chunks]
    assert order.index(2) < len(order) - 1 - order[::-1].index(0), "side by side"


async def test_all_answers_of_a_client_that_leaves_end(start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.01))
    async with official_client(service) as client:
        (model,) = (await client.models.list()).data
        endless: Any = {"max_tokens": 2000, "extra_body": {"ignore_eos": True}}
        stream = await client.chat.completions.create(model=model.id, messages=HELLO, n=4, stream=True, **endless)
        await anext(aiter(stream))
        assert service.engine.open_requests == 4
        await stream.close()
        await until(lambda: service.engine.open_requests == 0)


async def test_answers_that_find_no_place_are_refused_together(start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.05), max_running=2, max_queue=1)
    body = {"messages": HELLO, "n": 3}
    other = asyncio.create_task(service.ask(prompt="word " * 40))
    await until(lambda: service.engine.open_requests == 1)
    answer = await service.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    await other
    await until(lambda: service.engine.open_requests == 0)
    assert (await service.http.post("/v1/chat/completions", json=body)).status_code == 200


async def test_more_answers_than_there_is_ever_room_for_are_refused_for_good(start: Start) -> None:
    service = await start(max_running=2, max_queue=1)
    answer = await service.http.post("/v1/chat/completions", json={"messages": HELLO, "n": 4})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
    assert "at most 3 are answered or wait" in answer.json()["error"]["message"]


async def test_streamed_answers_begin_in_order_whichever_speaks_first() -> None:
    """The official client's helper has a place only for the next one that begins."""
    writer = ChatCompletionWriter(Identity(model="m"), StreamOptions(), reports=False, choices=3)
    transcript = Transcript(writer, None, choices=3)
    counts = Counts(3, 0, 1)
    pieces = [TextDelta("hi", counts, [], 2), Done("stop", counts, [], 1), Done("stop", counts, [], 2)]
    stream = b"".join(map(transcript.encode, [*pieces, Done("length", counts, [], 0)])).decode()
    events = [json.loads(event.removeprefix("data: "))["choices"][0] for event in stream.strip().split("\n\n")]
    told = [(event["index"], event["delta"], event["finish_reason"]) for event in events]
    role = {"role": "assistant", "content": ""}
    assert told == [
        *((index, role, None) for index in range(3)),
        (2, {"content": "hi"}, None),
        (1, {}, "stop"),
        (2, {}, "stop"),
        (0, {}, "length"),
    ]


async def test_prompts_and_answers_are_logged_once_for_each(start: Start, caplog: Any) -> None:
    service = await start(log_prompts=True)
    with caplog.at_level("INFO"):
        await service.http.post("/v1/chat/completions", json={"messages": HELLO, "n": 2})
    answered = [record.fields for record in caplog.records if record.getMessage() == "answered"]
    assert [fields["prompt"] for fields in answered] == [HELLO[0]["content"]] * 2


async def test_the_requests_line_sums_up(service: Service, caplog: Any) -> None:
    with caplog.at_level("INFO"):
        answer = await service.http.post("/v1/chat/completions", json={"messages": HELLO, "n": 3})
    (line,) = [record.fields for record in caplog.records if record.name == "service.access"]
    usage = json.loads(answer.text)["usage"]
    assert (line["outcome"], line["choices"]) == ("stop", 3)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
