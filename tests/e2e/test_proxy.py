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
from dataclasses import dataclass
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
AT_ONCE = 3
"""Long answers that are asked for at the same time: each is slower than it would be alone."""
SAMPLE = 32
"""Tokens of answers that tell how fast so many are."""
MARGIN = 1.5
"""How much longer than a minute answers are meant to take, for they may be faster than the samples were."""
MOST = 8000
"""Tokens that the model can say."""
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


def tokens_in_a_minute(url: str) -> int:
    """How many tokens of each answer fill a minute, while this many are given."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        samples = list(pool.map(stream, [url] * AT_ONCE, [SAMPLE] * AT_ONCE))
    return int(max((SAMPLE - 1) / (sample["seconds"] - sample["first"]) for sample in samples) * MINUTE)


@dataclass
class Answers:
    """What came of one question in four ways, asked at once."""

    streamed: dict[str, Any]
    unset: dict[str, Any]
    passed: int
    cut: int


def answers(as_set: str, default: str, tokens: int) -> Answers:
    with ThreadPoolExecutor(AT_ONCE + 1) as pool:
        streamed = pool.submit(stream, as_set, tokens)
        unset = pool.submit(stream, default, SHORT)
        passed = pool.submit(whole, as_set, tokens)
        cut = pool.submit(whole, default, tokens)
        return Answers(streamed.result(), unset.result(), passed.result(), cut.result())


def test_answers_longer_than_a_minute_pass_the_ingress_and_not_a_proxy_as_it_comes(proxies: tuple[str, str]) -> None:
    as_set, default = proxies
    tokens = min(MOST, int(tokens_in_a_minute(as_set) * MARGIN))
    given = answers(as_set, default, tokens)
    if given.streamed["seconds"] < MINUTE + 3:  # what had slowed the samples down is gone
        tokens = min(MOST, 2 * tokens)
        given = answers(as_set, default, tokens)
    outcome = given.streamed
    assert outcome["last"] == "data: [DONE]", outcome
    assert outcome["seconds"] > MINUTE, outcome
    assert outcome["first"] < MINUTE / 2, "the stream was held back"
    assert outcome["batches"] > tokens / 2, "the stream came in lumps"
    assert given.unset["batches"] > SHORT / 2, "the answer's own header lets a stream pass any nginx unheld"
    assert given.passed == 200
    assert given.cut == 504, "nginx alone gives up after a minute"


def test_the_ingress_sets_every_directive_the_proxy_needs(release: Release) -> None:
    annotations = release.cluster.get("ingress", NAME)["metadata"]["annotations"]
    made = directives(annotations)
    assert re.search(r"proxy_read_timeout 410s;", made)
    assert "proxy_buffering off;" in made
    assert "proxy_http_version 1.1;" in made
