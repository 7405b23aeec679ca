"""Responses of the real small model, through the production server and the official client."""

from typing import Any

import openai
import pytest

from tests.system.test_structured_answers import Animal

ASKED = "What is the capital of France? 🌍"


@pytest.fixture
def greedy(client: openai.OpenAI) -> dict[str, Any]:
    return {"model": client.models.list().data[0].id, "temperature": 0}


def test_a_greedy_response_is_the_completion_of_the_same(client: openai.OpenAI, greedy: dict[str, Any]) -> None:
    response = client.responses.create(**greedy, instructions="Be brief.", input=ASKED)
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASKED}]
    completion = client.chat.completions.create(**greedy, messages=messages)
    assert response.output_text == completion.choices[0].message.content
    assert "Paris" in response.output_text
    assert response.usage is not None
    assert completion.usage is not None
    assert response.usage.total_tokens == completion.usage.total_tokens


def test_a_conversation_that_is_sent_whole_is_found_in_the_cache(client: openai.OpenAI, greedy: dict[str, Any]) -> None:
    said: list[Any] = [{"role": "user", "content": f"{ASKED} {'Tell me all about it. ' * 20}"}]
    first = client.responses.create(**greedy, input=said, max_output_tokens=40)
    again = [*said, *first.output, {"role": "user", "content": "And of Italy?"}]
    second = client.responses.create(**greedy, input=again, max_output_tokens=10)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens > first.usage.input_tokens - 32


def test_the_official_client_parses_a_response_into_a_class(client: openai.OpenAI, greedy: dict[str, Any]) -> None:
    asked = "Describe a spider as JSON with name, legs and kind."
    response = client.responses.parse(**greedy, input=asked, text_format=Animal)
    assert isinstance(response.output_parsed, Animal)
    assert response.status == "completed"
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_schema"


def test_log_probabilities_spell_the_text(client: openai.OpenAI, greedy: dict[str, Any]) -> None:
    response = client.responses.create(
        **greedy, input=ASKED, include=["message.output_text.logprobs"], top_logprobs=2, max_output_tokens=20
    )
    (part,) = response.to_dict()["output"][0]["content"]  # type: ignore[index]
    spelled = b"".join(bytes(token["bytes"] or []) for token in part["logprobs"])
    assert spelled.decode(errors="ignore").startswith(response.output_text)
    assert all(len(token["top_logprobs"]) == 2 for token in part["logprobs"])
