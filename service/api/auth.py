"""API keys: with a key file set, everything under /v1 asks for one of its keys as a bearer token."""

import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import Request
from fastapi.security import HTTPBearer

from service.errors import ConfigurationError, NotReady, Unauthorized
from service.key_file import keys_in
from service.log import note

logger = logging.getLogger(__name__)

KEY_ID_DIGITS = 8

Guard = Callable[[Request], Awaitable[None]]


class ApiKeys:
    """The keys of a file, one a line; empty lines and lines that begin with # are skipped.

    The file is read again when it has changed: a Secret can be rotated without a restart. A file that becomes
    unreadable or empty lets nobody in. Raises ConfigurationError when it is so at the start.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stamp: tuple[int, int, int] | None = None
        self._digests: list[bytes] = []
        self._complaint = ""
        if not self.current():
            raise ConfigurationError(
                f"INTERNLM_API_KEYS_FILE={file}: there is no key in it, or it cannot be read. "
                "It holds one key a line; unset it to ask for none.",
                field="INTERNLM_API_KEYS_FILE",
            )

    def current(self) -> list[bytes]:
        """Digests of the keys that are valid now."""
        try:
            stat = self._file.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if stamp != self._stamp:
                self._digests, self._stamp, self._complaint = read_keys(self._file), stamp, ""
        except OSError as error:
            if str(error) != self._complaint:  # once, not with every request
                logger.error("the API keys cannot be read, so nobody is let in: %s", error)
            self._digests, self._stamp, self._complaint = [], None, str(error)
        return self._digests

    def accepts(self, key: str) -> bool:
        """Whether `key` is one of them. How long that takes does not tell how close a wrong one is."""
        offered = _digest(key)
        return any(hmac.compare_digest(offered, known) for known in self.current())


def read_keys(file: Path) -> list[bytes]:
    return [_digest(key) for key in keys_in(file)]


BEARER = HTTPBearer(auto_error=False, description="One of the service's API keys.")
"""Says in the OpenAPI document what `guard` asks for, and does nothing else."""


def guard(keys: ApiKeys) -> Guard:
    """A FastAPI dependency that lets only holders of a key pass."""

    async def check(request: Request) -> None:
        # Starlette reads a header's bytes as Latin-1, and the file is UTF-8, as are the bytes that clients send.
        header = request.headers.get("authorization", "").encode("latin-1").decode("utf-8", "surrogateescape")
        scheme, _, key = header.partition(" ")
        if not keys.current():
            raise NotReady("the service has no API keys at the moment", retry_after=30)
        if scheme.lower() != "bearer" or not keys.accepts(key.strip()):
            raise Unauthorized("send one of the service's API keys: Authorization: Bearer KEY", field="Authorization")
        note(key_id=key_id(key.strip()))

    return check


def key_id(key: str) -> str:
    """A name for a key that does not tell the key: the first digits of its SHA-256."""
    return _digest(key).hex()[:KEY_ID_DIGITS]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
