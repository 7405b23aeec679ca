"""Tools on the wire: what a client offers and sends back, and the calls that it is answered with, streamed and not.

The engine says what a test has it say, in the tokens of a tokenizer like InternLM3's; that a real one keeps to the
grammar is shown in tests/engine and tests/system.
"""

import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from service.api.openai.chat_completions.messages import ChatMessage
from service.api.openai.tools import MAX_TOOLS
from service.chat.tools import markup
from service.chat.tools.grammar import calling_grammar
from service.engine.base import Event, Finish, FinishReason, GenerationRequest
from service.tokenizer.loading import load_tokenizer
from tests.api.conftest import Service, Start
from tests.api.openai.conftest import Scripted, official_client

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NOW: Any = {"type": "function", "function": {"name": "now"}}
ASKED: list[Any] = [{"role": "user", "content": "What is the weather in Shanghai?"}]
CALL = f'{markup.CALL_BEGINS}{{"name": "weather", "parameters": {{"city": "上海"}}}}{markup.CALL_ENDS}'


@pytest.fixture
def service(calling: Service) -> Service:
    return calling


@pytest.fixture
def engine(scripted: Scripted) -> Scripted:
    return scripted


@pytest.fixture
async def client(service: Service, engine: Scripted) -> AsyncIterator[openai.AsyncOpenAI]:
    async with official_client(service) as made:
        yield made


async def ask(client: openai.AsyncOpenAI, **body: Any) -> Any:
    (model,) = (await client.models.list()).data
    return await client.chat.completions.create(**({"model": model.id, "messages": ASKED, "tools": [WEATHER]} | body))


@pytest.mark.parametrize("said", [None, "I'll look. 你好"])
async def test_an_answer_asks_for_a_call(client: openai.AsyncOpenAI, engine: Scripted, said: str | None) -> None:
    engine.text = (said or "") + CALL
    completion = await ask(client)
    (choice,) = completion.choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content, call.type) == ("tool_calls", said, "function")
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "上海"})
    assert call.id.startswith("call_")
    assert completion.usage.completion_tokens > 5


@pytest.mark.parametrize("said", ["", "I'll look. 你好"])
async def test_a_stream_asks_for_the_same_call_piece_by_piece(
    client: openai.AsyncOpenAI, engine: Scripted, said: str
) -> None:
    engine.text = said + CALL
    chunks = [chunk async for chunk in await ask(client, stream=True)]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    pieces = [call for delta in deltas for call in delta.tool_calls or []]
    assert "".join(delta.content or "" for delta in deltas) == said
    assert [delta.role for delta in deltas] == ["assistant", *[None] * (len(deltas) - 1)]
    assert [(each.id is None, each.type, each.function.name) for each in pieces[1:]] == [(True, None, None)] * (
        len(pieces) - 1
    )
    assert (pieces[0].function.name, {each.index for each in pieces}, len(pieces) > 2) == ("weather", {0}, True)
    assert json.loads("".join(each.function.arguments for each in pieces)) == {"city": "上海"}
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "tool_calls"]


async def test_the_clients_own_helper_puts_a_streamed_call_together(
    client: openai.AsyncOpenAI, engine: Scripted
) -> None:
    engine.text = "Well. " + CALL
    (model,) = (await client.models.list()).data
    strict: Any = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    async with client.chat.completions.stream(model=model.id, messages=ASKED, tools=[strict]) as stream:
        final = await stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    assert (call.function.name, call.function.parsed_arguments) == ("weather", {"city": "上海"})


async def test_an_answer_that_calls_nothing_is_what_it_always_was(
    client: openai.AsyncOpenAI, service: Service, engine: Scripted
) -> None:
    engine.text = "It is sunny."
    (choice,) = (await ask(client)).choices
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == ("stop", "It is sunny.", None)
    bodies = ({"messages": ASKED}, {"messages": ASKED, "tools": [WEATHER]})
    answers = [(await service.http.post("/v1/chat/completions", json=body)).json() for body in bodies]
    assert answers[0]["choices"] == answers[1]["choices"]


async def test_the_call_and_its_result_go_back_as_they_came(client: openai.AsyncOpenAI, engine: Scripted) -> None:
    """Both ways in which clients keep what they were answered: the object, and all of its fields."""
    engine.text = "I'll look." + CALL
    message = (await ask(client)).choices[0].message
    for kept in (message, message.model_dump()):
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": '{"temperature": 22}'}
        engine.text = "22 degrees."
        second = await ask(client, messages=[*ASKED, kept, result])
        assert second.choices[0].message.content == "22 degrees."
        described = json.dumps([WEATHER["function"]], ensure_ascii=False)
        assert engine.prompt == (
            f"<s><|im_start|>system name=<|plugin|>\n{described}<|im_end|>\n"
            f"<|im_start|>user\n{ASKED[0]['content']}<|im_end|>\n"
            f"<|im_start|>assistant\nI'll look.{CALL}<|im_end|>\n"
            '<|im_start|>environment name=<|plugin|>\n{"temperature": 22}<|im_end|>\n<|im_start|>assistant\n'
        )


async def test_the_model_is_told_of_tools_behind_its_system_prompt(
    client: openai.AsyncOpenAI, engine: Scripted
) -> None:
    await ask(client, messages=[{"role": "system", "content": "Be brief."}, *ASKED], tools=[WEATHER, NOW])
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    described = json.dumps([WEATHER["function"], {"name": "now", "parameters": nothing}])
    assert f"Be brief.<|im_end|>\n<|im_start|>system name=<|plugin|>\n{described}<|im_end|>\n" in engine.prompt


async def test_the_engine_is_told_what_an_answer_may_be(client: openai.AsyncOpenAI, engine: Scripted) -> None:
    end = engine.tokenizer.special_tokens[markup.ACTION_END]
    await ask(client, tools=[WEATHER, NOW])
    assert "TEXT? | TEXT? call" in engine.rules
    assert end in engine.asked[-1].stop_ids
    for demanded in ("required", {"type": "function", "function": {"name": "now"}}):
        await ask(client, tools=[WEATHER, NOW], tool_choice=demanded)
        assert "start: call" in engine.rules
        assert ("weather" in engine.rules) == (demanded == "required")
        assert "weather" in engine.prompt, "whose arguments may be called with what another one gave"
    await ask(client, tools=[WEATHER], tool_choice="none")
    assert (engine.asked[-1].grammar, end in engine.asked[-1].stop_ids) == ("", False)
    assert "weather" not in engine.prompt.partition("user")[0]


async def test_several_answers_have_calls_of_their_own(client: openai.AsyncOpenAI, engine: Scripted) -> None:
    engine.text = CALL
    choices = (await ask(client, n=3)).choices
    ids = {choice.message.tool_calls[0].id for choice in choices}
    assert ([choice.finish_reason for choice in choices], len(ids)) == (["tool_calls"] * 3, 3)


async def test_an_answer_that_is_cut_says_so(client: openai.AsyncOpenAI, engine: Scripted) -> None:
    engine.text, engine.reason = CALL[: CALL.index("上")], FinishReason.LENGTH
    (choice,) = (await ask(client)).choices
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls[0].function.arguments == '{"city": "'


async def test_calls_are_logged_with_the_prompts_where_those_are(
    start: Start, internlm3_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    service = await start(model_dir=internlm3_dir, log_prompts=True)
    scripted = Scripted(load_tokenizer(internlm3_dir), "Hm." + CALL)
    monkeypatch.setattr(service.engine, "submit", scripted.submit)
    with caplog.at_level("INFO"):
        await service.http.post("/v1/chat/completions", json={"messages": ASKED, "tools": [WEATHER]})
    (line,) = [record.fields for record in caplog.records if record.getMessage() == "answered"]
    assert line["response"] == "Hm."
    assert line["call"] == {"name": "weather", "arguments": '{"city": "上海"}'}


def a_call(call_id: str = "a", **function: Any) -> dict[str, Any]:
    named = {"name": "weather", "arguments": '{"city": "x"}'} | function
    return {"id": call_id, "type": "function", "function": named}


def calling(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": list(calls or (a_call(),))}


def result(call_id: str = "a") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": "22"}


def tool(**changes: Any) -> dict[str, Any]:
    return {"type": "function", "function": WEATHER["function"] | changes}


def named(name: str) -> dict[str, Any]:
    return {"tool_choice": {"type": "function", "function": {"name": name}}}


def talk(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [*ASKED, *messages]}


TAKEN: dict[str, dict[str, Any]] = {
    "a call without arguments": talk(calling(a_call(arguments="")), result()),
    "two calls": talk(calling(a_call("a"), a_call("b")), result("b"), result("a")),
    "a call's place": talk(calling(a_call() | {"index": 0}), result()),
    "what other servers put on a call": talk(calling(a_call() | {"extra_content": {"google": {}}}), result()),
    "a call that gave nothing": talk(calling(), result() | {"content": None}),
    "a call beside text": talk(calling() | {"content": "Hm."}, result()),
    "a tool with a name": talk(calling(), result() | {"name": "weather"}),
    "a result in parts": talk(calling(), result() | {"content": [{"type": "text", "text": "22"}]}),
    "calls, and no tools": talk(calling(), result()) | {"tools": []},
    "no calls": talk({"role": "assistant", "content": "x", "tool_calls": []}, *ASKED),
    "one call at a time": {"parallel_tool_calls": False},
    "nulls and hints": {"tools": [tool(strict=None, description=None) | {"cache_control": {"type": "ephemeral"}}]},
    "a schema of many levels": {"tools": [tool(parameters=json.loads('{"a":' * 600 + "{}" + "}" * 600))]},
    "no parameters": {"tools": [tool(parameters=None)]},
    "JSON or a call": {"response_format": {"type": "json_object"}},
    "thinking": {"thinking": True},
    "log-probabilities": {"logprobs": True},
    "past the end without tools": {"ignore_eos": True, "tool_choice": "none"},
}


@pytest.mark.parametrize("body", TAKEN.values(), ids=TAKEN)
async def test_what_makes_sense_is_taken(service: Service, engine: Scripted, body: dict[str, Any]) -> None:
    answer = await service.http.post("/v1/chat/completions", json={"messages": ASKED, "tools": [WEATHER]} | body)
    assert answer.status_code == 200, answer.text


ARGUMENTS = "messages.1.tool_calls.0.function.arguments"
LONG = json.dumps({"a": "x" * 250_000})

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no list": ({"tools": "weather"}, "tools"),
    "another type": ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    "no function": ({"tools": [{"type": "function"}]}, "tools.0.function"),
    "no name": ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name"),
    "a name with a quote": ({"tools": [tool(name='a"b')]}, "tools.0.function.name"),
    "a long name": ({"tools": [tool(name="a" * 65)]}, "tools.0.function.name"),
    "two of one name": ({"tools": [WEATHER, WEATHER]}, "tools.1.function.name"),
    "an unknown field": ({"tools": [tool(x=1)]}, "tools.0.function.x"),
    "no schema": ({"tools": [tool(parameters=[])]}, "tools.0.function.parameters"),
    "too many": ({"tools": [tool(name=f"t{n}") for n in range(MAX_TOOLS + 1)]}, "tools"),
    "too long": ({"tools": [tool(description="x" * 300_000), tool(name="b", description="x" * 300_000)]}, "tools"),
    "longer than the context": ({"tools": [tool(description="word " * 60_000)]}, "messages"),
    "a strict one that can't be kept to": (
        {"tools": [NOW, tool(strict=True, parameters={"type": "object", "not": {}})]},
        "tools.1.function.parameters",
    ),
    "the same where it is chosen": (
        {"tools": [NOW, tool(name="b", strict=True, parameters={"type": "object", "not": {}})], **named("b")},
        "tools.1.function.parameters",
    ),
    "a choice that is none": ({"tool_choice": "any"}, "tool_choice"),
    "a choice of some": ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    "a choice that is not offered": (named("x"), "tool_choice"),
    "a call of nothing": ({"tool_choice": "required", "tools": []}, "tool_choice"),
    "a call that must be thought of": ({"tool_choice": "required", "thinking": True}, "tool_choice"),
    "a choice of half a character": (named("\ud800"), "tool_choice"),
    "a choice without end": (named("x" * 1_000_000), "tool_choice"),
    "a choice that says more": ({"tool_choice": named("weather")["tool_choice"] | {"x": 1}}, "tool_choice"),
    "a choice that says more inside": (
        {"tool_choice": {"type": "function", "function": {"name": "weather", "x": 1}}},
        "tool_choice",
    ),
    "half a character in a schema": ({"tools": [tool(parameters={"const": "\ud800"})]}, "tools"),
    "a format that can't be kept to": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
        "response_format.json_schema.schema",
    ),
    "no end": ({"ignore_eos": True}, "ignore_eos"),
    "another end": ({"stop_token_ids": [5]}, "stop_token_ids"),
    "a user's call": (talk(calling() | {"role": "user", "content": "x"}), "messages.1.tool_calls"),
    "a user's result": ({"messages": [ASKED[0] | {"tool_call_id": "a"}]}, "messages.0.tool_call_id"),
    "a result of nothing": (talk(result()), "messages.1.tool_call_id"),
    "a result of another call": (talk(calling(), result("b")), "messages.2.tool_call_id"),
    "a result before its call": (talk(result(), calling()), "messages.1.tool_call_id"),
    "a result without a call": (talk(calling(), {"role": "tool", "content": "x"}), "messages.2.tool_call_id"),
    "a call without an id": (talk(calling({"function": {}})), "messages.1.tool_calls.0.id"),
    "more calls than are read": (talk(*[calling(*[a_call()] * 100)] * 11), "messages"),
    "more wrong calls than are read": (talk(*[calling(*[{"x": 1}] * 128)] * 900), "messages"),
    "wrong calls": (talk(*[calling({"x": 1})] * 900), "messages.1.tool_calls.0.id"),
    "calls longer than any context": (talk(*[calling(a_call(arguments=LONG))] * 2), "messages"),
}


@pytest.mark.parametrize("arguments", ['{"city": "Shang', "[]", "5", '{"a": "\\ud800"}', '{"a":' + "[" * 2000])
async def test_a_call_that_was_cut_goes_back_as_the_text_that_it_is(
    client: openai.AsyncOpenAI, engine: Scripted, arguments: str
) -> None:
    """OpenAI's API says of arguments that they may be no JSON, and an agent sends back what it was answered."""
    engine.text = "Once more?"
    await ask(client, **talk(calling(a_call(arguments=arguments)), result()))
    try:
        told = json.loads(arguments)
        json.dumps(told, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        told = arguments
    assert f'"parameters": {json.dumps(told, ensure_ascii=False)}}}' in engine.prompt


async def test_an_answer_that_holds_a_control_character_goes_back(client: openai.AsyncOpenAI, engine: Scripted) -> None:
    engine.text = "Well."
    parts = [{"type": "text", "text": "a\x1bb"}]
    for content in ("a\x1bb", parts):
        messages = [calling() | {"content": content}, result() | {"content": "2\x0b2"}]
        await ask(client, **talk(*messages))
        assert "assistant\nab" in engine.prompt
        assert "\n22<|im_end|>" in engine.prompt


async def test_a_stop_that_is_found_in_what_was_held_back_is_no_limit(
    client: openai.AsyncOpenAI, engine: Scripted
) -> None:
    engine.text, engine.reason = "say xab", FinishReason.LENGTH
    (choice,) = (await ask(client, stop=["ab", "xabz"])).choices
    assert (choice.message.content, choice.finish_reason) == ("say x", "stop")


@pytest.mark.parametrize(("body", "param"), REFUSED.values(), ids=REFUSED)
async def test_what_makes_none_is_refused_by_name(
    service: Service, engine: Scripted, body: dict[str, Any], param: str
) -> None:
    content = json.dumps({"messages": ASKED, "tools": [WEATHER]} | body)
    headers = {"Content-Type": "application/json"}
    answer = await service.http.post("/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param, answer.text
    assert len(answer.text) < 2000
    assert engine.asked == []


async def test_calls_count_among_what_is_read(service: Service, engine: Scripted) -> None:
    """Their arguments, and what is written around those."""
    long, many = [calling(a_call(arguments=LONG))] * 2, [calling(a_call(name="x" * 60, arguments=""))] * 999
    for messages, characters in ((long, 500_000), (many, 60_000)):
        answer = await service.http.post("/v1/chat/completions", json={"messages": [*ASKED, *messages]})
        refused = re.search(r"its messages have (\d+) characters", answer.text)
        assert bool(refused) == (messages is long), answer.text
        assert sum(ChatMessage.model_validate(each | {"content": ""}).characters for each in messages) > characters


async def test_results_are_not_told_apart_by_names(client: openai.AsyncOpenAI, engine: Scripted) -> None:
    results = [result("a") | {"name": "one"}, result("b") | {"name": "two"}]
    await ask(client, messages=[*ASKED, calling(a_call("a"), a_call("b")), *results])
    assert engine.prompt.count("<|plugin|>\n22<|im_end|>") == 2


async def test_a_conversation_of_many_calls_is_not_looked_at_again_for_each(
    client: openai.AsyncOpenAI, engine: Scripted
) -> None:
    begun = time.process_time()
    await ask(client, messages=[*ASKED, *[calling(*[a_call(arguments="")] * 125)] * 6])
    assert time.process_time() - begun < 5, "seconds of work, where a search for each call took half a minute"


async def test_tools_that_are_not_held_to_their_schemas_are_logged(
    client: openai.AsyncOpenAI, engine: Scripted, caplog: Any
) -> None:
    with caplog.at_level("INFO"):
        await ask(client, tools=[WEATHER, tool(name="lax", parameters={"type": "object", "minProperties": 10**9})])
        await ask(client)
    lines = [each.fields for each in caplog.records if each.name == "service.access" and "outcome" in each.fields]
    assert [line.get("tools_called_with_any_object") for line in lines] == [1, None]


async def test_answers_to_one_question_share_its_grammar(
    client: openai.AsyncOpenAI, engine: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def counted(*of: Any) -> tuple[str, int]:
        made.append(of)
        return calling_grammar(*of)

    monkeypatch.setattr("service.chat.preparation.calling_grammar", counted)
    await ask(client, n=5)
    assert (len(made), len(engine.asked), len({each.grammar for each in engine.asked})) == (1, 5, 1)


async def test_marks_that_the_model_does_not_score_are_none(
    client: openai.AsyncOpenAI, service: Service, engine: Scripted
) -> None:
    end = engine.tokenizer.special_tokens[markup.ACTION_END]
    service.engine._info = msgspec.structs.replace(service.engine.status.info, vocab_size=end)
    with pytest.raises(openai.BadRequestError, match="the model's format has none"):
        await ask(client)


async def test_a_grammar_that_the_engine_cannot_keep_to_is_the_tools(
    client: openai.AsyncOpenAI, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(request: GenerationRequest) -> AsyncGenerator[Event]:
        yield Finish(request.id, FinishReason.REJECTED, "too complex", of_grammar=True)

    monkeypatch.setattr(service.engine, "submit", refuse)
    with pytest.raises(openai.BadRequestError) as caught:
        await ask(client)
    assert caught.value.param == "tools"


async def test_an_operator_may_have_tools_ignored_though_the_model_knows_them(
    start: Start, internlm3_dir: Path
) -> None:
    service = await start(model_dir=internlm3_dir, ignore_tools=True)
    answer = await service.http.post("/v1/chat/completions", json={"messages": ASKED, "tools": [WEATHER]})
    assert answer.status_code == 200
    assert "weather of a city" not in answer.json()["choices"][0]["message"]["content"], "the fake one echoes"
    demanded = {"messages": ASKED, "tools": [WEATHER], "tool_choice": "required"}
    error = (await service.http.post("/v1/chat/completions", json=demanded)).json()["error"]
    assert (error["param"], "told to ignore them" in error["message"]) == ("tool_choice", True)


async def test_the_description_says_what_there_is(service: Service) -> None:
    schemas = (await service.http.get("/openapi.json")).json()["components"]["schemas"]
    asked = schemas["ChatCompletionRequest"]["properties"]
    assert {"tools", "tool_choice"} <= asked.keys()
    assert asked["tool_choice"]["default"] == "auto"
    assert schemas["ChatMessage"]["required"] == ["role"]
    assert "pattern" in schemas["MadeFunction"]["properties"]["name"]
    assert schemas["Function"]["properties"].keys() == {"name", "description", "parameters", "strict"}
    assert {"AnsweredCall", "CallingMessage", "CallBegins", "CallGoesOn"} <= schemas.keys()
