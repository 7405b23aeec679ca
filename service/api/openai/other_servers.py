"""What clients made for other servers say by another value, or send by habit."""

from typing import Any

LEAST_TOP_P = 1e-6
"""Leaves the likeliest token alone, as 0 does in OpenAI's API."""


def as_ours(body: dict[str, Any]) -> None:
    """Changes a body that nobody has checked yet: `top_k` -1 is all tokens to vLLM's server, `seed` -1 a new one to
    llama.cpp's, and with `ignore_eos` there are as many tokens as may be, so at least `min_tokens`."""
    if body.get("top_k") == -1:
        body["top_k"] = 0
    if body.get("seed") == -1:
        del body["seed"]
    if body.get("top_p") == 0 and body["top_p"] is not False:
        body["top_p"] = LEAST_TOP_P
    if body.get("ignore_eos") is True:
        body.pop("min_tokens", None)
