"""One line of the doctor's table."""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How a check ended. Only a FAIL that will last keeps the server from starting."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True)
class Finding:
    """What was checked, how it ended, what was found, and the setting or action that helps.

    `transient`: another process is in the way just now, and all would be well without it. It may end, or be the very
    engine that is to be used, so this keeps no server from starting.
    """

    name: str
    state: State
    found: str
    remedy: str = ""
    setting: str | None = None
    transient: bool = False


def ok(name: str, found: str) -> Finding:
    return Finding(name, State.OK, found)


def warn(name: str, found: str, remedy: str) -> Finding:
    return Finding(name, State.WARN, found, remedy)


def fail(name: str, found: str, remedy: str, setting: str | None = None) -> Finding:
    return Finding(name, State.FAIL, found, remedy, setting)


def skip(name: str, found: str) -> Finding:
    return Finding(name, State.SKIP, found)
