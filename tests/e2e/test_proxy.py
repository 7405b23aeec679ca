"""Answers that take longer than a minute, through a real nginx: as the chart's Ingress sets it, and as nginx comes."""

import itertools
import re
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chart.test_helm_test import free_port
from tests.e2e.release import API_KEY, ENDLESS, QUESTION, Release
from tests.support.helm import NAME

PREFIX = "nginx.ingress.kubernetes.io/"
MINUTE = 60
"""nginx's own `proxy_read_timeout`, in seconds."""
TOGETHER = 0.002
"""Seconds between lines that came in one piece, at most; steps take several times as long."""
SHORT = 400
"""Tokens of a stream that a proxy could hold back in its buffers several times over."""

KEY = {"Authorization": f"Bearer {API_KEY}"}

CONFIG = """
daemon off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {upstream}; {directives} }} }}
}}
"""


def directives(annotations: dict[str, str]) -> str:
    """What ingress-nginx writes into its configuration for these annotations."""
    kept = {key.removeprefix(PREFIX): value for key, value in annotations.items() if key.startswith(PREFIX)}
    seconds = {"proxy-read-timeout", "proxy-send-timeout"}
    names = {"proxy-body-size": "client_max_body_size"}
    lines = (
        f"{names.get(key, key.replace('-', '_'))} {value}{'s' if key in seconds else ''};"
        for key, value in kept.items()
    )
    return " ".join(lines) + ' proxy_set_header Connection "";'


@contextmanager
def nginx(folder: Path, upstream: str, settings: str) -> Iterator[str]:
    """A proxy before `upstream`; yields its address."""
    folder.mkdir()
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, port=port, upstream=upstream, directives=settings))
    with subprocess.Popen(["nginx", "-p", folder, "-c", config]) as process:
        try:
            with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:
                client.get(f"http://127.0.0.1:{port}/", timeout=60)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def proxies(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Addresses of two proxies: as the Ingress sets one, and with nginx's defaults."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed (apt-get install nginx-light)")
    annotations = release.cluster.get("ingress", NAME)["metadata"]["annotations"]
    folder = tmp_path_factory.mktemp("nginx")
    with (
        release.cluster.forward(f"service/{NAME}", 6006) as upstream,
        nginx(folder / "set", upstream, directives(annotations)) as as_set,
        nginx(folder / "default", upstream, "") as default,
    ):
        assert urllib.parse.urlsplit(as_set).port != urllib.parse.urlsplit(default).port
        yield as_set, default


@pytest.fixture(scope="module")
def tokens(release: Release) -> int:
    """How many tokens take this cluster well over a minute, even alone."""
    outcome = release.ask(ENDLESS | {"max_new_tokens": 100}).outcome()
    rate = (outcome["tokens"] - 1) / (outcome["seconds"] - outcome["first"])
    return min(8000, int(rate * MINUTE * 1.4))


def stream(url: str, tokens: int) -> dict[str, Any]:
    """First and last arrival, in seconds from the answer's head, the last line, and in how many batches lines came."""
    body = ENDLESS | {"prompt": QUESTION, "max_new_tokens": tokens, "stream": True}
    with httpx.stream("POST", url + "/v1/chat", json=body, headers=KEY, timeout=600) as response:
        begin = time.monotonic()
        arrivals = [(time.monotonic() - begin, line) for line in response.iter_lines() if line]
    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(arrivals)]
    batches = 1 + sum(gap > TOGETHER for gap in gaps)
    return {"first": arrivals[0][0], "seconds": arrivals[-1][0], "last": arrivals[-1][1], "batches": batches}


def whole(url: str, tokens: int) -> int:
    body = ENDLESS | {"prompt": QUESTION, "max_new_tokens": tokens}
    return httpx.post(url + "/v1/chat", json=body, headers=KEY, timeout=600).status_code


def test_answers_longer_than_a_minute_pass_the_ingress_and_not_a_proxy_as_it_comes(
    proxies: tuple[str, str], tokens: int
) -> None:
    as_set, default = proxies
    with ThreadPoolExecutor(4) as pool:
        streamed = pool.submit(stream, as_set, tokens)
        unset = pool.submit(stream, default, SHORT)
        passed = pool.submit(whole, as_set, tokens)
        cut = pool.submit(whole, default, tokens)
        outcome = streamed.result()
        assert outcome["last"] == "data: [DONE]", outcome
        assert outcome["seconds"] > MINUTE, outcome
        assert outcome["first"] < MINUTE / 2, "the stream was held back"
        assert outcome["batches"] > tokens / 2, "the stream came in lumps"
        assert unset.result()["batches"] > SHORT / 2, "the answer's own header lets a stream pass any nginx unheld"
        assert passed.result() == 200
        assert cut.result() == 504, "nginx alone gives up after a minute"


def test_the_ingress_sets_every_directive_the_proxy_needs(release: Release) -> None:
    annotations = release.cluster.get("ingress", NAME)["metadata"]["annotations"]
    made = directives(annotations)
    assert re.search(r"proxy_read_timeout 410s;", made)
    assert "proxy_buffering off;" in made
    assert "proxy_http_version 1.1;" in made
