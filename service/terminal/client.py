"""The service's HTTP interface as a terminal needs it: readiness, and an answer piece by piece."""

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Self

import httpx

from service.terminal.sse import read_events

CONNECT_SECONDS = 10.0
READ_SECONDS = 900.0
"""Three times what a request may take by default, queue included: beyond it the connection is dead."""
DEFAULT_RETRY_SECONDS = 1.0
MOST_READINESS_WAIT_SECONDS = 5.0


class ChatFailed(Exception):
    """The question cannot be answered; says why and what helps."""


class TryLater(Exception):
    """The service takes no question now: `reason`, and after how many `seconds` it may."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.seconds = seconds


@dataclass(frozen=True)
class Finish:
    """The end of an answer."""

    reason: str


class ChatClient:
    """One service. Methods raise ChatFailed if it cannot be reached or refuses, TryLater if it is busy or not ready."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ChatFailed(f"--url {url}: {error}") from None
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise ChatFailed(f"--url {url}: not an address like http://127.0.0.1:6006")
        # To a proxy set in the environment, localhost would be its own machine.
        self._http = httpx.Client(base_url=parsed, timeout=timeout, trust_env=not _is_local(parsed.host))
        if api_key:
            self._http.headers["Authorization"] = f"Bearer {api_key}"
        self._url = url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def model(self) -> str:
        """Name of the model that answers. Raises TryLater with the service's reason while none does."""
        with self._reaching():
            response = self._http.get("/")
        health = _json(response)
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE and health.get("status") != "failed":
            reason = ": ".join(part for part in (health.get("status"), health.get("reason")) if part)
            raise TryLater(reason or "not ready", min(_retry_after(response), MOST_READINESS_WAIT_SECONDS))
        if not response.is_success:
            raise ChatFailed(f"the service at {self._url} failed: {health.get('reason') or response.reason_phrase}")
        return str(health.get("model") or self._url)

    def ask(self, request: dict[str, Any]) -> Generator[str | Finish]:
        """Pieces of the answer as they come, Finish last. Closing the iterator stops the answer on the server too."""
        with self._reaching(), self._http.stream("POST", "/v1/chat", json=request | {"stream": True}) as response:
            if not response.is_success:
                response.read()
                raise _refusal(response)
            yield from _pieces(response.iter_bytes())

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Say in the user's terms what goes wrong between here and the service."""
        try:
            yield
        except httpx.ConnectError as error:
            raise ChatFailed(
                f"no service answers at {self._url} ({error}). Start one (`internlm-chat serve`) or give another --url."
            ) from None
        except httpx.TimeoutException:
            raise ChatFailed(f"the service at {self._url} did not answer in time.") from None
        except httpx.HTTPError as error:
            raise ChatFailed(f"the connection to {self._url} broke: {error}") from None


def _pieces(chunks: Iterator[bytes]) -> Iterator[str | Finish]:
    for name, data in read_events(chunks):
        if data == "[DONE]":
            return
        event = _object(data)
        if name == "error":
            raise ChatFailed(str(event.get("detail", data)))
        if event.get("delta"):
            yield str(event["delta"])
        if event.get("finish_reason"):
            yield Finish(str(event["finish_reason"]))
    raise ChatFailed("the connection ended before the answer did.")


def _refusal(response: httpx.Response) -> ChatFailed | TryLater:
    problem = _json(response)
    detail = str(problem.get("detail") or f"{response.status_code} {response.reason_phrase}")
    busy = response.status_code == httpx.codes.TOO_MANY_REQUESTS
    # Any other 503 is an answer that broke: asked again, it might break the engine again.
    not_ready = problem.get("code") == "not_ready" and not detail.startswith("failed")
    return TryLater(detail, _retry_after(response)) if busy or not_ready else ChatFailed(detail)


def _retry_after(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("Retry-After", DEFAULT_RETRY_SECONDS)))
    except ValueError:
        return DEFAULT_RETRY_SECONDS


def _json(response: httpx.Response) -> dict[str, Any]:
    return _object(response.text)


def _object(text: str) -> dict[str, Any]:
    """The JSON object in `text`; empty for anything else: a proxy on the way may answer in its own form."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
