"""What answers cost, in tokens, as completions of either kind tell it."""

from collections.abc import Sequence

from pydantic import BaseModel

from service.chat.stopwatch import Counts


class PromptTokens(BaseModel):
    """Of the prompt's tokens, how many were found in the prefix cache."""

    cached_tokens: int


class CompletionUsage(BaseModel):
    """What the answers to one request cost, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


def usage(counts: Sequence[Counts], choices: int) -> CompletionUsage:
    """The counts of a request's answers, in their order, as OpenAI names them: a prompt with so many answers is counted
    once."""
    prompts = counts[::choices]
    prompt_tokens = sum(each.prompt_tokens for each in prompts)
    completion_tokens = sum(each.completion_tokens for each in counts)
    return CompletionUsage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokens(cached_tokens=sum(each.cached_tokens for each in prompts)),
    )
