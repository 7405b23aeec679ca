"""Settings come from the environment, are bounded, and a typo never serves with a default."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.download_settings import DownloadSettings
from service.environment import known_variables, load_download_settings, load_settings
from service.errors import ConfigurationError
from service.settings import PREFIX, Settings


def test_defaults_are_the_tutorials_ports_and_the_native_engine() -> None:
    settings = load_settings()
    assert (settings.port, settings.metrics_port, settings.engine) == (6006, 6007, "native")
    assert not settings.log_prompts


def test_values_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNLM_PORT", "7000")
    monkeypatch.setenv("INTERNLM_MODEL_DIR", "/models/internlm3")
    settings = load_settings()
    assert settings.port == 7000
    assert settings.model_dir == Path("/models/internlm3")


@pytest.mark.parametrize("load_any", [load_settings, load_download_settings])
@pytest.mark.parametrize("name", ["  ", "/models/internlm3\n", "~nobody-of-this-name/model"])
def test_a_directory_that_nobody_can_mean_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, load_any: Callable[[], object]
) -> None:
    """A download would make it, and say that the model is complete."""
    monkeypatch.setenv("INTERNLM_MODEL_DIR", name)
    with pytest.raises(ConfigurationError, match="INTERNLM_MODEL_DIR"):
        load_any()


def test_an_unknown_name_with_our_prefix_refuses_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNLM_PROT", "7000")
    with pytest.raises(ConfigurationError, match=r"unknown setting INTERNLM_PROT; known: .*INTERNLM_PORT"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "tcp://10.0.0.1:6006"),  # what Kubernetes' service links would inject
        ("PORT", "70000"),
        ("MAX_CONTEXT", "100000"),  # beyond the RoPE cap
        ("GPU_MEMORY_FRACTION", "1.5"),
        ("ENGINE", "vllm"),
        ("LOG_LEVEL", "loud"),
        ("REQUEST_TIMEOUT", "0"),
        ("REQUEST_TIMEOUT", "inf"),
        ("DRAIN_DELAY", "inf"),
        ("BODY_TIMEOUT", "nan"),
        ("PREFIX_CACHE", "perhaps"),
    ],
)
def test_a_value_out_of_bounds_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert f"{PREFIX}{name}={value!r}" in caught.value.message


@pytest.mark.parametrize("address", ["ftp://robot:S3cret@hub.internal/x", "robot:S3cret@hub.internal"])
def test_a_password_in_what_is_no_address_is_not_repeated(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("INTERNLM_HUB_ENDPOINT", address)
    with pytest.raises(ConfigurationError, match=r"INTERNLM_HUB_ENDPOINT=.*…@hub\.internal") as refused:
        load_download_settings()
    assert "S3cret" not in str(refused.value)


def test_a_download_waits_no_longer_than_a_socket_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNLM_DOWNLOAD_STALL_TIMEOUT", "1e12")
    with pytest.raises(ConfigurationError, match="INTERNLM_DOWNLOAD_STALL_TIMEOUT='1e12'"):
        load_download_settings()


def test_no_setting_is_infinite_or_no_number() -> None:
    for kind in (Settings, DownloadSettings):
        floats = [name for name, field in kind.model_fields.items() if field.annotation is float]
        for name, value in itertools.product(floats, (math.inf, math.nan)):
            with pytest.raises(ValidationError, match=name):
                kind(**{name: value})


def test_one_port_for_api_and_metrics_is_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNLM_PORT", "7000")
    monkeypatch.setenv("INTERNLM_METRICS_PORT", "7000")
    with pytest.raises(ConfigurationError, match=r"^INTERNLM_METRICS_PORT and INTERNLM_PORT are both 7000: "):
        load_settings()
    assert Settings(port=0, metrics_port=0).port == 0, "any free port, and none"


@pytest.mark.parametrize("engine", ["reference", "fake"])
def test_other_engines_quantize_nothing_and_say_so(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setenv("INTERNLM_QUANTIZATION", "int8")
    assert load_settings().quantization == "int8"
    monkeypatch.setenv("INTERNLM_ENGINE", engine)
    with pytest.raises(ConfigurationError, match=f"^INTERNLM_QUANTIZATION=int8 is the native .* instead of {engine}"):
        load_settings()


def test_origins_are_listed_one_by_one() -> None:
    assert Settings().allowed_origins == []
    assert Settings(cors_origins=" http://localhost:3000,https://a.example , ").allowed_origins == [
        "http://localhost:3000",
        "https://a.example",
    ]
    assert Settings(cors_origins="*").allowed_origins == ["*"]
    for origin in ("http://[::1]:3000", "tauri://localhost", "chrome-extension://abcdef", "http://a.example:443"):
        assert Settings(cors_origins=origin).allowed_origins == [origin]


ODD_ORIGINS = ["https://a.example/", "a.example", "https://a.example/chat", "https://*", "null", "https://A.example"]
ODD_ORIGINS += ["https://a.example:443", "http://a.example:80"]


@pytest.mark.parametrize("origin", ODD_ORIGINS)
def test_what_no_browser_calls_an_origin_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    monkeypatch.setenv("INTERNLM_CORS_ORIGINS", f"https://b.example,{origin}")
    with pytest.raises(ConfigurationError, match="INTERNLM_CORS_ORIGINS") as caught:
        load_settings()
    assert f"{origin} is no origin" in caught.value.message


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNLM_MODEL_DIR", "")
    monkeypatch.setenv("INTERNLM_API_KEYS_FILE", "")
    assert (load_settings().model_dir, load_settings().api_keys_file) == (None, None)


def test_every_setting_says_what_it_does() -> None:
    undescribed = [name for name, field in Settings.model_fields.items() if not field.description]
    assert undescribed == []


def test_every_setting_is_a_known_variable() -> None:
    assert {PREFIX + name.upper() for name in Settings.model_fields} <= set(known_variables())


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


def test_the_drain_lasts_as_long_as_the_longest_request() -> None:
    settings = Settings(request_timeout=100, drain_delay=3)
    assert settings.drain_timeout == 103


def test_the_cache_directory_knows_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings().cache == tmp_path / ".cache" / "internlm-chat"
