"""An agent of a few lines, with the official client and the production server, around a random model like InternLM3: it
knows no better than to keep to what it is held to."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest

from tests.support.checkpoints import Shape
from tests.support.speaking import CITY, VOCAB, write_speaking_checkpoint
from tests.system.conftest import GUNICORN, Server, official_client

BUILD: Any = {"type": "function", "function": {"name": "build", "description": "Build a city.", "parameters": CITY}}
NOW: Any = {"type": "function", "function": {"name": "now"}}
DRAWN: dict[str, Any] = {"temperature": 2, "top_p": 1, "extra_body": {"top_k": 0}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model_dir = write_speaking_checkpoint(tmp_path_factory.mktemp("model"), Shape(vocab=VOCAB, max_positions=4096))
    server = Server(GUNICORN, {"MODEL_DIR": str(model_dir)})
    server.until_ready()
    yield server
    server.end()


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with official_client(server) as made:
        yield made


def ask(client: openai.OpenAI, messages: list[Any], **options: Any) -> Any:
    model = client.models.list().data[0].id
    return client.chat.completions.create(**({"model": model, "messages": messages, "tools": [BUILD, NOW]} | options))


def test_calls_and_their_results_go_to_and_fro(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Build me some cities."}]
    for turn in range(4):
        choice = ask(client, messages, tool_choice="required", seed=turn, **DRAWN).choices[0]
        (call,) = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls"
        arguments = json.loads(call.function.arguments)
        jsonschema.validate(arguments, {"build": CITY, "now": {"maxProperties": 0}}[call.function.name])
        messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"done": turn})}]
    last = ask(client, messages, tool_choice="none", max_tokens=20)
    assert last.choices[0].message.tool_calls is None
    assert last.usage.prompt_tokens > 200


def test_calls_and_their_results_go_to_and_fro_in_responses_as_well(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    tools: Any = [each["function"] | {"type": "function"} for each in (BUILD, NOW)]
    items: list[Any] = [{"role": "user", "content": "Build me some cities."}]
    for turn in range(3):
        drawn = DRAWN | {"extra_body": {"top_k": 0, "seed": turn}}
        with client.responses.stream(model=model, input=items, tools=tools, tool_choice="required", **drawn) as stream:
            final = stream.get_final_response()
        (call,) = final.output
        assert call.type == "function_call"
        jsonschema.validate(json.loads(call.arguments), {"build": CITY, "now": {"maxProperties": 0}}[call.name])
        items += [call, {"type": "function_call_output", "call_id": call.call_id, "output": json.dumps({"done": turn})}]
    last = client.responses.create(model=model, input=items, tools=tools, tool_choice="none", max_output_tokens=20)
    assert [item.type for item in last.output] == ["message"]


def test_a_stream_is_the_same_call(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"tool_choice": {"type": "function", "function": {"name": "build"}}, "seed": 5, **DRAWN}
    messages: list[Any] = [{"role": "user", "content": "Build."}]
    whole = ask(client, messages, **asked).choices[0].message.tool_calls[0].function
    pieces = [chunk.choices[0].delta.tool_calls or [] for chunk in ask(client, messages, stream=True, **asked)]
    calls = [call.function for piece in pieces for call in piece]
    assert calls[0].name == whole.name == "build"
    assert "".join(each.arguments for each in calls) == whole.arguments
    assert len(calls) > 5


def test_answers_that_may_call_are_text_or_text_and_a_call(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Build, or not."}]
    choices = ask(client, messages, n=16, max_tokens=200, **DRAWN).choices
    assert {choice.finish_reason for choice in choices} <= {"stop", "length", "tool_calls"}
    for choice in choices:
        if choice.finish_reason == "tool_calls":
            json.loads(choice.message.tool_calls[0].function.arguments)
        elif choice.finish_reason == "stop":
            assert choice.message.tool_calls is None


def test_the_small_real_model_has_no_tools_and_says_so(shared: Server) -> None:
    with official_client(shared) as client, pytest.raises(openai.BadRequestError) as refused:
        ask(client, [{"role": "user", "content": "What time is it?"}])
    assert refused.value.param == "tools"
    assert "the model's format has none" in refused.value.message
