"""Exceptions as the clients raise them, wrapped in each other, and the cause the operator reads."""

import errno
import socket
import ssl

import pytest
import requests
import urllib3
from modelscope_hub.errors import FileIntegrityError, NetworkError, NotExistError, RateLimitError

from service.delivery.failures import Cause
from service.delivery.symptoms import Symptom, describe, diagnose, failure_of


def wrapped(outer: BaseException, inner: BaseException) -> BaseException:
    outer.__cause__ = inner
    return outer


def http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("refused", response=response)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), Cause.NO_SPACE),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Cause.NO_SPACE),
        (OSError(errno.EROFS, "Read-only file system", "/model/x"), Cause.READ_ONLY),
        (PermissionError(errno.EACCES, "Permission denied", "/model/x"), Cause.NOT_PERMITTED),
        (OSError(errno.EIO, "Input/output error"), Cause.DISK),
        (wrapped(NetworkError("failed"), OSError(errno.ENOSPC, "full")), Cause.NO_SPACE),
        (wrapped(NetworkError("failed"), PermissionError(errno.EPERM, "Operation not permitted")), Cause.UNREACHABLE),
        (http_error(401), Cause.UNAUTHORIZED),
        (http_error(403), Cause.FORBIDDEN),
        (http_error(404), Cause.NOT_FOUND),
        (http_error(407), Cause.PROXY),
        (http_error(429), Cause.THROTTLED),
        (http_error(500), Cause.HUB_ERROR),
        (http_error(503), Cause.HUB_ERROR),
        (NotExistError("gone", status_code=404), Cause.NOT_FOUND),
        (FileIntegrityError("hash mismatch"), Cause.INTEGRITY),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), Cause.TLS),
        (requests.exceptions.ProxyError("no proxy"), Cause.PROXY),
        (wrapped(requests.ConnectionError("failed"), socket.gaierror(-2, "Name or service not known")), Cause.DNS),
        (requests.ConnectionError(urllib3.exceptions.MaxRetryError(None, "/", socket.gaierror(-2, "x"))), Cause.DNS),  # type: ignore[arg-type]
        (requests.exceptions.ReadTimeout("slow"), Cause.TIMEOUT),
        (requests.exceptions.ConnectTimeout("slow"), Cause.TIMEOUT),
        (ConnectionResetError(errno.ECONNRESET, "reset"), Cause.UNREACHABLE),
        (urllib3.exceptions.ProtocolError("Connection broken"), Cause.UNREACHABLE),
        (MemoryError(), Cause.BAD_LISTING),
        (requests.exceptions.JSONDecodeError("no JSON", "<html>", 0), Cause.BAD_ANSWER),
        (KeyError("sha"), Cause.BAD_ANSWER),
        (RuntimeError("something else"), Cause.CLIENT),
    ],
    ids=lambda value: value.value if isinstance(value, Cause) else type(value).__name__,
)
def test_an_exception_has_its_cause(error: BaseException, cause: Cause) -> None:
    failure = diagnose(Symptom(**describe(error).to_json()), "fetching x")
    assert failure.cause is cause
    assert str(failure).startswith(f"{cause.value}: fetching x: ")


def test_a_message_is_one_line_without_signed_addresses() -> None:
    error = RuntimeError("GET https://host/file?Signature=secret&Expires=1\nfailed\n" + "x" * 1000)
    symptom = describe(error)
    assert "secret" not in symptom.message
    assert "\n" not in symptom.message
    assert len(symptom.message) <= 300


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://robot:secret@hub.example/api", "http://…@hub.example/api"),
        ("https://robot:sec@ret@hub.example:8443", "https://…@hub.example:8443"),
        ("https://secret@hub.example", "https://…@hub.example"),
        ("https://hub.example/api/models/owner/model@main", "https://hub.example/api/models/owner/model@main"),
    ],
)
def test_an_address_in_a_message_names_no_user(address: str, shown: str) -> None:
    assert describe(requests.ConnectionError(f"{address} is gone")).message == f"{shown} is gone"


def test_what_the_hub_says_of_coming_back_is_kept() -> None:
    error = RateLimitError("slow down", status_code=429)
    error.retry_after = 7  # type: ignore[attr-defined]
    assert diagnose(describe(error), "listing").retry_after == 7


def test_errors_that_cause_each_other_in_a_circle_are_described() -> None:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert describe(first).message == "first"


def test_a_failure_stays_what_it_is() -> None:
    failure = diagnose(describe(http_error(404)), "listing")
    assert failure_of(failure, "other") is failure
