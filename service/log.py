"""Logging, configured once per process: JSON lines for a cluster, readable lines for a terminal.

A record's extra fields (`logger.info("...", extra={"fields": {...}})`) become JSON keys. The id of the request being
served travels in a context variable, so that every line says whose it is.
"""

import json
import logging
import math
import sys
import time
from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="")
request_notes: ContextVar[dict[str, object] | None] = ContextVar("request_notes", default=None)
"""What the line about the request that is being served will say besides; None outside of one."""

ACCEPT_FAILED = "socket.accept() out of system resource"
"""What asyncio logs, a thousand times at once, when no more file may be opened."""

NOISY_AT_INFO = ("httpx", "httpcore", "urllib3", "asyncio", "uvicorn.access")


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC, milliseconds), level, logger, message, request_id, extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id.get():
            line["request_id"] = request_id.get()
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class ConsoleFormatter(logging.Formatter):
    """`12:34:56 info     service.server: listening`, with extra fields as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        tail = "".join(f" {key}={_one_line(value)}" for key, value in fields.items())
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{stamp} {record.levelname.lower():<8} {record.name}: {record.getMessage()}{tail}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class Seldom(logging.Filter):
    """Lets one record with a message like `beginning` through every `seconds`; all others always."""

    def __init__(self, beginning: str, seconds: float) -> None:
        super().__init__()
        self._beginning = beginning
        self._seconds = seconds
        self._last = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.getMessage().startswith(self._beginning):
            return True
        passes = record.created >= self._last + self._seconds
        if passes:
            self._last = record.created
        return passes


_seldom = Seldom(ACCEPT_FAILED, seconds=5.0)


def _one_line(value: object) -> str:
    """A prompt may hold line breaks; in quotes and escaped, it cannot pass for lines of the log."""
    text = str(value)
    return text if text.isprintable() else repr(text)


def note(**fields: object) -> None:
    """Have the line about the request that is being served say this, too. Outside of one, nothing happens."""
    notes = request_notes.get()
    if notes is not None:
        notes |= fields


def is_console(log_format: str) -> bool:
    """Whether `log_format` (auto, json or console) means readable lines; auto does on a terminal."""
    return log_format == "console" or (log_format == "auto" and sys.stderr.isatty())


def configure(level: str, log_format: str) -> None:
    """Send everything to standard error, in the form that `log_format` means (see `is_console`)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ConsoleFormatter() if is_console(log_format) else JsonFormatter())
    logging.root.handlers = [handler]
    logging.root.setLevel(level.upper())
    for name in NOISY_AT_INFO:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("asyncio").addFilter(_seldom)  # once, however often this is called
    logging.captureWarnings(True)
