"""How long answers are that nobody limits, or that go on past their end."""

from service.errors import InvalidRequest

DEFAULT_NEW_TOKENS = 4096
"""Clients of this API seldom set a limit and seldom show that one was reached, so it is high; and not all that the
context holds, since every token that an answer may have is reserved in the KV cache before it begins."""


def require_an_end(*, may_call: bool, is_json: bool, form: str) -> None:
    """Raises InvalidRequest for `ignore_eos` beside what allows nothing behind an answer's end: tools, and `form`, the
    field that says what form the answer has."""
    if may_call or is_json:
        other = "tools" if may_call else form
        raise InvalidRequest(
            f"ignore_eos goes on past the answer's end, and {other} allows nothing there; send one of them",
            field="ignore_eos",
        )
