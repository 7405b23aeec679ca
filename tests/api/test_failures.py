"""Every way in which the engine ends a request has its own answer, with a way out."""

import asyncio
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.engine.fake import FakeScript
from service.log import request_id
from tests.api.conftest import Service, Start
from tests.support.server import PATIENCE, until

REQUEST_SERIES = ("internlm_request", "internlm_time_to_first_token", "internlm_time_per_output_token")
LONG = {"prompt": "hello " * 500, "max_new_tokens": 1000}


async def fill(service: Service, requests: int) -> list["asyncio.Task[object]"]:
    tasks: list[asyncio.Task[object]] = [asyncio.create_task(service.ask(**LONG)) for _ in range(requests)]
    await until(lambda: service.engine.status.stats.running + service.engine.status.stats.waiting == requests)
    return tasks


async def abandon(tasks: list["asyncio.Task[object]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_full_queue_is_429_with_the_time_to_wait(start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.01), max_running=1, max_queue=1)
    tasks = await fill(service, 2)
    response = await service.ask()
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["code"] == "queue_full"
    await abandon(tasks)


async def test_the_readiness_probe_is_no_request(service: Service) -> None:
    of_requests = {key: value for key, value in samples(service).items() if key[0].startswith(REQUEST_SERIES)}
    assert len(of_requests) > 10
    assert set(of_requests.values()) == {0}


async def test_a_refused_request_does_not_make_the_service_look_fast(start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.01), max_running=1, max_queue=0)
    tasks = await fill(service, 1)
    before = samples(service)
    assert (await service.ask()).status_code == 429
    after = samples(service)
    assert after["internlm_requests_total", "rejected"] == before["internlm_requests_total", "rejected"] + 1
    duration = ("internlm_request_duration_seconds_count", "")
    assert after[duration] == before[duration]
    await abandon(tasks)


async def test_an_answer_that_takes_too_long_is_504_and_names_the_limit(start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.05), request_timeout=1.5)
    response = await service.ask(**LONG)
    assert response.status_code == 504
    assert "1.5 s" in response.json()["detail"]
    await until(lambda: service.engine.status.stats.running == 0)


async def test_an_engine_that_dies_is_503_with_its_reason_and_readiness_falls(start: Start) -> None:
    service = await start(FakeScript(crash_at_step=4))
    response = await service.ask()
    assert response.status_code == 503
    assert response.json()["code"] == "engine_failed"
    await until(lambda: not service.running.lifecycle.ready)
    assert (await service.http.get("/")).json()["status"] == "failed"


async def test_a_bug_is_a_problem_without_inside_knowledge(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.chat.to_chat", lambda _: 1 / 0)
    named: list[str] = []
    monkeypatch.setattr("service.api.problems.logger.error", lambda *_, **__: named.append(request_id.get()))
    response = await service.http.post("/v1/chat", json={"prompt": "hi"}, headers={"X-Request-Id": "one"})
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert "ZeroDivision" not in response.text
    assert response.headers["x-request-id"] == "one"
    assert response.headers["connection"] == "close", "as uvicorn then does"
    assert named == ["one"]
    assert samples(service)["internlm_http_requests_total", "/v1/chat 500"] == 1


async def test_outcomes_and_latencies_are_counted(start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.001), metrics_port=0)
    assert (await service.ask()).status_code == 200
    assert (await service.ask(max_new_tokens=2)).status_code == 200
    assert (await service.ask(temperature=-1)).status_code == 400
    found = samples(service)
    assert found["internlm_requests_total", "stop"] == 1
    assert found["internlm_requests_total", "length"] == 1
    assert found["internlm_time_to_first_token_seconds_count", ""] == 2
    assert found["internlm_request_queue_time_seconds_count", ""] == 2
    assert found["internlm_time_per_output_token_seconds_count", ""] == 2
    assert found["internlm_request_prompt_tokens_sum", ""] > 10
    assert found["internlm_http_requests_total", "/v1/chat 400"] == 1
    assert found["internlm_http_requests_total", "/v1/chat 200"] == 2


def samples(service: Service) -> dict[tuple[str, str], float]:
    """(series, outcome or route and status) to value."""
    from prometheus_client import generate_latest

    text = generate_latest(service.metrics.registry).decode()
    return {
        (
            s.name,
            s.labels.get("outcome") or " ".join(s.labels[k] for k in ("route", "status") if k in s.labels),
        ): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if "le" not in s.labels
    }


async def test_long_prompts_have_threads_of_their_own(service: Service) -> None:
    """Those of asyncio start dead engines again and must not wait behind prompts, nor prompts behind them."""
    released = threading.Event()
    others = [asyncio.create_task(asyncio.to_thread(released.wait)) for _ in range(64)]
    try:
        async with asyncio.timeout(PATIENCE):
            assert (await service.ask(**LONG | {"prompt": "hello " * 1000, "max_new_tokens": 1})).status_code == 200
    finally:
        released.set()
        await asyncio.gather(*others)
