"""The official client has the real small model go on with texts, through the production server."""

from typing import Any

import openai
import pytest

TEXT = "The capital of France is"
QUESTION = "What is the capital of France?"
AS_A_CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
)
"""What the model's own template makes of the question."""


@pytest.fixture
def greedy(client: openai.OpenAI) -> dict[str, Any]:
    model = client.models.list().data[0].id
    return {"model": model, "max_tokens": 12, "temperature": 0, "extra_body": {"repetition_penalty": 1}}


def test_a_text_is_gone_on_with(client: openai.OpenAI, greedy: dict[str, Any]) -> None:
    (choice,) = client.completions.create(prompt=TEXT, **greedy).choices
    assert choice.text.startswith(" Paris")
    pieces = client.completions.create(prompt=TEXT, stream=True, **greedy)
    assert "".join(piece.choices[0].text for piece in pieces) == choice.text


def test_who_writes_the_chats_format_is_answered_as_a_chat(client: openai.OpenAI, greedy: dict[str, Any]) -> None:
    chat = client.chat.completions.create(messages=[{"role": "user", "content": QUESTION}], **greedy)
    text = client.completions.create(prompt=AS_A_CHAT, **greedy)
    assert text.choices[0].text == chat.choices[0].message.content
    assert text.usage is not None
    assert chat.usage is not None
    assert text.usage.prompt_tokens == chat.usage.prompt_tokens


def test_tokens_are_reported_with_their_places_in_the_text(client: openai.OpenAI, greedy: dict[str, Any]) -> None:
    (choice,) = client.completions.create(prompt=TEXT, logprobs=3, **greedy).choices
    told: Any = choice.logprobs
    assert "".join(told.tokens) == choice.text
    assert all(choice.text.startswith(token, at) for at, token in zip(told.text_offset, told.tokens, strict=True))
    for token, value, likeliest in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert likeliest[token] == pytest.approx(value, abs=1e-3)
        assert value == pytest.approx(max(likeliest.values()), abs=1e-3)
        assert len(likeliest) == 3


def test_several_texts_are_gone_on_with_at_once(client: openai.OpenAI, greedy: dict[str, Any]) -> None:
    texts = [TEXT, "1, 2, 3, 4,", AS_A_CHAT]
    alone = [client.completions.create(prompt=text, **greedy).choices[0].text for text in texts]
    together = client.completions.create(prompt=texts, **greedy)
    assert [choice.text for choice in together.choices] == alone


def test_a_long_beginning_is_read_once(client: openai.OpenAI, greedy: dict[str, Any]) -> None:
    beginning = "It was a dark night, and the river went by. " * 30
    client.completions.create(prompt=beginning + "The end", **greedy)
    usage = client.completions.create(prompt=beginning + "But then", **greedy).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens_details.cached_tokens or 0) > usage.prompt_tokens * 0.8


def test_what_the_model_said_is_as_likely_when_it_is_asked_how_likely_it_is(
    client: openai.OpenAI, greedy: dict[str, Any]
) -> None:
    """As a measure of models asks: the prompt's tokens are told, and one more."""
    (said,) = client.completions.create(prompt=TEXT, logprobs=0, **greedy).choices
    scored = client.completions.create(prompt=TEXT + said.text, echo=True, logprobs=2, **(greedy | {"max_tokens": 1}))
    told: Any = scored.choices[0].logprobs
    spoken: Any = said.logprobs
    count = len(spoken.tokens)
    assert scored.choices[0].text.startswith(TEXT + said.text)
    assert told.tokens[-count - 1 : -1] == spoken.tokens
    assert told.token_logprobs[-count - 1 : -1] == pytest.approx(spoken.token_logprobs, abs=1e-3)
    assert told.token_logprobs[0] is None
    assert all(value < 0 for value in told.token_logprobs[1:])
    assert scored.usage is not None
    assert (scored.usage.prompt_tokens, scored.usage.completion_tokens) == (len(told.tokens) - 1, 1)
