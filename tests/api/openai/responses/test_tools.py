"""Tools of a response: what a client offers and sends back, and the calls that it is answered with, streamed or not."""

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from service.chat.tools import markup
from service.engine.base import FinishReason
from tests.api.conftest import Service
from tests.api.openai.conftest import Scripted, official_client

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
NOW: Any = {"type": "function", "name": "now"}
ASKED = {"role": "user", "content": "What is the weather in Shanghai?"}
CALL = f'{markup.CALL_BEGINS}{{"name": "weather", "parameters": {{"city": "上海"}}}}{markup.CALL_ENDS}'


@pytest.fixture
async def client(calling: Service, scripted: Scripted) -> AsyncIterator[openai.AsyncOpenAI]:
    async with official_client(calling) as made:
        yield made


async def ask(client: openai.AsyncOpenAI, **body: Any) -> Any:
    return await client.responses.create(**({"model": await name(client), "input": [ASKED], "tools": [WEATHER]} | body))


async def name(client: openai.AsyncOpenAI) -> str:
    return (await client.models.list()).data[0].id


@pytest.mark.parametrize("said", ["", "I'll look. 你好"])
async def test_an_answer_asks_for_a_call(client: openai.AsyncOpenAI, scripted: Scripted, said: str) -> None:
    scripted.text = said + CALL
    response = await ask(client)
    assert response.output_text == said
    call = response.output[-1]
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "上海"})
    assert (call.status, response.status) == ("completed", "completed")
    assert call.call_id.startswith("call_")
    assert call.id != call.call_id
    assert len(response.output) == (2 if said else 1)


@pytest.mark.parametrize("said", ["", "I'll look. 你好"])
async def test_a_stream_asks_for_the_same_call(client: openai.AsyncOpenAI, scripted: Scripted, said: str) -> None:
    scripted.text = said + CALL
    async with client.responses.stream(model=await name(client), input=[ASKED], tools=[WEATHER]) as stream:
        pieces = [event.delta async for event in stream if event.type == "response.function_call_arguments.delta"]
        final = await stream.get_final_response()
    call = final.output[-1]
    assert call.type == "function_call"
    assert "".join(pieces) == call.arguments
    assert len(pieces) > 1
    assert json.loads(call.arguments) == {"city": "上海"}
    assert final.output_text == said


async def test_a_call_and_its_result_go_back_as_they_came(client: openai.AsyncOpenAI, scripted: Scripted) -> None:
    scripted.text = "I'll look." + CALL
    first = await ask(client)
    output = {"call_id": first.output[-1].call_id, "output": '{"celsius": 22}', "name": "weather"}
    result = {"type": "function_call_output", **output}
    scripted.text = "It is 22 °C."
    second = await ask(client, input=[ASKED, *first.output, result])
    assert second.output_text == "It is 22 °C."
    assert f"I'll look.{CALL}<|im_end|>" in scripted.prompt, "one message, as the model wrote it"
    assert f'{markup.RESULT}\n{{"celsius": 22}}<|im_end|>' in scripted.prompt


async def test_calls_without_a_word_are_a_message_of_their_own(client: openai.AsyncOpenAI, scripted: Scripted) -> None:
    calls = [
        {"type": "function_call", "call_id": name, "name": "weather", "arguments": f'{{"city": "{name}"}}', "id": name}
        for name in ("a", "b")
    ]
    results = [
        {"type": "function_call_output", "call_id": name, "output": [{"type": "input_text", "text": f"{name}: 22"}]}
        for name in ("a", "b")
    ]
    scripted.text = "Both 22."
    await ask(client, input=[ASKED, *calls, *results])
    written = [f'{markup.CALL_BEGINS}{{"name": "weather", "parameters": {{"city": "{name}"}}}}' for name in ("a", "b")]
    assert f"assistant\n{written[0]}{markup.CALL_ENDS}{written[1]}{markup.CALL_ENDS}<|im_end|>" in scripted.prompt
    assert "a: 22<|im_end|>" in scripted.prompt


async def test_a_call_that_is_cut_is_incomplete(client: openai.AsyncOpenAI, scripted: Scripted) -> None:
    scripted.text, scripted.reason = CALL[: CALL.index("上海")], FinishReason.LENGTH
    response = await ask(client)
    assert (response.status, response.output[-1].status) == ("incomplete", "incomplete")
    assert response.output[-1].name == "weather"


@pytest.mark.parametrize(
    ("choice", "rule"), [("required", "start: call"), ({"type": "function", "name": "now"}, '"now"')]
)
async def test_a_call_may_be_demanded(
    client: openai.AsyncOpenAI, scripted: Scripted, choice: object, rule: str
) -> None:
    scripted.text = f'{markup.CALL_BEGINS}{{"name": "now", "parameters": {{}}}}{markup.CALL_ENDS}'
    response = await ask(client, tools=[WEATHER, NOW], tool_choice=choice)
    assert response.output[0].type == "function_call"
    repeated = response.tool_choice if isinstance(choice, str) else response.tool_choice.model_dump(exclude_unset=True)
    assert repeated == choice
    assert json.loads(scripted.asked[0].grammar)


async def test_the_model_is_told_of_the_tools_and_the_client_what_it_offered(
    client: openai.AsyncOpenAI, scripted: Scripted
) -> None:
    scripted.text = "No."
    response = await ask(client, tools=[WEATHER, NOW], instructions="Be brief.")
    assert '"name": "weather", "description": "The weather of a city."' in scripted.prompt
    assert scripted.prompt.index("Be brief.") < scripted.prompt.index(markup.TOOLS)
    assert [(tool.name, tool.strict) for tool in response.tools] == [("weather", False), ("now", False)]


def nested(levels: int) -> dict[str, Any]:
    return {"items": nested(levels - 1)} if levels > 1 else {}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_repeats_tools_as_deep_as_they_may_be(
    calling: Service, scripted: Scripted, stream: bool
) -> None:
    scripted.text = "No."
    tools = [NOW | {"parameters": nested(100)}]
    answer = await calling.http.post("/v1/responses", json={"input": "hi", "tools": tools, "stream": stream})
    assert answer.status_code == 200, answer.text
    assert json.dumps(nested(100), separators=(",", ":")) in answer.text


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two of one name": ({"tools": [NOW, NOW]}, "tools.1.name"),
    "a name of no tool": ({"tool_choice": {"type": "function", "name": "missing"}}, "tool_choice"),
    "a call of nothing": ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    "a call that must be thought of": ({"tool_choice": "required", "thinking": True}, "tool_choice"),
    "a strict one that can't be": (
        {"tools": [NOW | {"strict": True, "parameters": {"not": {}}}]},
        "tools.0.parameters",
    ),
    "too many": ({"tools": [NOW | {"name": f"t{at}"} for at in range(129)]}, "tools"),
    "more than is read": ({"tools": [each | {"description": "x" * 300_000} for each in (NOW, WEATHER)]}, "tools"),
    "deeper than is repeated": ({"tools": [NOW | {"parameters": nested(102)}]}, "tools"),
    "a result of nothing": (
        {"input": [ASKED, {"type": "function_call_output", "call_id": "a", "output": "22"}]},
        "input.1.call_id",
    ),
    "a format that can't be kept to": (
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}},
        "text.format.schema",
    ),
}


@pytest.mark.parametrize(("body", "param"), REFUSED.values(), ids=REFUSED)
async def test_what_makes_none_is_refused_by_name(
    calling: Service, scripted: Scripted, body: dict[str, Any], param: str
) -> None:
    answer = await calling.http.post("/v1/responses", json={"input": [ASKED], "tools": [WEATHER]} | body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param, answer.text
    assert scripted.asked == []
