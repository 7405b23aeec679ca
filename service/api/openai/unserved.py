"""OpenAI's parameters that are not served: refused by name, unless a value asks for nothing."""

import json
from typing import Any

from service.errors import InvalidRequest

Neutral = dict[str, tuple[object, ...]]

OF_PART: Neutral = {"annotations": ([],)}
"""What a part of a message's text may have, with the values, besides null, that change nothing."""

PART_LABELS = ("logprobs", "parsed")
"""What stands on a part that a client was answered with, and says nothing to the model. OpenAI's client reads its text
into an object."""

OF_OTHER_SERVERS: Neutral = {
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "priority": (0,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "use_beam_search": (False,),
}
"""The same of what vLLM's server takes beside OpenAI's own in completions of either kind, and clients made for it send,
often with its defaults. Source: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html"""

OF_STRUCTURED_OUTPUTS: Neutral = {
    "disable_additional_properties": (False,),
    "disable_any_whitespace": (False,),
    "disable_fallback": (False, True),
    "grammar": (),
    "structural_tag": (),
    "whitespace_pattern": (),
}
"""The same of its `structured_outputs`. There is one way to keep to them, so that none is fallen back from."""

OF_STREAM_OPTIONS: Neutral = {"include_obfuscation": (False,)}
"""The same of a stream."""

INSTEAD = {
    "function_call": "tool_choice is its newer name",
    "functions": "tools is their newer name",
    "guided_choice": "structured_outputs.choice is its newer name",
    "guided_json": "structured_outputs.json is its newer name",
    "guided_regex": "structured_outputs.regex is its newer name",
    "reasoning.effort": "thinking has the model reason",
    "reasoning_effort": "thinking has the model reason",
}
"""By field: what does nearly the same here."""

HINTS = (
    "cache_control",
    "prompt_cache_breakpoint",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
)
"""Of caches: they cannot change an answer, and the prefix cache does by itself what they ask for."""


def without(unserved: Neutral, value: Any, where: str = "") -> Any:
    """An object without its nulls, which mean "unset", and without what asks for nothing. `where` it lies in the body.

    Raises InvalidRequest for what does ask for something.
    """
    if not isinstance(value, dict):
        return value
    for name, neutral in unserved.items():
        if value.get(name) is not None and value[name] not in neutral:
            way_out = f" or send {json.dumps(neutral[0])}" if neutral else ""
            field = f"{where}{name}"
            other = f"; {INSTEAD[field]}" if field in INSTEAD else ""
            raise InvalidRequest(f"{field} is not served here; leave it out{way_out}{other}", field=field)
    dropped = (*unserved, *HINTS)
    return {name: each for name, each in value.items() if each is not None and name not in dropped}
