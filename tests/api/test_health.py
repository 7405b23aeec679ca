"""Readiness follows the model, liveness follows the engine, and neither follows the load."""

import asyncio
import re

import msgspec
import pytest

from service.engine.base import EngineState, EngineStatus
from service.engine.fake import FakeScript
from service.lifecycle import State
from tests.api.conftest import Service, Start
from tests.support.server import until


async def test_a_ready_service_is_healthy_and_says_which_model_answers(service: Service) -> None:
    response = await service.http.get("/")
    body = response.json()
    assert response.status_code == 200
    assert body["status"] == "healthy"
    assert body["message"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", body["timestamp"])
    assert body["model"]
    assert body["versions"]["internlm-chat"]


@pytest.mark.parametrize("degraded", [[], ["attention kernel disagreed: torch serves", "no CUDA graphs"]])
async def test_readiness_says_what_of_the_engine_is_degraded(
    service: Service, monkeypatch: pytest.MonkeyPatch, degraded: list[str]
) -> None:
    status = service.engine.status
    assert status.info is not None
    told = msgspec.structs.replace(status, info=msgspec.structs.replace(status.info, degraded=degraded))
    monkeypatch.setattr(type(service.engine), "status", property(lambda _: told))
    response = await service.http.get("/")
    assert (response.status_code, response.json()["degraded"]) == (200, degraded)


@pytest.mark.parametrize("quantization", ["none", "int8"])
async def test_readiness_says_to_what_the_weights_were_rounded(
    service: Service, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    status = service.engine.status
    assert status.info is not None
    told = msgspec.structs.replace(status, info=msgspec.structs.replace(status.info, quantization=quantization))
    monkeypatch.setattr(type(service.engine), "status", property(lambda _: told))
    assert (await service.http.get("/")).json()["quantization"] == quantization


@pytest.mark.parametrize("path", ["/", "/healthz"])
@pytest.mark.parametrize("ready", [True, False], ids=["ready", "loading"])
async def test_head_is_answered_as_get_without_a_body(start: Start, path: str, ready: bool) -> None:
    service = await start(FakeScript(hang_at_step=0 if ready else 1), wait=ready)
    head, get = await service.http.head(path), await service.http.get(path)
    assert head.status_code == get.status_code == (200 if ready or path == "/healthz" else 503)
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    assert int(head.headers["content-length"]) > 2
    assert ("retry-after" in head.headers) == ("retry-after" in get.headers)


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/completions"])
async def test_head_on_anything_else_is_405(service: Service, path: str) -> None:
    assert (await service.http.head(path)).status_code == 405


async def test_head_is_not_in_the_schema(service: Service) -> None:
    paths = (await service.http.get("/openapi.json")).json()["paths"]
    assert [set(paths[path]) for path in ("/", "/healthz")] == [{"get"}, {"get"}]


async def test_post_on_the_root_is_405(service: Service) -> None:
    response = await service.http.post("/", json={"prompt": "hi"})
    assert response.status_code == 405
    assert response.headers["allow"] == "GET"
    assert response.headers["content-type"] == "application/problem+json"


async def test_an_unknown_path_is_404_as_a_problem(service: Service) -> None:
    response = await service.http.get("/v2/chat")
    assert response.status_code == 404
    assert response.json()["status"] == 404


async def test_a_trailing_slash_is_another_path_and_no_redirect(service: Service) -> None:
    response = await service.http.get("/healthz/")
    assert response.status_code == 404


async def test_while_the_model_loads_the_port_answers_and_nothing_is_ready(start: Start) -> None:
    service = await start(loads=False)
    ready, alive, asked = await asyncio.gather(service.http.get("/"), service.http.get("/healthz"), service.ask())
    assert (ready.status_code, alive.status_code, asked.status_code) == (503, 200, 503)
    assert ready.json()["status"] in ("starting", "loading")
    assert ready.json()["reason"]
    assert asked.headers["retry-after"]
    assert asked.json()["code"] == "not_ready"
    service.engine.finish_loading()
    await until(lambda: service.running.lifecycle.ready)


async def test_a_model_that_does_not_answer_is_not_ready(start: Start) -> None:
    service = await start(FakeScript(hang_at_step=1), wait=False)
    await until(lambda: "first answer" in service.running.lifecycle.reason)
    assert (await service.http.get("/")).status_code == 503


async def test_a_model_too_slow_for_one_token_is_told_with_the_setting(start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.1), wait=False, request_timeout=0.01, drain_delay=60)
    await until(lambda: service.running.lifecycle.state is State.FAILED)
    assert "no first token within 0.01 s (INTERNLM_REQUEST_TIMEOUT)" in (await service.http.get("/")).json()["reason"]


async def test_a_stuck_engine_fails_liveness_with_its_reason(start: Start) -> None:
    service = await start(FakeScript(hang_at_step=3), step_timeout=0.2)
    asking = asyncio.create_task(service.ask())
    await until(lambda: service.engine.status.state is EngineState.STUCK)
    response = await service.http.get("/healthz")
    assert response.status_code == 503
    assert response.json()["status"] == "stuck"
    assert "step" in response.json()["reason"]
    await until(lambda: not service.running.lifecycle.ready)
    asking.cancel()


async def test_a_stuck_engine_is_ready_again_when_it_goes_on(start: Start) -> None:
    service = await start(FakeScript(hang_at_step=3), step_timeout=0.2)
    asking = asyncio.create_task(service.ask())
    await until(lambda: not service.running.lifecycle.ready)
    service.engine._core.release()  # type: ignore[union-attr]
    assert (await asking).status_code == 200
    await until(lambda: service.running.lifecycle.ready)


async def test_liveness_does_not_depend_on_load(start: Start) -> None:
    service = await start(FakeScript(step_seconds=0.02), max_running=2, max_queue=100)
    asking = [asyncio.create_task(service.ask(max_new_tokens=20)) for _ in range(20)]
    await until(lambda: service.engine.status.stats.waiting > 0)
    responses = await asyncio.gather(*(service.http.get("/healthz") for _ in range(10)))
    assert {response.status_code for response in responses} == {200}
    assert {answer.status_code for answer in await asyncio.gather(*asking)} == {200}


@pytest.mark.parametrize("state", list(EngineState))
async def test_liveness_by_engine_state(service: Service, monkeypatch: pytest.MonkeyPatch, state: EngineState) -> None:
    monkeypatch.setattr(type(service.engine), "status", property(lambda _: EngineStatus(state=state, reason="why")))
    response = await service.http.get("/healthz")
    assert response.status_code == (503 if state in (EngineState.STUCK, EngineState.FAILED) else 200)


@pytest.mark.parametrize("ready", [True, False])
async def test_health_is_readiness_by_the_name_other_servers_have_for_it(start: Start, ready: bool) -> None:
    service = await start(loads=ready)
    for method in ("GET", "HEAD"):
        assert (await service.http.request(method, "/health")).status_code == (200 if ready else 503)


@pytest.mark.parametrize("state", [EngineState.ASLEEP, EngineState.WAKING])
async def test_an_engine_that_sleeps_is_ready_and_says_so(
    service: Service, monkeypatch: pytest.MonkeyPatch, state: EngineState
) -> None:
    monkeypatch.setattr(type(service.engine), "status", property(lambda _: EngineStatus(state=state, reason="why")))
    response = await service.http.get("/")
    assert (response.status_code, response.json()["status"]) == (200, "healthy")
    assert response.json()["reason"] == f"engine {state.value}: why"


@pytest.mark.parametrize("state", [EngineState.RESTARTING, EngineState.STUCK, EngineState.FAILED, EngineState.STOPPED])
async def test_readiness_falls_with_the_engine_at_once(
    service: Service, monkeypatch: pytest.MonkeyPatch, state: EngineState
) -> None:
    monkeypatch.setattr(type(service.engine), "status", property(lambda _: EngineStatus(state=state, reason="why")))
    body = (await service.http.get("/")).json()
    assert body["status"] != "healthy"
    assert not state.takes_requests
    assert state.value in body["reason"] or body["status"] == "failed"
