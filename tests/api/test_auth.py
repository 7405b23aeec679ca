"""API keys: everything under /v1 asks for one, probes do not, and a rotated file counts at once."""

import hashlib
import logging
from pathlib import Path

import pytest

from service.api.auth import ApiKeys
from service.errors import ConfigurationError
from tests.api.conftest import Service, Start


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("# for the web shop\nalpha-key\n\n  beta-key  \n")
    return file


@pytest.fixture
async def guarded(start: Start, key_file: Path) -> Service:
    return await start(api_keys_file=key_file)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "headers",
    [{}, bearer("gamma"), {"Authorization": "Bearer"}, bearer("# for the web shop"), {"Authorization": "alpha-key"}],
)
async def test_without_a_known_key_nothing_is_answered(guarded: Service, headers: dict[str, str]) -> None:
    for method, path in (("POST", "/v1/chat"), ("GET", "/v1/models")):
        response = await guarded.http.request(method, path, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer KEY" in response.text


@pytest.mark.parametrize("key", ["alpha-key", "beta-key"])
async def test_each_key_opens(guarded: Service, key: str) -> None:
    response = await guarded.http.post("/v1/chat", json={"prompt": "hi"}, headers=bearer(key))
    assert response.status_code == 200


async def test_a_key_may_be_of_any_letters_and_the_file_may_begin_with_a_mark(start: Start, tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbf" + "schlüssel-1\n钥匙\n".encode())
    service = await start(api_keys_file=tmp_path / "keys")
    for key, status in (("schlüssel-1", 200), ("钥匙", 200), ("schlussel-1", 401)):
        headers = {b"Authorization": f"Bearer {key}".encode()}
        assert (await service.http.get("/v1/models", headers=headers)).status_code == status


async def test_the_log_tells_which_key_was_used_without_telling_the_key(
    guarded: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for key in ("alpha-key", "beta-key", "alpha-key"):
        await guarded.http.post("/v1/chat", json={"prompt": "hi"}, headers=bearer(key))
    await guarded.http.post("/v1/chat", json={"prompt": "hi"}, headers=bearer("gamma"))
    lines = [record.fields for record in caplog.records if record.name == "service.access"]
    first, other, again, refused = (fields.get("key_id") for fields in lines)
    assert first == again == hashlib.sha256(b"alpha-key").hexdigest()[:8] != other
    assert refused is None
    assert not any(key in str(fields) for key in ("alpha-key", "beta-key", "gamma") for fields in lines)


async def test_probes_need_no_key(guarded: Service) -> None:
    assert (await guarded.http.get("/")).status_code == 200
    assert (await guarded.http.get("/healthz")).status_code == 200


async def test_a_rotated_file_counts_without_a_restart(guarded: Service, key_file: Path) -> None:
    key_file.write_text("a-new-key-of-another-length\n")
    assert (await guarded.http.get("/v1/models", headers=bearer("alpha-key"))).status_code == 401
    assert (await guarded.http.get("/v1/models", headers=bearer("a-new-key-of-another-length"))).status_code == 200


async def test_a_file_that_vanishes_lets_nobody_in(guarded: Service, key_file: Path) -> None:
    key_file.unlink()
    response = await guarded.http.get("/v1/models", headers=bearer("alpha-key"))
    assert response.status_code == 503


async def test_a_file_that_cannot_be_read_is_logged_each_time_it_goes_not_with_each_request(
    guarded: Service, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = key_file.read_text()
    for gone in (1, 2):
        key_file.unlink()
        for _ in range(3):
            await guarded.http.get("/v1/models", headers=bearer("alpha-key"))
        assert caplog.text.count("the API keys cannot be read") == gone
        key_file.write_text(keys)
        assert (await guarded.http.get("/v1/models", headers=bearer("alpha-key"))).status_code == 200


@pytest.mark.parametrize("content", ["", "# nothing but a comment\n", None])
def test_a_file_without_a_key_refuses_to_start(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigurationError, match="INTERNLM_API_KEYS_FILE"):
        ApiKeys(file)


async def test_no_key_is_ever_logged(guarded: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    await guarded.http.get("/v1/models", headers=bearer("alpha-key"))
    await guarded.http.get("/v1/models", headers=bearer("wrong-key"))
    assert "-key" not in caplog.text


async def test_the_model_is_listed_under_the_name_it_is_served_as(service: Service) -> None:
    listed = (await service.http.get("/v1/models")).json()
    served = (await service.http.get("/")).json()["model"]
    assert listed["object"] == "list"
    assert [(model["id"], model["object"]) for model in listed["data"]] == [(served, "model")]
