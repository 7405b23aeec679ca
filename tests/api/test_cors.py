"""Pages of other origins: none may ask unless the operator names its origin, and then a browser lets it."""

from pathlib import Path

import pytest

from tests.api.conftest import Start

FRIEND, STRANGER = "https://chat.example.com", "https://evil.example.com"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}


async def test_by_default_no_other_origin_is_allowed_anything(start: Start) -> None:
    service = await start()
    for method in ("GET", "OPTIONS"):
        response = await service.http.request(method, "/v1/models", headers={"Origin": FRIEND} | PREFLIGHT)
        assert not [name for name in response.headers if name.startswith("access-control")]


async def test_a_named_origin_may_ask_with_any_header_and_a_key(start: Start) -> None:
    service = await start(cors_origins=f"http://localhost:3000, {FRIEND}")
    for path in ("/v1/chat", "/v1/chat/completions"):
        response = await service.http.options(path, headers={"Origin": FRIEND} | PREFLIGHT)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == FRIEND
        assert "POST" in response.headers["access-control-allow-methods"]
        assert "x-stainless-os" in response.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in response.headers, "no cookie means anything here"


async def test_the_preflight_needs_no_key_and_the_refusal_without_one_can_be_read(start: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alpha")
    service = await start(cors_origins=FRIEND, api_keys_file=keys)
    assert (await service.http.options("/v1/chat", headers={"Origin": FRIEND} | PREFLIGHT)).status_code == 200
    refused = await service.http.post("/v1/chat", json={"prompt": "hi"}, headers={"Origin": FRIEND})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == FRIEND


async def test_a_page_from_outside_may_ask_a_server_inside_if_it_is_allowed(start: Start) -> None:
    service = await start(cors_origins=FRIEND)
    inside = PREFLIGHT | {"Origin": FRIEND, "Access-Control-Request-Private-Network": "true"}
    response = await service.http.options("/v1/chat", headers=inside)
    assert (response.status_code, response.headers["access-control-allow-private-network"]) == (200, "true")


async def test_a_stranger_is_refused_in_the_preflight_and_told_nothing_else(start: Start) -> None:
    service = await start(cors_origins=FRIEND)
    assert (await service.http.options("/v1/chat", headers={"Origin": STRANGER} | PREFLIGHT)).status_code == 400
    response = await service.http.get("/v1/models", headers={"Origin": STRANGER})
    assert "access-control-allow-origin" not in response.headers
    assert "Origin" in response.headers.get("vary", ""), "no cache may give one origin's answer to another"


async def test_what_clients_act_on_can_be_read_by_pages(start: Start) -> None:
    service = await start(cors_origins="*")
    response = await service.http.post("/v1/chat", json={"prompt": "hi", "stream": True}, headers={"Origin": STRANGER})
    assert response.headers["access-control-allow-origin"] == "*"
    exposed = response.headers["access-control-expose-headers"].lower()
    assert {"retry-after", "x-request-id", "x-should-retry"} <= set(exposed.split(", "))
    assert response.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("path", ["/v1/chat", "/nowhere"])
async def test_errors_reach_the_page(start: Start, path: str) -> None:
    service = await start(cors_origins=FRIEND)
    response = await service.http.post(path, content=b"{", headers={"Origin": FRIEND})
    assert response.status_code >= 400
    assert response.headers["access-control-allow-origin"] == FRIEND
