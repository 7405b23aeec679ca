"""What a message of OpenAI's API says: a text, or a list of parts of one."""

import json
from typing import Any

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from service.api.openai.unserved import OF_PART, PART_LABELS, without


def joined(*types: str) -> BeforeValidator:
    """Parts of these types as one text, a line each."""
    known = " or ".join(f'{{"type": {json.dumps(each)}, "text": "…"}}' for each in types)

    def join(content: Any) -> Any:
        if not isinstance(content, list):
            return content
        parts = [without(OF_PART, part) for part in content]
        for at, part in enumerate(parts):
            is_text = isinstance(part, dict) and part.get("type") in types and isinstance(part.get("text"), str)
            if not is_text or part.keys() - {"type", "text", *PART_LABELS}:
                raise ValueError(f"part {at} is not {known}, and nothing else is understood")
        return "\n".join(part["text"] for part in parts)

    return BeforeValidator(join)


def in_parts(*types: str) -> WithJsonSchema:
    """The schema of such a content."""
    part = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"type": {"enum": list(types)}, "text": {"type": "string"}},
        "required": ["type", "text"],
    }
    return WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": part}]})


def _of_the_models_format(role: str) -> str:
    return "system" if role == "developer" else role


AS_SYSTEM = AfterValidator(_of_the_models_format)
"""Of a role: a developer's message is a system's by another name."""
