"""Log-probabilities on the wire, for answers whose tokens are reported: the fake engine, which echoes, has none."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from service.api.answer import Transcript
from service.api.health import Identity
from service.api.openai.chat_completions.request import ChatCompletionRequest
from service.api.openai.chat_completions.route import to_chat
from service.api.openai.chat_completions.writer import ChatCompletionWriter
from service.api.openai.completing import StreamOptions
from service.api.openai.logprobs import MOST_IN_ONE_PIECE
from service.api.openai.prompt import Prompt
from service.chat.logprobs import Likelihood, TokenReport
from service.chat.pieces import Done, TextDelta
from service.chat.stopwatch import Counts
from service.errors import InvalidRequest
from tests.api.conftest import Service

COUNTS = Counts(3, 0, 3)
PLAIN = TokenReport(
    "你", -0.5, [228, 189, 160], [Likelihood("你", -0.5, [228, 189, 160]), Likelihood("x", -1.5, [120])]
)
SPECIAL = TokenReport("<|plugin|>", -2.0, None, [])
NOTHING = TokenReport("", -3.0, [], [Likelihood("<|im_end|>", -0.25, None)])
SENT = [
    {
        "token": "你",
        "logprob": -0.5,
        "bytes": [228, 189, 160],
        "top_logprobs": [
            {"token": "你", "logprob": -0.5, "bytes": [228, 189, 160]},
            {"token": "x", "logprob": -1.5, "bytes": [120]},
        ],
    },
    {"token": "<|plugin|>", "logprob": -2.0, "bytes": None, "top_logprobs": []},
    {
        "token": "",
        "logprob": -3.0,
        "bytes": [],
        "top_logprobs": [{"token": "<|im_end|>", "logprob": -0.25, "bytes": None}],
    },
]


def transcript(*, reports: bool = True) -> Transcript:
    identity = Identity(model="m", revision=None, manifest=None)
    return Transcript(ChatCompletionWriter(identity, StreamOptions(), reports=reports), None, 1)


async def answer(*, left: list[TokenReport]) -> AsyncGenerator[TextDelta | Done]:
    yield TextDelta("你", COUNTS, [PLAIN])
    yield TextDelta("x", COUNTS, [SPECIAL])
    yield Done("stop", COUNTS, left)


async def empty() -> AsyncGenerator[TextDelta | Done]:
    yield Done("stop", COUNTS, [])


async def test_a_whole_answer_has_all_its_tokens_in_order() -> None:
    whole = await transcript().collect(answer(left=[NOTHING]))
    (choice,) = json.loads(whole.model_dump_json())["choices"]
    assert choice["logprobs"] == {"content": SENT, "refusal": None}


async def events(pieces: AsyncGenerator[TextDelta | Done], *, reports: bool = True) -> list[Any]:
    """The logprobs of each event."""
    writes = transcript(reports=reports)
    sent = [writes.encode(piece) async for piece in pieces]
    return [json.loads(event.removeprefix(b"data: "))["choices"][0]["logprobs"] for event in sent]


async def test_a_stream_has_them_beside_their_text_and_the_rest_at_its_end() -> None:
    parts = [{"content": [each], "refusal": None} for each in SENT]
    assert await events(answer(left=[NOTHING])) == parts
    assert await events(answer(left=[])) == [*parts[:2], None]


async def test_a_stream_keeps_none_of_what_it_has_sent() -> None:
    writes = transcript()
    async for piece in answer(left=[]):
        writes.encode(piece)
    assert writes._tokens == [[]]


async def test_an_answer_without_a_token_has_an_empty_list_for_who_asked() -> None:
    whole = json.loads((await transcript().collect(empty())).model_dump_json())
    assert whole["choices"][0]["logprobs"] == {"content": [], "refusal": None}
    assert await events(empty()) == [None]


async def test_who_did_not_ask_gets_null() -> None:
    whole = json.loads((await transcript(reports=False).collect(empty())).model_dump_json())
    assert whole["choices"][0]["logprobs"] is None
    assert await events(answer(left=[]), reports=False) == [None] * 3


def reported(**fields: Any) -> int | None:
    body = ChatCompletionRequest(messages=[{"role": "user", "content": "hi"}], logprobs=True, **fields)
    return to_chat(body, Prompt([], [])).logprobs


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"top_logprobs": 20, "max_tokens": 32_768}, "top_logprobs"),
        ({"top_logprobs": 20, "n": 16}, "top_logprobs"),
        ({"n": 16, "max_tokens": 32_768}, "logprobs"),
    ],
)
def test_more_than_is_sent_in_one_piece_is_refused_and_streamed(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"at most {MOST_IN_ONE_PIECE}.* or for a stream") as refused:
        reported(**fields)
    assert refused.value.field == field
    assert reported(**fields, stream=True) == fields.get("top_logprobs", 0)


def test_the_usual_limit_of_an_answer_has_room_for_all_of_the_likeliest() -> None:
    assert reported(top_logprobs=20) == 20


async def test_an_engine_that_has_no_probabilities_says_so(service: Service) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "logprobs": True}
    refused = await service.http.post("/v1/chat/completions", json=body)
    assert refused.status_code == 400
    assert "no probabilities" in refused.json()["error"]["message"]
