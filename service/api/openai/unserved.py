"""OpenAI's parameters that are not served: refused by name, unless a value asks for nothing."""

import json
from typing import Any

from service.errors import InvalidRequest

Neutral = dict[str, tuple[object, ...]]

OF_REQUEST: Neutral = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (False, True),
    "prediction": (),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""With the values, besides null, that change nothing. Source: https://platform.openai.com/docs/api-reference/chat/create"""

OF_OTHER_SERVERS: Neutral = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "best_of": (1,),
    "continue_final_message": (False,),
    "echo": (False,),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "priority": (0,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "use_beam_search": (False,),
}
"""The same of what vLLM's server takes beside OpenAI's own, and clients made for it send, often with its defaults.
Source: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html"""

OF_MESSAGE: Neutral = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": ("",),
}
"""The same of a message: clients send back what they were answered, whole."""

OF_PART: Neutral = {"annotations": ([],)}
"""The same of a part of a message's text."""

OF_STREAM_OPTIONS: Neutral = {"include_obfuscation": (False,)}

REASONING = ("reasoning", "reasoning_content")
"""Of an assistant's earlier messages: what a model thought before it answered is no part of the conversation."""

HINTS = ("cache_control", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention")
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
            raise InvalidRequest(f"{where}{name} is not served here; leave it out{way_out}", field=f"{where}{name}")
    dropped = (*unserved, *HINTS)
    return {name: each for name, each in value.items() if each is not None and name not in dropped}
