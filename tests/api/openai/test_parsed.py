"""The official client reads answers into objects, and sends them back so: what it read says nothing more to the model.

As in its documentation's loops: an answer is put behind the messages, then a result or a next question, and so on.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from service.chat.tools import markup
from tests.api.conftest import Service
from tests.api.openai.conftest import Scripted, official_client

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of the client's, about its own types

ASKED: Any = {"role": "user", "content": "What is the weather in Shanghai?"}
NEXT: Any = {"role": "user", "content": "And in Paris?"}
ARGUMENTS = '{"city": "上海"}'
CALL = f'{markup.CALL_BEGINS}{{"name": "Weather", "parameters": {ARGUMENTS}}}{markup.CALL_ENDS}'
SENT_BACK = f"assistant\n{CALL}<|im_end|>"


class Weather(BaseModel):
    """The weather of a city."""

    city: str


@pytest.fixture
async def client(calling: Service, scripted: Scripted) -> AsyncIterator[openai.AsyncOpenAI]:
    async with official_client(calling) as made:
        yield made


@pytest.fixture
async def model(client: openai.AsyncOpenAI) -> str:
    return (await client.models.list()).data[0].id


def kept(answered: BaseModel) -> list[Any]:
    """All ways in which clients keep what they were answered."""
    return [answered, answered.model_dump(), json.loads(answered.model_dump_json())]


async def test_a_call_that_was_read(client: openai.AsyncOpenAI, model: str, scripted: Scripted) -> None:
    asked: dict[str, Any] = {"model": model, "tools": [openai.pydantic_function_tool(Weather)]}
    scripted.text = CALL
    message = (await client.chat.completions.parse(messages=[ASKED], **asked)).choices[0].message
    (call,) = message.tool_calls or []
    assert call.function.parsed_arguments == Weather(city="上海")
    result = {"role": "tool", "tool_call_id": call.id, "content": "22"}
    scripted.text = "22 degrees."
    for said in kept(message):
        second = await client.chat.completions.parse(messages=[ASKED, said, result], **asked)
        assert second.choices[0].message.content == "22 degrees."
        assert SENT_BACK in scripted.prompt


async def test_an_answer_that_was_read(client: openai.AsyncOpenAI, model: str, scripted: Scripted) -> None:
    scripted.text = ARGUMENTS
    asked: dict[str, Any] = {"model": model, "response_format": Weather}
    message = (await client.chat.completions.parse(messages=[ASKED], **asked)).choices[0].message
    assert message.parsed == Weather(city="上海")
    for said in kept(message):
        second = await client.chat.completions.parse(messages=[ASKED, said, NEXT], **asked)
        assert second.choices[0].message.parsed == message.parsed
        assert scripted.prompt.count("上海") == 1


async def test_a_stream_that_was_put_together(client: openai.AsyncOpenAI, model: str, scripted: Scripted) -> None:
    scripted.text = ARGUMENTS
    asked: dict[str, Any] = {"model": model, "response_format": Weather}
    async with client.chat.completions.stream(messages=[ASKED], **asked) as stream:
        message = (await stream.get_final_completion()).choices[0].message
    for said in kept(message):
        async with client.chat.completions.stream(messages=[ASKED, said, NEXT], **asked) as stream:
            assert (await stream.get_final_completion()).choices[0].message.parsed == message.parsed


async def test_a_call_of_a_response_that_was_read(client: openai.AsyncOpenAI, model: str, scripted: Scripted) -> None:
    function = openai.pydantic_function_tool(Weather)["function"]
    asked: dict[str, Any] = {"model": model, "tools": [{"type": "function", **function}]}
    scripted.text = CALL
    (call,) = (await client.responses.parse(input=[ASKED], **asked)).output
    assert call.type == "function_call"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "22"}
    scripted.text = "22 degrees."
    for said in kept(call):
        second = await client.responses.parse(input=[ASKED, said, result], **asked)
        assert second.output_text == "22 degrees."
        assert SENT_BACK in scripted.prompt


async def test_a_response_that_was_read(client: openai.AsyncOpenAI, model: str, scripted: Scripted) -> None:
    scripted.text = ARGUMENTS
    asked: dict[str, Any] = {"model": model, "text_format": Weather}
    response = await client.responses.parse(input=[ASKED], **asked)
    assert response.output_parsed == Weather(city="上海")
    for said in kept(response.output[0]):
        second = await client.responses.parse(input=[ASKED, said, NEXT], **asked)
        assert second.output_parsed == response.output_parsed
        assert scripted.prompt.count("上海") == 1
