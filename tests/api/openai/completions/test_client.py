"""The official `openai` client has texts gone on with: whole, streamed, several at once. The fake engine says the
prompt again, so that an answer shows what the model was asked."""

from pathlib import Path
from typing import Any

import openai
import pytest

from service.api.openai.completions.request import DEFAULT_NEW_TOKENS
from service.engine.fake import FakeScript
from service.tokenizer.loading import load_tokenizer
from tests.api.conftest import Service, Start
from tests.api.openai.conftest import Scripted, official_client

MESSAGES = [{"role": "user", "content": "hi"}]
TEXT = "the quick 你好，世界 🌍"
ENOUGH: dict[str, Any] = {"max_tokens": 200}


async def test_a_text_goes_to_the_model_as_it_is(client: openai.AsyncOpenAI, model: str) -> None:
    completion = await client.completions.create(model=model, prompt=TEXT, **ENOUGH)
    (choice,) = completion.choices
    assert (choice.text, choice.index, choice.finish_reason, choice.logprobs) == (TEXT, 0, "stop", None)
    assert (completion.object, completion.model) == ("text_completion", model)
    assert completion.id == f"cmpl-{completion._request_id}"


async def test_tokens_are_counted_and_limited(client: openai.AsyncOpenAI, model: str) -> None:
    for options, most in (({}, DEFAULT_NEW_TOKENS), ({"max_tokens": 3}, 3)):
        completion = await client.completions.create(model=model, prompt=TEXT * 3, **options)
        usage = completion.usage
        assert completion.choices[0].finish_reason == "length"
        assert usage is not None
        assert usage.completion_tokens == most
        assert usage.total_tokens == usage.prompt_tokens + most


async def test_the_pieces_of_a_stream_make_the_whole_text(client: openai.AsyncOpenAI, model: str) -> None:
    options: Any = {"model": model, "prompt": TEXT, "max_tokens": 200}
    whole = await client.completions.create(**options)
    counting = {"include_usage": True}
    *chunks, counted = [
        each async for each in await client.completions.create(**options, stream=True, stream_options=counting)
    ]
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert {(chunk.id, chunk.object, chunk.usage) for chunk in chunks} == {(chunks[0].id, "text_completion", None)}
    assert (counted.choices, counted.usage) == ([], whole.usage)
    uncounted = [each async for each in await client.completions.create(**options, stream=True)]
    assert all(chunk.choices and chunk.usage is None for chunk in uncounted)


async def test_usage_may_stand_in_every_event(client: openai.AsyncOpenAI, model: str) -> None:
    wanted: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = await client.completions.create(model=model, prompt=TEXT, stream=True, stream_options=wanted, **ENOUGH)
    counts = [chunk.usage.completion_tokens async for chunk in stream if chunk.usage]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts_have_answers_of_their_own(start: Start, stream: bool) -> None:
    """Numbered as OpenAI numbers them, and each prompt's tokens are counted once."""
    service = await start(FakeScript(step_seconds=0.002))
    prompts = ["one", "the second one", "三"]
    async with official_client(service) as client:
        (model,) = (await client.models.list()).data
        asked: Any = {"model": model.id, "n": 2, **ENOUGH}
        alone = [await client.completions.create(**(asked | {"prompt": each})) for each in prompts]
        whole = await client.completions.create(**asked, prompt=prompts)
        texts = [choice.text for choice in whole.choices]
        if stream:
            texts = [""] * 6
            async for chunk in await client.completions.create(**asked, prompt=prompts, stream=True):
                texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["one", "one", "the second one", "the second one", "三", "三"]
    assert [choice.index for choice in whole.choices] == list(range(6))
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(whole.usage, name) == sum(getattr(each.usage, name) for each in alone)


async def test_token_ids_are_the_text_that_they_are_of(
    client: openai.AsyncOpenAI, model: str, service: Service
) -> None:
    ids = load_tokenizer(service.running.server.config.app.state.settings.model_dir).encode_text(TEXT)  # type: ignore[union-attr]
    one = await client.completions.create(model=model, prompt=ids, **ENOUGH)
    two = await client.completions.create(model=model, prompt=[ids, ids[:3]], max_tokens=3)
    assert one.choices[0].text == TEXT
    assert one.usage is not None
    assert one.usage.prompt_tokens == len(ids)
    assert two.usage is not None
    assert two.usage.prompt_tokens == len(ids) + 3


async def test_a_text_ends_before_a_stop_string(client: openai.AsyncOpenAI, model: str) -> None:
    for stop in ("quick", ["nowhere", "quick"]):
        (choice,) = (await client.completions.create(model=model, prompt=TEXT, stop=stop, **ENOUGH)).choices
        assert (choice.text, choice.finish_reason) == ("the ", "stop")


async def test_a_text_ends_with_a_stop_token_which_is_none_of_it(
    client: openai.AsyncOpenAI, model: str, model_dir: Path
) -> None:
    """The fake engine says all other tokens of the prompt before it."""
    *others, end = load_tokenizer(model_dir).encode_text("the quick brown")
    assert end not in others
    extra = {"ignore_eos": True, "stop_token_ids": [end]}
    for stream in (False, True):
        answer: Any = await client.completions.create(
            model=model, prompt=[*others, end], stream=stream, extra_body=extra, **ENOUGH
        )
        choices = [chunk.choices[0] async for chunk in answer] if stream else answer.choices
        assert "".join(choice.text for choice in choices) == load_tokenizer(model_dir).decode(others)
        assert choices[-1].finish_reason == "stop"


async def test_stop_tokens_end_it_beside_the_models_own(scripted: Scripted, calling: Service) -> None:
    for path, prompt in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": MESSAGES})):
        for ignores in (False, True):
            body = {"stop_token_ids": [77, 78], "ignore_eos": ignores, **prompt}
            assert (await calling.http.post(path, json=body)).status_code == 200
            assert scripted.asked[-1].stop_ids == [*([] if ignores else scripted.tokenizer.stop_ids), 77, 78]


async def test_benchmarks_go_on_past_the_end(client: openai.AsyncOpenAI, model: str) -> None:
    """As vLLM's and its kin ask: with `ignore_eos` and as many tokens as they want."""
    extra: Any = {
        "ignore_eos": True,
        "min_tokens": 150,
        "repetition_penalty": 1.0,
        "top_k": -1,
        "add_special_tokens": True,
    }
    completion = await client.completions.create(
        model=model, prompt="hi", max_tokens=150, temperature=0, logprobs=None, best_of=1, extra_body=extra
    )
    assert completion.usage is not None
    assert (completion.usage.completion_tokens, completion.choices[0].finish_reason) == (150, "length")


async def asked_by(scripted: Scripted, calling: Service, **body: Any) -> str:
    """The prompt that a request gives the model."""
    answer = await calling.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return scripted.prompt


async def test_markup_in_a_text_is_markup(scripted: Scripted, calling: Service) -> None:
    """A client that writes the chat's format itself asks what a chat asks."""
    said = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    asked = await asked_by(scripted, calling, prompt=said)
    ids = scripted.asked[-1].prompt_ids
    chat = await calling.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})
    assert chat.status_code == 200
    assert scripted.asked[-1].prompt_ids == ids
    assert asked == f"<s>{said}"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"prompt": "hi"}, "<s>hi"),
        ({"prompt": "<s>hi"}, "<s>hi"),
        ({"prompt": "hi", "add_special_tokens": False}, "hi"),
        ({"prompt": ""}, "<s>"),
    ],
)
async def test_a_text_begins_as_the_tokenizer_says_and_never_twice(
    scripted: Scripted, calling: Service, body: dict[str, Any], expected: str
) -> None:
    assert await asked_by(scripted, calling, **body) == expected


async def test_a_text_is_gone_on_with_and_not_begun_anew(scripted: Scripted, calling: Service) -> None:
    """SentencePiece's words have their space before them, which only the first word of a text does not."""
    scripted.text = "quick"
    texts = {}
    for prompt in ("the", "the<|im_end|>"):
        answer = await calling.http.post("/v1/completions", json={"prompt": prompt, "logprobs": None})
        texts[prompt] = answer.json()["choices"][0]["text"]
    assert texts == {"the": " quick", "the<|im_end|>": "quick"}


async def test_an_answer_may_be_held_to_a_schema(scripted: Scripted, calling: Service) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    await asked_by(scripted, calling, prompt="A number:", response_format=form)
    assert '"a"' in scripted.asked[-1].grammar
