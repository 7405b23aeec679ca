"""Every request has an id and one log line; prompts and answers are in no line unless switched on."""

import logging
from typing import Any

import pytest

from service.engine.fake import FakeScript
from service.log import request_id
from tests.api.conftest import Service, Start
from tests.support.server import until

SECRET = "the launch code is xyzzy"


@pytest.mark.parametrize("given", ["abc-123", "A.b_c"])
async def test_a_plain_request_id_is_kept(service: Service, given: str) -> None:
    response = await service.http.get("/", headers={"X-Request-Id": given})
    assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "日本".encode()])
async def test_another_one_is_replaced(service: Service, given: str | bytes) -> None:
    response = await service.http.get(
        "/", headers=[(b"X-Request-Id", given if isinstance(given, bytes) else given.encode())]
    )
    assert len(response.headers["x-request-id"]) == 32


async def test_one_line_per_request_with_status_and_id(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await service.http.post("/v1/chat", json={"prompt": ""}, headers={"X-Request-Id": "one"})
    lines = [record for record in caplog.records if record.name == "service.access"]
    assert [record.getMessage() for record in lines] == ["POST /v1/chat 400"]
    assert lines[0].fields["status"] == 400
    assert lines[0].fields["problem"] == "invalid_request"


async def the_line(caplog: pytest.LogCaptureFixture) -> Any:
    """The one about the only request; a client has a stream's last byte before it is written."""
    await until(lambda: [record for record in caplog.records if record.name == "service.access"])
    (record,) = [record for record in caplog.records if record.name == "service.access"]
    return record


CUT = {
    "engine": (FakeScript(crash_at_step=8), 60.0, "error", "engine_failed"),
    "deadline": (FakeScript(step_seconds=0.05), 1.5, "deadline", "deadline_exceeded"),
}


@pytest.mark.parametrize(("script", "seconds", "outcome", "problem"), CUT.values(), ids=CUT)
async def test_a_stream_that_is_cut_says_so_in_its_one_line_under_its_id(
    start: Start, caplog: pytest.LogCaptureFixture, script: FakeScript, seconds: float, outcome: str, problem: str
) -> None:
    """Its request was answered 200, long before."""
    service = await start(script, request_timeout=seconds)
    caplog.set_level(logging.INFO)
    caplog.handler.addFilter(lambda record: setattr(record, "request_id", request_id.get()) or True)
    body = {"prompt": SECRET * 4, "stream": True}
    await service.http.post("/v1/chat", json=body, headers={"X-Request-Id": "one"})
    record = await the_line(caplog)
    assert record.fields["status"] == 200
    assert (record.fields["outcome"], record.fields["problem"], record.request_id) == (outcome, problem, "one")
    assert record.fields["completion_tokens"] > 0
    assert [r for r in caplog.records if getattr(r, "request_id", "") == "one"] == [record]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_the_line_of_an_answer_tells_who_asked_how_much_and_how_long_it_took(
    service: Service, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    caplog.set_level(logging.INFO)
    await service.ask(stream=stream)
    fields = (await the_line(caplog)).fields
    assert (fields["client"], fields["outcome"]) == ("127.0.0.1", "stop")
    assert min(fields["prompt_tokens"], fields["completion_tokens"]) > 1
    assert 0 <= fields["queue_seconds"] < fields["first_token_seconds"] < fields["seconds"]
    assert "key_id" not in fields


async def test_a_line_without_an_answer_has_no_figures_of_one(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    await service.ask()
    caplog.set_level(logging.INFO)
    await service.http.get("/v1/models")
    (fields,) = [record.fields for record in caplog.records if record.name == "service.access"]
    assert fields.keys() == {"status", "route", "seconds", "client"}


async def test_probes_that_succeed_are_quiet(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await service.http.get("/")
    await service.http.get("/healthz")
    assert not [record for record in caplog.records if record.name == "service.access"]


@pytest.mark.parametrize(
    "body", [{"prompt": SECRET}, {"prompt": SECRET, "stream": True}, {"prompt": SECRET, "seed": "x"}]
)
async def test_nothing_that_was_said_is_logged(
    service: Service, caplog: pytest.LogCaptureFixture, body: dict[str, object]
) -> None:
    caplog.set_level(logging.DEBUG)
    await service.http.post("/v1/chat", json=body)
    assert "xyzzy" not in " ".join(f"{record.getMessage()} {vars(record).get('fields')}" for record in caplog.records)


async def test_prompts_and_answers_are_logged_when_switched_on(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    service = await start(log_prompts=True)
    caplog.set_level(logging.INFO)
    await service.ask(prompt=SECRET)
    (record,) = [record for record in caplog.records if record.getMessage() == "answered"]
    assert record.fields["prompt"] == SECRET
    assert SECRET in record.fields["response"]


async def test_a_problem_does_not_repeat_the_prompt(service: Service) -> None:
    response = await service.http.post("/v1/chat", json={"prompt": SECRET + "\x00"})
    assert "xyzzy" not in response.text


async def test_methods_that_a_client_invents_make_one_series(service: Service) -> None:
    for method in ("SPY", "SPY2", "SPY3"):
        assert (await service.http.request(method, "/v1/chat")).status_code == 405
    counted = {
        sample.labels["method"] for family in service.metrics.http_requests.collect() for sample in family.samples
    }
    assert "other" in counted
    assert not any(method.startswith("SPY") for method in counted)


async def test_a_path_cannot_write_a_log_line_of_its_own(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await service.http.get("/%0A12:00:00%20info%1B[31m")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "service.access"]
    assert line.isprintable()
    assert line.startswith("GET /%0A12")


@pytest.mark.parametrize("path", ["/" + "a" * 5_000, "/" + "%0A" * 1_500], ids=["plain", "quoted"])
async def test_a_path_without_end_fills_neither_log_nor_answer(
    service: Service, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    caplog.set_level(logging.INFO)
    response = await service.http.get(path)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "service.access"]
    assert response.status_code == 404
    assert path[:91] in line
    assert path[:91] in response.json()["detail"]
    assert max(len(line), len(response.content)) < 500
