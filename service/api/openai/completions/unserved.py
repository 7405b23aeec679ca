"""What OpenAI's and vLLM's completions have and these have not."""

from service.api.openai.unserved import OF_OTHER_SERVERS, Neutral

OF_REQUEST: Neutral = {
    **OF_OTHER_SERVERS,
    "best_of": (1,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "suffix": ("",),
    "truncate_prompt_tokens": (),
}
"""With the values, besides null, that change nothing. Sources:
https://platform.openai.com/docs/api-reference/completions/create
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html"""
