"""gunicorn's settings in production: one worker, whose engine outlives it.

gunicorn -c python:service.gunicorn_conf 'service.server:app()'
"""

import os
import shutil
from pathlib import Path
from typing import Any

from service import open_files
from service.environment import load_settings
from service.log import is_console
from service.settings import PREFIX, private_run_dir

_settings = load_settings()

_host = f"[{_settings.host}]" if ":" in _settings.host else _settings.host  # an IPv6 address has colons of its own
bind = f"{_host}:{_settings.port}"
workers = 1  # one GPU, one engine; the web side is far from its limit
worker_class = "service.gunicorn_worker.Worker"
timeout = 30  # an event loop that is blocked for so long is replaced; the engine, in its own process, goes on
graceful_timeout = int(_settings.drain_timeout) + 15  # the worker ends itself well before gunicorn would kill it
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a heartbeat must not wait for a disk
control_socket_disable = True  # it would need a writable place for nothing
proc_name = "internlm-chat"

_formatter = "console" if is_console(_settings.log_format) else "json"
logconfig_dict: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "service.log.JsonFormatter"}, "console": {"()": "service.log.ConsoleFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": _formatter}},
    "root": {"handlers": ["stderr"], "level": _settings.log_level.upper()},
    "loggers": {
        "gunicorn.error": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "gunicorn.access": {"handlers": [], "propagate": False},
    },
}


def on_starting(_: Any) -> None:
    """What every worker inherits: the limit, and one directory, so that a new one finds the old one's engine."""
    open_files.raise_limit()
    os.environ.setdefault(f"{PREFIX}RUN_DIR", str(private_run_dir()))


def on_exit(_: Any) -> None:
    if _settings.run_dir is None:
        shutil.rmtree(os.environ[f"{PREFIX}RUN_DIR"], ignore_errors=True)
