"""Whatever anybody sends is answered by a problem that names the field; nothing is a 500, nothing hangs."""

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from service.api.chat import field_of
from service.api.schema import ChatRequest
from tests.api.conftest import Service, Start
from tests.support.tokenizers import write_byte_level_dir

JSON = {"Content-Type": "application/json"}
CONTEXT = 2048

FIELDS: list[tuple[str, dict[str, Any], str]] = [
    ("no prompt", {}, "prompt"),
    ("empty prompt", {"prompt": ""}, "prompt"),
    ("null prompt", {"prompt": None}, "prompt"),
    ("number as prompt", {"prompt": 5}, "prompt"),
    ("list as prompt", {"prompt": ["hi"]}, "prompt"),
    ("1 MB prompt", {"prompt": "x" * 1_000_000}, "prompt"),
    ("longer than the context", {"prompt": "word " * 20_000}, "prompt"),
    (
        "history longer than the context",
        {"prompt": "a", "history": [{"role": "user", "content": "b " * 9000}]},
        "prompt",
    ),
    ("NUL in the prompt", {"prompt": "a\x00b"}, "prompt"),
    ("escape in the prompt", {"prompt": "\x1b[31mred"}, "prompt"),
    (
        "control character in a turn",
        {"prompt": "a", "history": [{"role": "user", "content": "\x07"}]},
        "history.0.content",
    ),
    ("unknown field", {"prompt": "a", "max_tokens": 5}, "max_tokens"),
    ("unknown field in a turn", {"prompt": "a", "history": [{"role": "user", "content": "b", "x": 1}]}, "history.0.x"),
    ("system role in history", {"prompt": "a", "history": [{"role": "system", "content": "b"}]}, "history.0.role"),
    ("history of pairs", {"prompt": "a", "history": [["hi", "hello"]]}, "history.0"),
    ("text as temperature", {"prompt": "a", "temperature": "1"}, "temperature"),
    ("boolean as temperature", {"prompt": "a", "temperature": True}, "temperature"),
    ("negative temperature", {"prompt": "a", "temperature": -0.1}, "temperature"),
    ("huge temperature", {"prompt": "a", "temperature": 1e300}, "temperature"),
    ("negative top_k", {"prompt": "a", "top_k": -1}, "top_k"),
    ("fraction as top_k", {"prompt": "a", "top_k": 1.5}, "top_k"),
    ("top_p 0", {"prompt": "a", "top_p": 0}, "top_p"),
    ("top_p above 1", {"prompt": "a", "top_p": 1.01}, "top_p"),
    ("no penalty", {"prompt": "a", "repetition_penalty": 0}, "repetition_penalty"),
    ("min_p above 1", {"prompt": "a", "min_p": 1.5}, "min_p"),
    ("negative min_p", {"prompt": "a", "min_p": -0.1}, "min_p"),
    ("frequency penalty above 2", {"prompt": "a", "frequency_penalty": 2.1}, "frequency_penalty"),
    ("presence penalty below -2", {"prompt": "a", "presence_penalty": -2.1}, "presence_penalty"),
    ("text as penalty", {"prompt": "a", "presence_penalty": "1"}, "presence_penalty"),
    ("no tokens", {"prompt": "a", "max_new_tokens": 0}, "max_new_tokens"),
    ("more tokens than the context", {"prompt": "a", "max_new_tokens": CONTEXT}, "max_new_tokens"),
    ("text as tokens", {"prompt": "a", "max_new_tokens": "12"}, "max_new_tokens"),
    ("negative seed", {"prompt": "a", "seed": -1}, "seed"),
    ("seed beyond 63 bits", {"prompt": "a", "seed": 2**63}, "seed"),
    ("text as flag", {"prompt": "a", "stream": "yes"}, "stream"),
    ("number as stop", {"prompt": "a", "stop": 5}, "stop"),
    ("null as stop", {"prompt": "a", "stop": [None]}, "stop.0"),
    ("empty stop", {"prompt": "a", "stop": [""]}, "stop.0"),
    ("a stop text without an end", {"prompt": "a", "stop": ["x" * 1001]}, "stop.0"),
    (
        "a history without an end",
        {"prompt": "a", "history": [{"role": "user", "content": "x" * 390_000}] * 2},
        "history",
    ),
    ("too many stops", {"prompt": "a", "stop": ["x"] * 17}, "stop"),
    ("thinking and system", {"prompt": "a", "thinking": True, "system": "b"}, "thinking"),
]

BODIES: list[tuple[str, bytes, str]] = [
    ("empty", b"", "body"),
    ("not JSON", b"prompt=hello", "body"),
    ("half JSON", b'{"prompt": "he', "body"),
    ("not UTF-8", b'{"prompt": "\xff\xfe"}', "body"),
    ("a list", b'["prompt"]', "body"),
    ("a text", b'"prompt"', "body"),
    ("null", b"null", "body"),
    ("10,000 lists deep", b'{"prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "body"),
    ("10,000 objects deep", b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "body"),
    ("a number of 10,000 digits", b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}", "body"),
    ("NaN", b'{"prompt": "a", "temperature": NaN}', "temperature"),
    ("Infinity", b'{"prompt": "a", "top_p": Infinity}', "top_p"),
    ("lone surrogate", b'{"prompt": "a\\ud800b"}', "prompt"),
    (
        "lone surrogate in a turn",
        b'{"prompt": "a", "history": [{"role": "user", "content": "\\udfff"}]}',
        "history.0.content",
    ),
    ("lone surrogate in stop", b'{"prompt": "a", "stop": ["\\ud800"]}', "stop.0"),
    ("lone surrogate as a field", b'{"prompt": "a", "\\ud800": 1}', ""),
]


def check(response: Any, field: str, status: int = 400) -> None:
    """A problem document that names the field and says something."""
    problem = response.json()
    assert response.status_code == status, problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert len(problem["detail"]) > 20
    assert problem["field"] == field or not field
    assert "Traceback" not in response.text


@pytest.fixture
async def small(start: Start) -> Service:
    return await start(max_context=CONTEXT, max_body_bytes=2_000_000, body_timeout=0.5)


async def test_fields_that_cannot_be_served_are_named(small: Service) -> None:
    for name, body, field in FIELDS:
        response = await small.http.post("/v1/chat", json=body)
        assert response.status_code == 400, (name, response.text[:300])
        check(response, field)


async def test_bodies_that_cannot_be_read_are_explained(small: Service) -> None:
    for name, body, field in BODIES:
        response = await small.http.post("/v1/chat", content=body, headers=JSON)
        assert response.status_code == 400, (name, response.text[:300])
        check(response, field)


async def test_a_field_name_without_an_end_is_not_sent_back_whole(small: Service) -> None:
    response = await small.http.post("/v1/chat", json={"prompt": "a", "x" * 100_000: 1})
    check(response, "x" * 200)
    assert len(response.content) < 2000


async def test_a_good_request_still_works_after_all_that(small: Service) -> None:
    await test_fields_that_cannot_be_served_are_named(small)
    assert (await small.ask()).status_code == 200
    assert small.running.lifecycle.active == 0


async def test_limits_are_told_with_both_numbers(small: Service) -> None:
    detail = (await small.ask(prompt="word " * 20_000)).json()["detail"]
    assert str(CONTEXT) in detail
    assert any(int(number) > CONTEXT for number in detail.replace(".", " ").split() if number.isdigit())


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_another_content_type_is_refused_with_the_way_out(small: Service, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = await small.http.post("/v1/chat", content=b'{"prompt": "hi"}', headers=headers)
    check(response, "Content-Type", 415)
    assert "application/json" in response.json()["detail"]


async def test_a_compressed_body_is_415(service: Service) -> None:
    headers = JSON | {"Content-Encoding": "gzip"}
    response = await service.http.post("/v1/chat", content=gzip.compress(b'{"prompt": "hi"}'), headers=headers)
    check(response, "Content-Encoding", 415)
    assert "send it as it is" in response.text


async def test_a_charset_in_the_content_type_is_fine(small: Service) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    response = await small.http.post("/v1/chat", content=json.dumps({"prompt": "hi"}).encode(), headers=headers)
    assert response.status_code == 200


async def test_a_body_over_the_limit_is_refused(small: Service) -> None:
    response = await small.http.post("/v1/chat", content=b'"' + b"x" * 2_100_000 + b'"', headers=JSON)
    check(response, "body", 413)


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": "b"} for role in roles]


# Of conversations of two, five or six messages it leaves one out, and it takes no two answers in a row.
PICKY_TEMPLATE = (
    "{% set gone = {2: 1, 5: 0, 6: 2}.get(messages | length, -1) %}{{ bos_token }}"
    "{% for m in messages %}{% if m.role == 'assistant' and loop.previtem.role == 'assistant' %}"
    "{{ raise_exception('two answers in a row') }}{% endif %}"
    "{% if loop.index0 != gone %}{{ m.role + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
)
THREE, FOUR = turns("user", "assistant", "user"), turns("user", "assistant", "user", "assistant")
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt"),
    ({"history": THREE}, "system"),
    ({"history": THREE, "system": "Be brief."}, "system"),
    ({"history": THREE, "thinking": True}, "thinking"),
    ({"history": FOUR}, "history.1"),
    ({"history": FOUR, "system": ""}, "history.0"),
    ({"history": turns("assistant", "assistant")}, "history"),
]


async def test_what_the_models_template_refuses_is_named_as_the_field_it_came_in(start: Start, tmp_path: Path) -> None:
    model_dir = write_byte_level_dir(tmp_path, chat_template=PICKY_TEMPLATE)
    (model_dir / "config.json").write_text("{}")
    service = await start(model_dir=model_dir)
    for body, field in REFUSED:
        for stream in (False, True):
            check(await service.ask(stream=stream, **body), field)
    assert (await service.ask(system="")).status_code == 200


def test_a_refusal_of_the_conversation_names_the_prompt_where_there_is_no_more() -> None:
    assert field_of(None, ChatRequest(prompt="a")) == "prompt"


CHUNKED = b"POST /v1/chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_a_chunked_body_that_stalls_is_answered_in_time(small: Service) -> None:
    answer = await raw(small, CHUNKED + b'9\r\n{"prompt"\r\n')
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"field":"body"' in answer


async def test_a_chunked_body_that_never_ends_is_cut_at_the_limit(small: Service) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    answer = await raw(small, CHUNKED + chunk * 40)
    assert answer.startswith(b"HTTP/1.1 413")


async def test_a_request_that_is_not_http_is_refused(small: Service) -> None:
    assert (await raw(small, b"\x16\x03\x01 hello\r\n\r\n")).startswith(b"HTTP/1.1 400")


async def raw(service: Service, data: bytes) -> bytes:
    """Send bytes, read until a whole head and body came or the server closed."""
    reader, writer = await asyncio.open_connection(service.running.host, service.running.port)
    try:
        async with asyncio.timeout(30):
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
            return head + await reader.read(4096)
    finally:
        writer.close()
