"""Tools that are offered with a conversation."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tool:
    """One that the model may call. `parameters`: the JSON schema of the object that it is called with. `strict`: no
    call may ever not fit it, so that a schema that cannot be kept to is refused. `field`: of the request, where that
    stands."""

    name: str
    description: str
    parameters: dict[str, Any]
    strict: bool = False
    field: str = "tools"


@dataclass(frozen=True, slots=True)
class Offer:
    """Some tools, by whose schemas calls are judged. `demanded`: the answer is the call of one of them and nothing
    else; otherwise the model may call one behind its text, or none."""

    tools: tuple[Tool, ...]
    demanded: bool = False
