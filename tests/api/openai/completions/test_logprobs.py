"""Log-probabilities of texts on the wire, for answers whose tokens are reported: the fake engine, which echoes, has
none."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from service.api.answer import Transcript
from service.api.health import Identity
from service.api.openai.completing import StreamOptions
from service.api.openai.completions.logprobs import Columns, spelled
from service.api.openai.completions.writer import CompletionWriter
from service.chat.logprobs import Likelihood, TokenReport
from service.chat.pieces import Done, TextDelta
from service.chat.stopwatch import Counts
from service.tokenizer.detokenizer import REPLACE_EACH_BYTE
from tests.api.conftest import Service

COUNTS = Counts(3, 0, 3)
X = Likelihood("x", -1.5, [120])
WHOLE = TokenReport("你x", -0.5, [228, 189, 160, 120], [Likelihood("你x", -0.5, [228, 189, 160, 120]), X])
BEGUN = TokenReport("\ufffd", -0.75, [228, 189], [X, Likelihood("\ufffd", -2.5, [229])])
ENDED = TokenReport("\ufffd", -1.0, [160], [])
SPECIAL = TokenReport("<|plugin|>", -2.0, None, [])
LAST = TokenReport("!", -3.0, [33], [])
COLUMNS = {
    "tokens": ["你x", "bytes:\\xe4\\xbd", "bytes:\\xa0", "<|plugin|>", "!"],
    "token_logprobs": [-0.5, -0.75, -1.0, -2.0, -3.0],
    "top_logprobs": [
        {"你x": -0.5, "x": -1.5},
        {"x": -1.5, "bytes:\\xe5": -2.5, "bytes:\\xe4\\xbd": -0.75},
        {"bytes:\\xa0": -1.0},
        {"<|plugin|>": -2.0},
        {"!": -3.0},
    ],
    "text_offset": [0, 2, 2, 3, 3],
}


def transcript(*, reports: bool = True, choices: int = 1) -> Transcript:
    identity = Identity(model="m", revision=None, manifest=None)
    writer = CompletionWriter(
        identity, StreamOptions(), reports=reports, choices=choices, decode_errors=REPLACE_EACH_BYTE
    )
    return Transcript(writer, None, choices)


async def answer() -> AsyncGenerator[TextDelta | Done]:
    yield TextDelta("你x", COUNTS, [WHOLE])
    yield TextDelta("你", COUNTS, [BEGUN, ENDED, SPECIAL])
    yield Done("stop", COUNTS, [LAST])


async def test_a_whole_answer_has_its_tokens_side_by_side() -> None:
    whole = json.loads((await transcript().collect(answer())).model_dump_json())
    assert whole["choices"][0]["logprobs"] == COLUMNS
    assert whole["choices"][0]["text"] == "你x你"


async def events(*, reports: bool = True) -> list[Any]:
    writes = transcript(reports=reports)
    return [json.loads(writes.encode(piece).removeprefix(b"data: "))["choices"][0] async for piece in answer()]


async def test_a_stream_has_them_beside_their_text() -> None:
    told = [event["logprobs"] for event in await events()]
    assert [len(each["tokens"]) for each in told] == [1, 3, 1]
    for name, column in COLUMNS.items():
        assert [value for each in told for value in each[name]] == column


async def test_who_does_not_ask_is_told_nothing() -> None:
    assert [event["logprobs"] for event in await events(reports=False)] == [None] * 3


async def test_several_answers_have_places_of_their_own() -> None:
    async def two() -> AsyncGenerator[TextDelta | Done]:
        for choice in (0, 1):
            yield TextDelta("你x", COUNTS, [WHOLE], choice)
        for choice in (1, 0):
            yield Done("stop", COUNTS, [LAST], choice)

    whole = json.loads((await transcript(choices=2).collect(two())).model_dump_json())
    assert [choice["logprobs"]["text_offset"] for choice in whole["choices"]] == [[0, 2]] * 2


@pytest.mark.parametrize(
    ("tokens", "places", "python_places"),
    [
        ([b"\xe4\xbd", b"!"], [0, 2], [0, 1]),
        ([b"\xe4", b"\xe4\xbd\xa0", b"x"], [0, 1, 2], [0, 1, 2]),
        ([b"\xe0", b"\x80", b"x"], [0, 1, 2], [0, 1, 2]),
        ([b"\xe4", b"", b"\xbd", b"\xa0", b"x"], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]),
        ([b"\xef\xbf", b"\xbd", b"x"], [0, 0, 1], [0, 0, 1]),
    ],
    ids=["a half", "a half and a whole", "two that are no pair", "a whole", "one that looks broken"],
)
def test_what_broken_characters_come_before_has_its_place_behind_them(
    tokens: list[bytes], places: list[int], python_places: list[int]
) -> None:
    reports = [TokenReport("", -1.0, list(data), []) for data in tokens]
    assert Columns(REPLACE_EACH_BYTE).of(reports).text_offset == places
    assert Columns("replace").of(reports).text_offset == python_places


def test_tokens_that_look_alike_are_told_apart() -> None:
    assert spelled(Likelihood("\ufffd", -1, [228])) != spelled(Likelihood("\ufffd", -1, [229]))
    assert spelled(Likelihood("\ufffd", -1, list("\ufffd".encode()))) == "\ufffd"
    assert spelled(Likelihood("", -1, [])) == ""


async def test_an_engine_without_probabilities_says_so(service: Service) -> None:
    answer = await service.http.post("/v1/completions", json={"prompt": "hello", "logprobs": 1})
    assert answer.status_code == 400
    assert "no probabilities" in answer.json()["error"]["message"]
