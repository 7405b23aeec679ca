"""gunicorn's settings follow ours."""

import importlib.util
import runpy

import pytest
from gunicorn.util import parse_address


def configured() -> dict[str, object]:
    """The settings as gunicorn reads them: the file is run anew, in this test's environment."""
    spec = importlib.util.find_spec("service.gunicorn_conf")
    assert spec is not None
    assert spec.origin is not None
    return runpy.run_path(spec.origin)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1", "fd00::17", "localhost"])
def test_gunicorn_listens_where_the_settings_say(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("INTERNLM_HOST", host)
    monkeypatch.setenv("INTERNLM_PORT", "7001")
    assert parse_address(configured()["bind"]) == (host, 7001)


def test_gunicorn_waits_for_longer_than_a_drain_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNLM_REQUEST_TIMEOUT", "40")
    monkeypatch.setenv("INTERNLM_DRAIN_DELAY", "3")
    assert configured()["graceful_timeout"] > 43  # type: ignore[operator]


@pytest.mark.parametrize("console", [True, False])
def test_gunicorns_own_lines_look_like_the_services(monkeypatch: pytest.MonkeyPatch, console: bool) -> None:
    monkeypatch.setattr("service.log.is_console", lambda log_format: console and log_format == "auto")
    handlers = configured()["logconfig_dict"]["handlers"]  # type: ignore[index]
    assert handlers["stderr"]["formatter"] == ("console" if console else "json")
