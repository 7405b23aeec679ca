"""The official `openai` client works unchanged: whole answers, streams, errors as its exceptions."""

import asyncio
import re
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from service.engine.base import GenerationRequest, SamplingParams
from service.engine.fake import FakeScript
from tests.api.conftest import Service, Start
from tests.api.openai.conftest import official_client
from tests.api.test_failures import samples
from tests.support.server import until

README = Path(__file__).parents[4] / "README.md"
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "你好，世界 🌍"}]


async def test_a_question_is_answered(client: openai.AsyncOpenAI, model: str) -> None:
    completion = await client.chat.completions.create(model=model, messages=HELLO)
    (choice,) = completion.choices
    assert "你好，世界 🌍" in (choice.message.content or "")
    assert (choice.message.role, choice.finish_reason, completion.model) == ("assistant", "stop", model)
    assert completion.id == f"chatcmpl-{completion._request_id}"


async def test_the_readmes_lines_work(service: Service) -> None:
    """The first ones: further ones ask for a form, which the fake engine keeps to none of."""
    block, *_ = re.findall(r"^```python\n(.+?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    lines = block.replace("http://127.0.0.1:6006", service.running.url).replace("client.chat", "answer = client.chat")
    names: dict[str, Any] = {"openai": openai}
    await asyncio.to_thread(exec, lines, names)
    names["client"].close()
    assert "你好" in names["answer"].choices[0].message.content


async def test_tokens_are_counted(client: openai.AsyncOpenAI, model: str) -> None:
    completion = await client.chat.completions.create(model=model, messages=HELLO, max_tokens=3)
    usage = completion.usage
    assert usage is not None
    assert completion.choices[0].finish_reason == "length"
    assert usage.completion_tokens == 3
    assert usage.total_tokens == usage.prompt_tokens + 3
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 0


async def chunks_of(client: openai.AsyncOpenAI, model: str, *, usage: bool = False) -> list[ChatCompletionChunk]:
    options: openai.types.chat.ChatCompletionStreamOptionsParam = {"include_usage": usage}
    stream = await client.chat.completions.create(model=model, messages=HELLO, stream=True, stream_options=options)
    return [chunk async for chunk in stream]


async def test_the_pieces_of_a_stream_make_the_whole_answer(client: openai.AsyncOpenAI, model: str) -> None:
    chunks = await chunks_of(client, model)
    whole = await client.chat.completions.create(model=model, messages=HELLO)
    assert len(chunks) > 4
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", None]
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert {(chunk.id, chunk.model, chunk.object) for chunk in chunks} == {
        (chunks[0].id, model, "chat.completion.chunk")
    }
    assert all(chunk.usage is None for chunk in chunks)


async def test_a_stream_counts_tokens_at_its_end_where_that_is_asked_for(
    client: openai.AsyncOpenAI, model: str
) -> None:
    *pieces, last = await chunks_of(client, model, usage=True)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens > 3
    assert all(piece.usage is None and piece.choices for piece in pieces)


async def test_the_clients_own_helper_puts_a_stream_together(client: openai.AsyncOpenAI, model: str) -> None:
    async with client.chat.completions.stream(model=model, messages=HELLO) as stream:
        final = await stream.get_final_completion()
    assert "你好" in (final.choices[0].message.content or "")


async def test_an_answer_can_be_sent_back_as_it_came(client: openai.AsyncOpenAI, model: str) -> None:
    first = (await client.chat.completions.create(model=model, messages=HELLO)).choices[0].message
    messages = [*HELLO, first, {"role": "user", "content": "and now?"}]
    for said in (messages, [*HELLO, first.model_dump(), messages[-1]]):
        second = await client.chat.completions.create(model=model, messages=said)  # type: ignore[arg-type]
        assert "and now?" in (second.choices[0].message.content or "")


async def test_every_role_and_parts_of_text_are_understood(client: openai.AsyncOpenAI, model: str) -> None:
    completion = await client.chat.completions.create(
        model=model,
        messages=[
            {"role": "developer", "content": "alpha"},
            {"role": "user", "content": [{"type": "text", "text": "beta"}, {"type": "text", "text": "gamma"}]},
            {"role": "assistant", "content": "delta"},
            {"role": "user", "content": "epsilon"},
        ],
    )
    answer = completion.choices[0].message.content or ""
    assert answer.index("alpha") < answer.index("beta\ngamma") < answer.index("delta") < answer.index("epsilon")
    assert "helpful assistant" not in answer


async def test_all_settings_reach_the_engine(
    service: Service, client: openai.AsyncOpenAI, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenAI's own, and those of other servers."""
    asked: list[GenerationRequest] = []
    submit = service.engine.submit
    monkeypatch.setattr(service.engine, "submit", lambda request: asked.append(request) or submit(request))
    theirs: dict[str, Any] = {"temperature": 0.5, "top_p": 0.25, "seed": 4}
    theirs |= {"frequency_penalty": 0.75, "presence_penalty": -1.5}
    ours = {"top_k": 5, "min_p": 0.125, "repetition_penalty": 1.5}
    bias = {"7": -100, "3": 1.5}
    await client.chat.completions.create(model=model, messages=HELLO, logit_bias=bias, **theirs, extra_body=ours)
    sampling = SamplingParams(logit_bias=((7, -100.0), (3, 1.5)), **theirs, **ours)
    assert [request.sampling for request in asked] == [sampling]


async def test_a_wrong_setting_of_other_servers_is_named(client: openai.AsyncOpenAI, model: str) -> None:
    wrong = {"top_k": 5, "repetition_penalty": 0}
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=model, messages=HELLO, extra_body=wrong)
    assert caught.value.param == "repetition_penalty"


async def test_a_client_that_leaves_its_stream_costs_nothing_more(start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.01))
    async with official_client(service) as client:
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "word " * 300}]
        stream = await client.chat.completions.create(model=await name(client), messages=messages, stream=True)
        async for _ in stream:
            break
        await stream.close()
        await until(lambda: service.engine.status.stats.running == 0)
    await until(lambda: samples(service)["internlm_requests_total", "cancelled"] == 1)


async def name(client: openai.AsyncOpenAI) -> str:
    return (await client.models.list()).data[0].id


async def test_the_model_is_found_by_its_name(client: openai.AsyncOpenAI, model: str) -> None:
    found = await client.models.retrieve(model)
    assert (found.id, found.model_extra) == (model, {"max_model_len": 32_768})
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("InternLM/another")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("script", [FakeScript(step_seconds=0.05), FakeScript(crash_at_step=4)], ids=["late", "broken"])
async def test_what_would_fail_again_is_not_asked_three_times(start: Start, script: FakeScript) -> None:
    service = await start(script, request_timeout=1.5)
    async with official_client(service) as client:
        model = await name(client)
        with pytest.raises(openai.InternalServerError):
            await client.with_options(max_retries=2).chat.completions.create(model=model, messages=HELLO * 20)
    found = samples(service)
    assert sum(n for (series, label), n in found.items() if "completions 50" in label) == 1


async def test_another_model_is_not_found(client: openai.AsyncOpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert model in caught.value.message


@pytest.mark.parametrize(("words", "limit", "param"), [(40_000, 1, "messages"), (1_000, 32_000, "max_tokens")])
async def test_a_conversation_that_is_too_long_has_the_code_clients_look_for(
    client: openai.AsyncOpenAI, model: str, words: int, limit: int, param: str
) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "word " * words}]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=model, messages=messages, max_tokens=limit)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", param)
    assert "is longer than the model's context length" in caught.value.message, "LiteLLM goes by these words"


async def test_a_full_queue_is_a_rate_limit_that_the_client_waits_out(start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.005), max_running=1, max_queue=0)
    async with official_client(service) as client:
        model = await name(client)
        long = asyncio.create_task(service.ask(prompt="word " * 100))
        await until(lambda: service.engine.status.stats.running == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model=model, messages=HELLO)
        assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "rate_limit_error")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        patient = client.with_options(max_retries=5)
        assert (await patient.chat.completions.create(model=model, messages=HELLO)).choices
        await long


async def test_a_service_that_is_not_ready_says_so(start: Start) -> None:
    service = await start(loads=False)
    async with official_client(service) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="whichever", messages=HELLO)
        assert (caught.value.status_code, caught.value.code) == (503, "not_ready")


async def test_a_stream_that_fails_half_way_raises(start: Start) -> None:
    service = await start(FakeScript(crash_at_step=8))
    async with official_client(service) as client:
        model = await name(client)
        with pytest.raises(openai.APIError) as caught:
            await chunks_of(client, model)
    assert caught.value.code == "engine_failed"


async def test_a_key_is_asked_for_as_the_client_expects(start: Start, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alpha\n")
    service = await start(api_keys_file=tmp_path / "keys")
    async with official_client(service, key="wrong") as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            await stranger.models.list()
    assert caught.value.code == "invalid_api_key"
    async with official_client(service, key="alpha") as client:
        assert (await client.chat.completions.create(model=await name(client), messages=HELLO)).choices


async def test_a_bug_is_an_error_without_inside_knowledge(
    client: openai.AsyncOpenAI, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.openai.chat_completions.route.to_chat", lambda _: 1 / 0)
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(model=model, messages=HELLO)
    assert caught.value.code == "internal_error"
    assert "ZeroDivision" not in caught.value.response.text


async def test_requests_have_their_own_route_in_the_metrics(
    service: Service, client: openai.AsyncOpenAI, model: str
) -> None:
    await client.chat.completions.create(model=model, messages=HELLO)
    found = samples(service)
    assert found["internlm_http_requests_total", "/v1/chat/completions 200"] == 1
    assert found["internlm_requests_total", "stop"] == 1
