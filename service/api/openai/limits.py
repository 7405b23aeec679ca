"""How long answers are that nobody limits, or that go on past their end."""

from service.errors import InvalidRequest

DEFAULT_NEW_TOKENS = 4096
"""Clients of this API seldom set a limit and seldom show that one was reached, so it is high; and not all that the
context holds, since every token that an answer may have is reserved in the KV cache before it begins."""


def require_an_end(ignores_eos: bool, *, held_to: str) -> None:
    """Raises InvalidRequest for `ignore_eos` beside a field that allows nothing behind an answer's end: `held_to`, ""
    for none."""
    if ignores_eos and held_to:
        raise InvalidRequest(
            f"ignore_eos goes on past the answer's end, and {held_to} allows nothing there; send one of them",
            field="ignore_eos",
        )
