"""The official client's newer API works unchanged: whole responses, streams, errors as its exceptions."""

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import ResponseInputParam

from service.engine.base import GenerationRequest, SamplingParams
from service.engine.fake import FakeScript
from tests.api.conftest import Service, Start
from tests.api.openai.conftest import official_client
from tests.api.test_failures import samples
from tests.support.server import until

HELLO = "你好，世界 🌍"


async def test_a_question_is_answered(client: openai.AsyncOpenAI, model: str) -> None:
    response = await client.responses.create(model=model, input=HELLO)
    assert HELLO in response.output_text
    assert (response.status, response.model, response.error) == ("completed", model, None)
    assert response.id == f"resp_{response._request_id}"
    assert response.completed_at is not None
    assert response.created_at <= response.completed_at
    (message,) = response.output
    assert (message.type, message.status) == ("message", "completed")


async def test_what_was_asked_for_is_repeated(client: openai.AsyncOpenAI, model: str) -> None:
    response = await client.responses.create(
        model=model,
        input=HELLO,
        instructions="Be brief.",
        temperature=0.5,
        max_output_tokens=500,
        user="ann",
        metadata={"topic": "x"},
    )
    assert (response.instructions, response.temperature, response.max_output_tokens) == ("Be brief.", 0.5, 500)
    assert (response.top_p, response.tool_choice, response.tools, response.user) == (0.8, "auto", [], "ann")
    assert response.metadata == {"topic": "x"}
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "text"
    assert response.model_extra is not None
    assert (response.model_extra["store"], response.previous_response_id) == (False, None)


async def test_tokens_are_counted_and_a_cut_answer_says_so(client: openai.AsyncOpenAI, model: str) -> None:
    response = await client.responses.create(model=model, input=HELLO, max_output_tokens=3)
    assert (response.status, response.completed_at) == ("incomplete", None)
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    usage = response.usage
    assert usage is not None
    assert usage.output_tokens == 3
    assert usage.total_tokens == usage.input_tokens + 3
    assert (usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens) == (0, 0)
    assert response.output[0].model_dump()["status"] == "incomplete"


async def test_the_pieces_of_a_stream_make_the_whole_answer(client: openai.AsyncOpenAI, model: str) -> None:
    events = [event async for event in await client.responses.create(model=model, input=HELLO, stream=True)]
    whole = await client.responses.create(model=model, input=HELLO)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 4
    assert "".join(deltas) == whole.output_text
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == whole.output_text
    assert last.response.usage == whole.usage


async def test_the_clients_own_helper_puts_a_stream_together(client: openai.AsyncOpenAI, model: str) -> None:
    async with client.responses.stream(model=model, input=HELLO) as stream:
        snapshots = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert snapshots[-1] == final.output_text
    assert HELLO in final.output_text


async def test_an_answer_can_be_sent_back_as_it_came(client: openai.AsyncOpenAI, model: str) -> None:
    first = (await client.responses.create(model=model, input=HELLO)).output
    behind = {"role": "user", "content": "and now?"}
    for said in (first, [item.model_dump() for item in first]):
        asked: Any = [{"role": "user", "content": HELLO}, *said, behind]
        second = await client.responses.create(model=model, input=asked)
        assert second.output_text.count(HELLO) == 2
        assert "and now?" in second.output_text


async def test_every_role_and_parts_of_text_are_understood(client: openai.AsyncOpenAI, model: str) -> None:
    asked: ResponseInputParam = [
        {"role": "developer", "content": "beta"},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "gamma"}, {"type": "input_text", "text": "delta"}],
        },
        {"role": "assistant", "content": "epsilon"},
        {"role": "user", "content": "zeta"},
    ]
    answer = (await client.responses.create(model=model, instructions="alpha", input=asked)).output_text
    order = [answer.index(word) for word in ("alpha", "beta", "gamma\ndelta", "epsilon", "zeta")]
    assert order == sorted(order)
    assert "helpful assistant" not in answer


async def test_all_settings_reach_the_engine(
    service: Service, client: openai.AsyncOpenAI, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[GenerationRequest] = []
    submit = service.engine.submit
    monkeypatch.setattr(service.engine, "submit", lambda request: asked.append(request) or submit(request))
    theirs: dict[str, Any] = {"temperature": 0.5, "top_p": 0.25}
    ours = {"top_k": 5, "min_p": 0.125, "repetition_penalty": 1.5, "seed": 4}
    await client.responses.create(model=model, input=HELLO, max_output_tokens=9, **theirs, extra_body=ours)
    assert [request.sampling for request in asked] == [SamplingParams(**theirs, **ours)]
    assert [request.max_new_tokens for request in asked] == [9]


async def test_a_client_that_leaves_its_stream_costs_nothing_more(start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.01))
    async with official_client(service) as client:
        model = (await client.models.list()).data[0].id
        stream = await client.responses.create(model=model, input="word " * 300, stream=True)
        async for event in stream:
            if event.type == "response.output_text.delta":
                break
        await stream.close()
        await until(lambda: service.engine.status.stats.running == 0)
    await until(lambda: samples(service)["internlm_requests_total", "cancelled"] == 1)


async def test_another_model_is_not_found(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.responses.create(model="gpt-4o", input=HELLO)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(("words", "limit", "param"), [(40_000, 1, "input"), (1_000, 32_000, "max_output_tokens")])
async def test_a_conversation_that_is_too_long_has_the_code_clients_look_for(
    client: openai.AsyncOpenAI, model: str, words: int, limit: int, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model=model, input="word " * words, max_output_tokens=limit)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", param)


async def test_a_full_queue_is_a_rate_limit(start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.005), max_running=1, max_queue=0)
    async with official_client(service) as client:
        model = (await client.models.list()).data[0].id
        long = asyncio.create_task(service.ask(prompt="word " * 100))
        await until(lambda: service.engine.status.stats.running == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.responses.create(model=model, input=HELLO, stream=True)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        await long


async def test_an_answer_that_takes_too_long_names_the_clients_own_field(start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.05), request_timeout=1.5)
    async with official_client(service) as client:
        with pytest.raises(openai.InternalServerError, match=r"\(max_output_tokens\)"):
            await client.responses.create(input="word " * 100)


async def test_a_stream_that_fails_half_way_ends_in_what_failed(start: Start) -> None:
    service = await start(FakeScript(crash_at_step=8))
    async with official_client(service) as client:
        *_, last = [event async for event in await client.responses.create(input=HELLO, stream=True)]
    assert last.type == "response.failed"
    assert (last.response.status, last.response.usage) == ("failed", None)
    assert last.response.error is not None
    assert (last.response.error.code, last.response.error.message != "") == ("engine_failed", True)


async def test_a_key_is_asked_for(start: Start, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alpha\n")
    service = await start(api_keys_file=tmp_path / "keys")
    async with official_client(service, key="wrong") as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.responses.create(input=HELLO)
    async with official_client(service, key="alpha") as friend:
        assert (await friend.responses.create(input=HELLO)).output_text


async def test_requests_have_their_own_route_in_the_metrics(service: Service, client: openai.AsyncOpenAI) -> None:
    await client.responses.create(input=HELLO)
    found = samples(service)
    assert found["internlm_http_requests_total", "/v1/responses 200"] == 1
    assert found["internlm_requests_total", "stop"] == 1
