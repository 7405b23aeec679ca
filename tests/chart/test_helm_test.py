"""The script of `helm test`, run against the real server: it passes when all is well and says what is not."""

import asyncio
import contextlib
import os
import socket
import sys
from pathlib import Path

import pytest

from tests.api.conftest import Start
from tests.api.conftest import model_dir as model_dir
from tests.api.conftest import start as start
from tests.support.helm import CHART
from tests.support.server import PATIENCE

SCRIPT = CHART / "files" / "tests" / "chat.py"


TWO_FAMILIES = """
import socket
known = socket.getaddrinfo
def getaddrinfo(host, port, *arguments, **named):
    if host != "both":
        return known(host, port, *arguments, **named)
    return [answer for each in ("::1", "127.0.0.1") for answer in known(each, port, *arguments, **named)]
socket.getaddrinfo = getaddrinfo
"""
"""A name with an address of each family."""


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def until_open(port: int, host: str = "127.0.0.1") -> None:
    """Metrics are served beside readiness, not before it."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(host, port)
                return writer.close()
            await asyncio.sleep(0.01)


async def helm_test(url: str, metrics_port: int, **environment: str) -> tuple[int, str]:
    """Exit status and output of the script, as the test pod runs it."""
    told = {"API_URL": url, "METRICS_HOST": "127.0.0.1", "METRICS_PORT": str(metrics_port), "TIMEOUT": "20"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SCRIPT),
        env={"PATH": os.environ["PATH"]} | told | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_a_service_that_answers_passes(start: Start) -> None:
    port = free_port()
    service = await start(metrics_port=port, model_id="small")
    await until_open(port)
    status, output = await helm_test(service.running.url, port)
    assert status == 0, output
    assert [line.split(":")[0] for line in output.splitlines()] == ["ready", "models", "answer", "counted"]
    assert "models: small" in output
    assert "capital" not in output, "the fake engine echoes the question: answers must not be printed"


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_metrics_at_an_ipv6_address_are_found(start: Start) -> None:
    port = free_port()
    service = await start(metrics_port=port, host="::1")
    await until_open(port, "::1")
    status, output = await helm_test(service.running.url, port, METRICS_HOST="::1")
    assert status == 0, output


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_an_address_of_a_family_the_server_has_not_is_passed_over(start: Start, tmp_path: Path) -> None:
    """As with a Service of two families and a server that listens on one of them."""
    port = free_port()
    service = await start(metrics_port=port)
    await until_open(port)
    (tmp_path / "sitecustomize.py").write_text(TWO_FAMILIES)
    status, output = await helm_test(service.running.url, port, METRICS_HOST="both", PYTHONPATH=str(tmp_path))
    assert status == 0, output


async def test_metrics_nobody_serves_fail_in_one_sentence(start: Start) -> None:
    service, closed = await start(), free_port()
    status, output = await helm_test(service.running.url, closed)
    assert status == 1
    assert output.splitlines()[-1] == f"FAILED: nothing listens on port {closed} of 127.0.0.1"
    status, output = await helm_test(service.running.url, closed, METRICS_HOST="no-such-name.invalid")
    assert status == 1
    assert output.splitlines()[-1].startswith("FAILED: the metrics of no-such-name.invalid: ")


async def test_a_service_that_is_not_ready_fails_with_its_reason(start: Start) -> None:
    service = await start(loads=False)
    status, output = await helm_test(service.running.url, 1)
    assert status == 1
    assert "FAILED: / answered 503" in output
    assert "loading the model" in output


async def test_a_counter_that_does_not_move_fails(start: Start) -> None:
    port = free_port()
    await start(metrics_port=port)
    await until_open(port)
    silent = await start()
    status, output = await helm_test(silent.running.url, port)
    assert status == 1
    assert "FAILED: no request was counted" in output


async def test_an_address_nobody_listens_on_fails_in_one_sentence() -> None:
    status, output = await helm_test(f"http://127.0.0.1:{free_port()}", 1)
    assert status == 1
    assert output.startswith("FAILED: / of http://127.0.0.1")
    assert "Traceback" not in output


async def test_a_service_that_asks_for_keys_is_given_the_first_of_the_list(start: Start, tmp_path: Path) -> None:
    keys, port = tmp_path / "keys", free_port()
    keys.write_text("# rotated in May\n\n  sk-first-key-of-the-list \nsk-second-key-of-the-list\n")
    service = await start(metrics_port=port, api_keys_file=keys)
    await until_open(port)
    status, output = await helm_test(service.running.url, port, API_KEYS_FILE=str(keys))
    assert status == 0, output
    status, output = await helm_test(service.running.url, port)
    assert status == 1
    assert "/v1/models answered 401" in output
