"""Debian's promtool and prometheus as functions."""

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.helm import Manifest
from tests.support.server import PATIENCE

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (apt-get install prometheus)"
)


def write_rules(rule: Manifest, folder: Path) -> Path:
    """The rules of a PrometheusRule as Prometheus itself loads them."""
    file = folder / "rules.yml"
    file.write_text(yaml.safe_dump(rule["spec"]))
    return file


def promtool(*arguments: str) -> None:
    """Run promtool; fails the test with all it says."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def rule_test(rules: Path, tests: list[dict[str, Any]]) -> None:
    """`promtool test rules` over `tests`, in its own format."""
    file = rules.with_name("tests.yml")
    content = {"rule_files": [rules.name], "evaluation_interval": "15s", "tests": tests}
    file.write_text(yaml.safe_dump(content))
    promtool("test", "rules", str(file))


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The vector an expression gives now; fails the test where Prometheus refuses it."""
        async with httpx.AsyncClient() as client:
            answer = (await client.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30)).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        return answer["data"]["result"]  # type: ignore[no-any-return]

    async def until(self, expression: str) -> list[dict[str, Any]]:
        """Wait until an expression gives something."""
        async with asyncio.timeout(PATIENCE):
            while not (found := await self.query(expression)):
                await asyncio.sleep(0.1)
        return found


@asynccontextmanager
async def run_prometheus(folder: Path, port: int, target: int, labels: dict[str, str]) -> AsyncIterator[Prometheus]:
    """A real Prometheus on `port` that scrapes 127.0.0.1:`target` every second and loads rules.yml in `folder`."""
    scrape = {
        "job_name": labels["job"],
        "scrape_interval": "1s",
        "static_configs": [{"targets": [f"127.0.0.1:{target}"], "labels": labels}],
    }
    config = {"global": {"evaluation_interval": "1s"}, "rule_files": ["rules.yml"], "scrape_configs": [scrape]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    )
    try:
        await _until_ready(f"http://127.0.0.1:{port}/-/ready")
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        await process.wait()


async def _until_ready(url: str) -> None:
    async with asyncio.timeout(PATIENCE), httpx.AsyncClient() as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get(url)).status_code == 200:
                    return
            await asyncio.sleep(0.05)
