"""What `helm test` runs: is it ready, with which model; one real question, and the counter that must have moved.

Standard library only. Exits 1 with one sentence that says what is wrong; prints no answer, only its length.
"""

# ruff: noqa: S310, T201 - the addresses are the chart's own, and what it prints is what `helm test --logs` shows.

import json
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

API = os.environ["API_URL"]
TIMEOUT = float(os.environ["TIMEOUT"])
COUNTED = tuple(f'internlm_requests_total{{outcome="{outcome}"}}' for outcome in ("stop", "length"))


def call(path: str, body: dict[str, object] | None = None) -> dict[str, object]:
    """One JSON answer of the API; exits where there is none."""
    headers = {"Content-Type": "application/json"}
    if file := os.environ.get("API_KEYS_FILE"):
        headers["Authorization"] = f"Bearer {first_key(Path(file))}"
    request = urllib.request.Request(API + path, json.dumps(body).encode() if body else None, headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        sys.exit(f"FAILED: {path} answered {error.code}: {error.read(500).decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"FAILED: {path} of {API}: {error}")


def first_key(file: Path) -> str:
    lines = (line.strip() for line in file.read_text().splitlines())
    return next(line for line in lines if line and not line.startswith("#"))


def answered() -> float:
    """Requests that ended well, over all pods: the Service may send the question to any of them."""
    host, port = os.environ["METRICS_HOST"], os.environ["METRICS_PORT"]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        pods = [answered_by(address[4][0], port) for address in found]
    except OSError as error:
        sys.exit(f"FAILED: the metrics of {host}: {error}")
    if not any(pods):
        sys.exit(f"FAILED: nothing listens on port {port} of {host}")
    return sum(sum(counted) for counted in pods)


def answered_by(host: str, port: str) -> list[float]:
    """The counters of one pod; none where nothing listens, as at an address of a family that the server has not."""
    address = f"[{host}]" if ":" in host else host
    try:
        with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
            return []
        raise
    return [float(line.split()[-1]) for line in lines if line.startswith(COUNTED)]


def counted_since(before: float) -> bool:
    """Whether the counter moves within five seconds: an answer is counted after it has been sent."""
    for _ in range(10):
        if answered() > before:
            return True
        time.sleep(0.5)
    return False


def main() -> None:
    print("ready:", call("/")["status"])
    print("models:", ", ".join(model["id"] for model in call("/v1/models")["data"]))
    before = answered()
    answer = call("/v1/chat", {"prompt": "What is the capital of France?", "max_new_tokens": 32})
    if not str(answer["response"]).strip():
        sys.exit("FAILED: the answer is empty")
    print("answer:", len(str(answer["response"])), "characters")
    if not counted_since(before):
        sys.exit("FAILED: no request was counted")
    print("counted: yes")


if __name__ == "__main__":
    main()
