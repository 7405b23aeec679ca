"""What clients made for other servers say by another value, or send by habit."""

from typing import Any

LEAST_TOP_P = 1e-6
"""Leaves the likeliest token alone, as 0 does in OpenAI's API."""


def as_ours(body: dict[str, Any]) -> dict[str, Any]:
    """A body that nobody has checked yet, in our numbers: `top_k` -1 is all tokens to vLLM's server, `seed` -1 a new
    one to llama.cpp's. With `ignore_eos` there are as many tokens as may be, and of `n` answers all are the best `n`:
    then `min_tokens`, or `best_of`, asks for nothing."""
    ours = dict(body)
    if _is(-1, body.get("top_k")):
        ours["top_k"] = 0
    if _is(-1, body.get("seed")):
        del ours["seed"]
    if _is(0, body.get("top_p")) or _is(0.0, body.get("top_p")):
        ours["top_p"] = LEAST_TOP_P
    if body.get("ignore_eos") is True and type(body.get("min_tokens")) is int:
        del ours["min_tokens"]
    if type(body.get("best_of")) is int and body["best_of"] == body.get("n"):
        del ours["best_of"]
    return ours


def _is(number: float, value: Any) -> bool:
    """And of the same type: false is no number here."""
    return type(value) is type(number) and value == number
