"""What OpenAI's responses have and these have not."""

from typing import Any

from service.api.body import LONGEST_FIELD
from service.api.openai.unserved import OF_STREAM_OPTIONS, Neutral, without
from service.errors import InvalidRequest

OF_REQUEST: Neutral = {
    "access_programs": (),
    "background": (False,),
    "background_options": (),
    "context_management": ([],),
    "image": (),
    "max_tool_calls": (),
    "moderation": (),
    "parallel_tool_calls": (False, True),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "truncation": ("disabled",),
}
"""With the values, besides null, that change nothing.
Source: https://platform.openai.com/docs/api-reference/responses/create"""

OF_TEXT: Neutral = {"verbosity": ("medium",)}

OF_TOOL: Neutral = {
    "allowed_callers": (["direct"],),
    "async": (False,),
    "defer_loading": (False,),
    "output_schema": (),
}

OF_ITEM: Neutral = {"async": (False,), "caller": ({"type": "direct"},), "namespace": ()}
"""The same of an item of the input: clients send back what they were answered, whole."""

ITEM_LABELS = ("id", "parsed_arguments", "phase", "status")
"""What stands on an item and says nothing to the model. OpenAI's client reads a call's arguments into an object."""

OF_OPTIONS: dict[str, Neutral] = {
    "reasoning": {
        "effort": ("none",),
        "generate_summary": ("auto", "concise", "detailed"),
        "summary": ("auto", "concise", "detailed"),
    },
    "stream_options": OF_STREAM_OPTIONS,
}
"""Objects of which nothing is served: there is no reasoning apart from the answer, and so no summary of it."""

LABELS = ("client_metadata",)
"""What a client says of itself."""

KEPT_ELSEWHERE = ("conversation", "previous_response_id", "prompt")


def served(body: dict[str, Any]) -> dict[str, Any]:
    """A body that nobody has checked yet, without what asks for nothing. Raises InvalidRequest for what is not
    served."""
    for name in KEPT_ELSEWHERE:
        if body.get(name) is not None:
            raise InvalidRequest(
                f"{name} names what a server would have kept, and nothing is kept here; send all of it in input",
                field=name,
            )
    for name, neutral in OF_OPTIONS.items():
        _require_nothing(name, without(neutral, body.get(name) or {}, f"{name}."))
    left_in: dict[str, Any] = without(OF_REQUEST, body)
    return {name: value for name, value in left_in.items() if name not in (*OF_OPTIONS, *LABELS)}


def _require_nothing(name: str, options: Any) -> None:
    if not isinstance(options, dict):
        raise InvalidRequest(f"{name} is no JSON object; leave it out", field=name)
    for left in options:
        field = f"{name}.{left}"[:LONGEST_FIELD]
        raise InvalidRequest(f"{field} is not served here; leave it out", field=field)
