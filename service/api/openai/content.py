"""What a message of OpenAI's API says: a text, or a list of parts of one."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from service.api.openai.unserved import OF_PART, PART_LABELS, without
from service.chat.printable import without_control
from service.errors import InvalidRequest

MAX_PARTS = 1000
MEDIA = ("image_url", "input_image", "input_audio", "video_url", "file", "input_file")
"""Types of parts that other models read."""


def joined(*types: str) -> BeforeValidator:
    """Parts of these types as one text, a line each."""
    known = " or ".join(f'{{"type": {json.dumps(each)}, "text": "…"}}' for each in types)

    def join(content: Any) -> Any:
        if not isinstance(content, list):
            return content
        if len(content) > MAX_PARTS:
            raise ValueError(f"it has {len(content)} parts; at most {MAX_PARTS} are read. Send fewer, longer ones")
        return "\n".join(text_of(at, part) for at, part in enumerate(content))

    def text_of(at: int, part: Any) -> str:
        part = _cleaned(at, part)
        if isinstance(part, dict) and part.get("type") in MEDIA:
            raise ValueError(f"part {at} is {part['type']}, and this model reads nothing but text; leave it out")
        is_text = isinstance(part, dict) and part.get("type") in types and isinstance(part.get("text"), str)
        if not is_text or part.keys() - {"type", "text", *PART_LABELS}:
            raise ValueError(f"part {at} is not {known}, and nothing else is understood")
        return str(part["text"])

    return BeforeValidator(join)


def _cleaned(at: int, part: Any) -> Any:
    try:
        return without(OF_PART, part)
    except InvalidRequest as refusal:  # which knows nothing of where the part is
        raise ValueError(f"part {at}: {refusal.message}") from None


def in_parts(*types: str) -> WithJsonSchema:
    """The schema of such a content."""
    part = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"type": {"enum": list(types)}, "text": {"type": "string"}},
        "required": ["type", "text"],
    }
    return WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": part}]})


def as_it_may_be_sent(content: Any) -> Any:
    """A content that nobody has checked yet, of an answer or a result that is sent back: without what is no text."""
    return without_control(content) if isinstance(content, str) else _each(_printable, content)


def as_answered(content: Any, type_: str) -> Any:
    """The same of an answer: what it refused to say is what it said, in a part of this type, and what it refers to is
    left out, which says nothing to the model."""
    return as_it_may_be_sent(_each(partial(_said, type_=type_), content))


def _each(change: Callable[[Any], Any], content: Any) -> Any:
    return list(map(change, content)) if isinstance(content, list) and len(content) <= MAX_PARTS else content


def _said(part: Any, type_: str) -> Any:
    if not isinstance(part, dict):
        return part
    said = {name: value for name, value in part.items() if name != "annotations"}
    if said.get("type") == "refusal" and "text" not in said and isinstance(said.get("refusal"), str):
        said |= {"type": type_, "text": said.pop("refusal")}
    return said


def _printable(part: Any) -> Any:
    is_text = isinstance(part, dict) and isinstance(part.get("text"), str)
    return part | {"text": without_control(part["text"])} if is_text else part


def _of_the_models_format(role: str) -> str:
    return "system" if role == "developer" else role


AS_SYSTEM = AfterValidator(_of_the_models_format)
"""Of a role: a developer's message is a system's by another name."""
