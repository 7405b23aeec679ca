"""What OpenAI's and vLLM's chat completions have and these have not."""

from service.api.openai.unserved import OF_OTHER_SERVERS, Neutral

OF_REQUEST: Neutral = {
    **OF_OTHER_SERVERS,
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "audio": (),
    "best_of": (1,),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_reasoning": (True, False),
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
"""With the values, besides null, that change nothing.
Sources: https://platform.openai.com/docs/api-reference/chat/create https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html"""

OF_MESSAGE: Neutral = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": ("",),
}
"""The same of a message: clients send back what they were answered, whole."""

REASONING = ("reasoning", "reasoning_content", "reasoning_details", "thinking_blocks")
"""Of an assistant's earlier messages: what a model thought before it answered is no part of the conversation."""

ANSWER_LABELS = ("annotations", "id", "parsed", "provider_specific_fields")
"""What other servers, and clients, put on an answer beside what it says: the object that OpenAI's client reads it into,
say, or what it refers to."""

CALL_LABELS = ("extra_content", "provider_specific_fields")
"""The same of a call in it."""

FUNCTION_LABELS = ("parsed_arguments",)
"""The same of the function that is called."""
