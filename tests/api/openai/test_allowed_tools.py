"""Some of a client's tools may be allowed, though the model is told of all: with the official client, on both routes
that have tools."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from service.api.openai.tools import MAX_TOOLS
from service.chat.tools import markup
from tests.api.conftest import Service, Start
from tests.api.openai.conftest import Scripted, official_client

NAMES = ("now", "weather", "news")
ASKED: Any = {"role": "user", "content": "What time is it?"}
CALL = f'{markup.CALL_BEGINS}{{"name": "now", "parameters": {{}}}}{markup.CALL_ENDS}'


@pytest.fixture
async def client(calling: Service, scripted: Scripted) -> AsyncIterator[openai.AsyncOpenAI]:
    scripted.text = CALL
    async with official_client(calling) as made:
        yield made


def in_chats(name: object) -> Any:
    return {"type": "function", "function": {"name": name}}


def in_responses(name: object) -> Any:
    return {"type": "function", "name": name}


def of_chats(mode: str, *tools: Any) -> Any:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def of_responses(mode: str, *tools: Any) -> Any:
    return {"type": "allowed_tools", "mode": mode, "tools": tools}


def require_narrowed(scripted: Scripted, mode: str) -> None:
    assert all(f'"name": "{name}"' in scripted.prompt for name in NAMES)
    assert [name for name in NAMES if f'"{name}"' in scripted.rules.replace("\\", "")] == ["now", "news"]
    assert ("start: call" in scripted.rules) == (mode == "required")


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_in_a_chat(client: openai.AsyncOpenAI, scripted: Scripted, mode: str) -> None:
    (model,) = (await client.models.list()).data
    choice = of_chats(mode, in_chats("now"), in_chats("news"))
    tools = list(map(in_chats, NAMES))
    asked = client.chat.completions.create(model=model.id, messages=[ASKED], tools=tools, tool_choice=choice)
    (answer,) = (await asked).choices
    assert answer.finish_reason == "tool_calls"
    require_narrowed(scripted, mode)


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_in_a_response_which_repeats_it(client: openai.AsyncOpenAI, scripted: Scripted, mode: str) -> None:
    (model,) = (await client.models.list()).data
    choice = of_responses(mode, in_responses("now"), in_responses("news"))
    tools = list(map(in_responses, NAMES))
    response = await client.responses.create(model=model.id, input=[ASKED], tools=tools, tool_choice=choice)
    assert not isinstance(response.tool_choice, str)
    assert response.tool_choice.model_dump() == choice | {"tools": list(choice["tools"])}
    require_narrowed(scripted, mode)


CHATS = ("/v1/chat/completions", {"messages": [ASKED], "tools": list(map(in_chats, NAMES))}, of_chats, in_chats)
RESPONSES = ("/v1/responses", {"input": [ASKED], "tools": list(map(in_responses, NAMES))}, of_responses, in_responses)
REFUSED: dict[str, tuple[Any, ...]] = {
    "no mode": ("none", "now"),
    "no tools": ("auto",),
    "one that is not offered": ("auto", "now", "missing"),
    "one without a name": ("auto", "now", None),
    "one without an end": ("auto", "x" * 1_000_000),
    "too many": ("auto", *["now"] * (MAX_TOOLS + 1)),
}


@pytest.mark.parametrize(("path", "body", "of_some", "named"), [CHATS, RESPONSES], ids=["chats", "responses"])
@pytest.mark.parametrize("some", REFUSED.values(), ids=REFUSED)
async def test_what_makes_no_sense_is_refused(
    calling: Service, scripted: Scripted, path: str, body: Any, of_some: Any, named: Any, some: tuple[Any, ...]
) -> None:
    mode, *names = some
    answer = await calling.http.post(path, json=body | {"tool_choice": of_some(mode, *map(named, names))})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tool_choice")
    assert len(answer.text) < 1000
    assert scripted.asked == []


@pytest.mark.parametrize(("path", "body", "of_some", "named"), [CHATS, RESPONSES], ids=["chats", "responses"])
async def test_another_routes_form_is_refused(calling: Service, path: str, body: Any, of_some: Any, named: Any) -> None:
    other = of_chats if of_some is of_responses else of_responses
    for choice in (other("auto", named("now")), of_some("auto", {"type": "function"}), of_some("auto", "now")):
        answer = await calling.http.post(path, json=body | {"tool_choice": choice})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tool_choice")


async def test_they_may_be_ignored_as_all_others(start: Start) -> None:
    service = await start(ignore_tools=True)
    for path, body, of_some, named in (CHATS, RESPONSES):
        for mode, status in (("auto", 200), ("required", 400)):
            answer = await service.http.post(path, json=body | {"tool_choice": of_some(mode, named("now"))})
            assert answer.status_code == status, answer.text
