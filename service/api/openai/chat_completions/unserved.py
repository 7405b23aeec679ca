"""What OpenAI's and vLLM's chat completions have and these have not."""

from service.api.openai.unserved import Neutral

OF_REQUEST: Neutral = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
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
    "documents": ([],),
    "echo": (False,),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_reasoning": (True, False),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "priority": (0,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
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

REASONING = ("reasoning", "reasoning_content", "reasoning_details", "thinking_blocks")
"""Of an assistant's earlier messages: what a model thought before it answered is no part of the conversation."""

ANSWER_LABELS = ("id", "provider_specific_fields")
"""What other servers, and clients, put on an answer beside what it says."""

CALL_LABELS = ("extra_content", "provider_specific_fields")
"""The same of a call in it."""
