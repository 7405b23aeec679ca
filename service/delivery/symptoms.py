"""From an exception, possibly of another process, to a cause the operator understands.

Clients wrap errors in errors; the innermost ones say most, so a symptom keeps the names of all of them.
"""

import errno
import re
import ssl
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from service.delivery.failures import Cause, DeliveryFailed

_MESSAGE_LIMIT = 300
_QUERY = re.compile(r"\?[^\s'\")]+")
_USER = re.compile(r"(?<=://)[^/\s]*@")

CAUSE_OF_ERRNO = {
    errno.ENOSPC: Cause.NO_SPACE,
    errno.EDQUOT: Cause.NO_SPACE,
    errno.EROFS: Cause.READ_ONLY,
    errno.EACCES: Cause.NOT_PERMITTED,
    errno.EPERM: Cause.NOT_PERMITTED,
    errno.EIO: Cause.DISK,
    errno.ESTALE: Cause.DISK,
}
CAUSE_OF_STATUS = {
    401: Cause.UNAUTHORIZED,
    403: Cause.FORBIDDEN,
    404: Cause.NOT_FOUND,
    407: Cause.PROXY,
    429: Cause.THROTTLED,
}
CAUSE_OF_NAME: tuple[tuple[str, Cause], ...] = (
    # In this order: a proxy's failed handshake is a proxy's first, a name that does not resolve is no plain refusal.
    ("ProxyError", Cause.PROXY),
    ("SSLError", Cause.TLS),
    ("SSLCertVerificationError", Cause.TLS),
    ("NameResolutionError", Cause.DNS),
    ("gaierror", Cause.DNS),
    ("NewConnectionError", Cause.UNREACHABLE),  # a refusal; urllib3 derives it from its time-outs
    ("MemoryError", Cause.BAD_LISTING),
    ("FileSizeMismatchError", Cause.INTEGRITY),
    ("FileIntegrityError", Cause.INTEGRITY),
    ("Timeout", Cause.TIMEOUT),
    ("ConnectTimeout", Cause.TIMEOUT),
    ("ReadTimeout", Cause.TIMEOUT),
    ("RequestTimeoutError", Cause.TIMEOUT),
    ("ReadTimeoutError", Cause.TIMEOUT),
    ("ConnectTimeoutError", Cause.TIMEOUT),
    ("_DownloadTooSlowError", Cause.STALLED),
    ("InvalidURL", Cause.BAD_ANSWER),
    ("JSONDecodeError", Cause.BAD_ANSWER),
    ("ConnectionError", Cause.UNREACHABLE),
    ("ConnectionResetError", Cause.UNREACHABLE),
    ("NetworkError", Cause.UNREACHABLE),
    ("ProtocolError", Cause.UNREACHABLE),
    ("RequestException", Cause.UNREACHABLE),
    # Last: an answer of another shape than the client expects breaks it in one of these ways.
    ("HTTPException", Cause.BAD_ANSWER),
    ("LookupError", Cause.BAD_ANSWER),
    ("AttributeError", Cause.BAD_ANSWER),
    ("TypeError", Cause.BAD_ANSWER),
    ("ValueError", Cause.BAD_ANSWER),
)


@dataclass(frozen=True)
class Symptom:
    """What is known about an exception once it has crossed a process border as JSON."""

    message: str
    names: list[str] = field(default_factory=list)
    status: int | None = None
    errno: int | None = None
    retry_after: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def describe(error: BaseException) -> Symptom:
    """The symptom of `error` and of everything that caused it. Signed addresses lose their query, all their user."""
    errors = list(_chain(error))
    return Symptom(
        message=_one_line(str(error) or type(error).__name__),
        names=list(dict.fromkeys(name for e in errors for name in _names(e))),
        status=next((s for e in errors if (s := _status(e)) is not None), None),
        errno=next((number for e in errors if (number := _disk_errno(e)) is not None), None),
        retry_after=next((float(r) for e in errors if (r := getattr(e, "retry_after", None))), None),
    )


def diagnose(symptom: Symptom, subject: str) -> DeliveryFailed:
    """The failure behind a symptom; `subject` says what was being done, e.g. "fetching config.json"."""
    what = f"{subject}: {symptom.message}"
    return DeliveryFailed(_cause(symptom), what, retry_after=symptom.retry_after)


def failure_of(error: BaseException, subject: str) -> DeliveryFailed:
    """The same, for an exception of this process."""
    return error if isinstance(error, DeliveryFailed) else diagnose(describe(error), subject)


def _cause(symptom: Symptom) -> Cause:
    if symptom.errno is not None:
        return CAUSE_OF_ERRNO[symptom.errno]
    if symptom.status is not None and symptom.status in CAUSE_OF_STATUS:
        return CAUSE_OF_STATUS[symptom.status]
    if symptom.status is not None and symptom.status >= 500:
        return Cause.HUB_ERROR
    return next((cause for name, cause in CAUSE_OF_NAME if name in symptom.names), Cause.CLIENT)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error`, then what it wraps: causes, contexts, and exceptions kept in `reason` or `args` (urllib3, requests)."""
    queue: deque[BaseException] = deque([error])
    seen: set[int] = set()
    while queue:
        current = queue.popleft()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        inner = (current.__cause__, current.__context__, getattr(current, "reason", None), *current.args)
        queue.extend(e for e in inner if isinstance(e, BaseException))


def _disk_errno(error: BaseException) -> int | None:
    """The error number of a file operation. TLS errors have small numbers of another kind; a refused connection
    (a NetworkPolicy can answer EPERM) has no file name."""
    if not isinstance(error, OSError) or isinstance(error, ssl.SSLError) or error.errno not in CAUSE_OF_ERRNO:
        return None
    refused = error.errno in (errno.EACCES, errno.EPERM)
    return None if refused and error.filename is None else error.errno


def _names(error: BaseException) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__ if kind not in (object, BaseException, Exception)]


def _status(error: BaseException) -> int | None:
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) and status >= 400 else None


def without_users(text: str) -> str:
    """`text`, in whose addresses nobody is named and no password: the log is not the place for one."""
    return _USER.sub("…@", text)


def _one_line(message: str) -> str:
    line = _QUERY.sub("?…", without_users(" ".join(message.split())))
    return line if len(line) <= _MESSAGE_LIMIT else line[: _MESSAGE_LIMIT - 1] + "…"
