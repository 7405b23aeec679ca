"""Who may come in: what a request may ask for, how many may wait, and when to come back."""

import math
from collections.abc import Collection
from dataclasses import dataclass

from service.engine.base import Finish, FinishReason, GenerationRequest, SamplingParams
from service.engine.defaults import MOST_BIASED, MOST_LOGPROBS

RATE_WINDOW = 30.0
"""Seconds of work after which a finished request counts 1/e in the measured rate: a few answers' time."""

RETRY_UNMEASURED = 5
"""Seconds to come back after while nothing has finished yet."""

RETRY_LEAST, RETRY_MOST = 1, 60
"""Bounds of `retry_after` in seconds: longer waits are a guess, and the rate may have changed by then."""


MOST_TOP_K = 2**31 - 1
"""What the device's numbers hold; a vocabulary has far fewer tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the scheduler keeps to; the names are those of `Settings`. `cache_tokens` is what all KV blocks hold."""

    max_context: int
    max_running: int
    max_queue: int
    step_tokens: int
    cache_tokens: int
    vocab_size: int


def refusal(request: GenerationRequest, limits: Limits) -> str | None:
    """Why this request can never be served, with the numbers and the setting; None when it can."""
    prompt, new = len(request.prompt_ids), request.max_new_tokens
    if not prompt:
        return "prompt_ids is empty; at least one token is needed"
    if new < 1:
        return f"max_new_tokens is {new}; at least 1 is needed"
    if prompt + new > limits.max_context:
        return _too_long(prompt, new, f"max_context (INTERNLM_MAX_CONTEXT) allows {limits.max_context}")
    if prompt + new - 1 > limits.cache_tokens:
        return _too_long(prompt, new, f"the KV cache (INTERNLM_KV_CACHE_TOKENS) holds {limits.cache_tokens}")
    for name, tokens in ("prompt_ids", request.prompt_ids), ("forced", request.forced):
        if not _are_known(tokens, limits):
            return f"{name} holds a token outside the model's vocabulary of {limits.vocab_size}"
    if problem := _refusal_of_sampling(request.sampling, limits):
        return problem
    if request.logprobs is not None and not 0 <= request.logprobs <= MOST_LOGPROBS:
        return f"logprobs is {request.logprobs}; at most {MOST_LOGPROBS} of the likeliest tokens are told"
    return None


def _are_known(tokens: Collection[int], limits: Limits) -> bool:
    return not tokens or (min(tokens) >= 0 and max(tokens) < limits.vocab_size)


def _refusal_of_sampling(sampling: SamplingParams, limits: Limits) -> str:
    """Why a step that draws so would fail, or harm others' answers; "" if it would not."""
    biased = [token for token, _ in sampling.logit_bias]
    if len(biased) > MOST_BIASED or not _are_known(biased, limits):
        return f"logit_bias takes at most {MOST_BIASED} tokens of the model's vocabulary of {limits.vocab_size}"
    if not 0 <= sampling.top_k <= MOST_TOP_K:
        return f"top_k is {sampling.top_k}; it is 0, for all tokens, to {MOST_TOP_K}"
    if not 0 <= sampling.min_p <= 1:
        return f"min_p is {sampling.min_p}; it is a share, 0 to 1"
    return ""


def _too_long(prompt: int, new: int, limit: str) -> str:
    return (
        f"{prompt} prompt tokens and max_new_tokens {new} make {prompt + new}, {limit}; "
        "shorten the prompt or lower max_new_tokens"
    )


def queue_full(request_id: str, waiting: int, limits: Limits, retry_after: int) -> Finish:
    """The refusal of a request that came when as many waited as may; `retry_after` in seconds."""
    message = (
        f"{waiting} requests are waiting, as many as max_queue (INTERNLM_MAX_QUEUE) allows: "
        f"{limits.max_queue}; come back in {retry_after} s"
    )
    return Finish(request_id, FinishReason.REJECTED, message, retry_after)


class CompletionRate:
    """Requests ended per second of work, an exponentially weighted mean; time with nothing to do does not count."""

    def __init__(self) -> None:
        self._ended = 0.0
        self._seconds = 0.0
        self._at = 0.0

    def resume(self, now: float) -> None:
        """There is work again: leave out the time since the last end."""
        self._at = now

    def count(self, now: float) -> None:
        """One request ended."""
        self._advance(now)
        self._ended += 1

    def retry_after(self, ahead: int, now: float) -> int:
        """Whole seconds in which `ahead` waiting requests and one more will have ended at the measured rate."""
        self._advance(now)
        if not self._ended:
            return RETRY_UNMEASURED
        seconds = (ahead + 1) * self._seconds / self._ended
        return min(max(math.ceil(seconds), RETRY_LEAST), RETRY_MOST)

    def _advance(self, now: float) -> None:
        # Both sums fade alike, so that their ratio is a mean from the first request on, without a start-up bias.
        fade = math.exp((self._at - now) / RATE_WINDOW)
        self._ended *= fade
        self._seconds = self._seconds * fade + RATE_WINDOW * (1 - fade)
        self._at = now
