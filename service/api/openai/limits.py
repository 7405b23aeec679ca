"""How long answers are that nobody limits, or that go on past their end, and how many one request may have."""

from collections.abc import Sequence

from service.chat.form import Form
from service.errors import InvalidRequest

DEFAULT_NEW_TOKENS = 4096
"""Clients of this API seldom set a limit and seldom show that one was reached, so it is high; and not all that the
context holds, since every token that an answer may have is reserved in the KV cache before it begins."""

MOST_CHOICES = 16
"""Each takes a place among the requests that run at once."""


def require_an_end(moved_by: Sequence[str], *, may_call: bool, form: Form | None) -> None:
    """Raises InvalidRequest for fields that move an answer's end (`ignore_eos`, `stop_token_ids`) beside what says
    where it is: tools, and its form."""
    other = "tools" if may_call else form.name if form else ""
    if moved_by and other:
        raise InvalidRequest(
            f"{moved_by[0]} moves the answer's end, and {other} says where it is; send one of them", field=moved_by[0]
        )


def require_room(choices: int, most: int, *, prompts: int = 1) -> None:
    """Raises InvalidRequest for more answers than there is ever room for: to come back later would not help.
    `choices`: to each of the `prompts`."""
    if choices * prompts > most:
        said = f"n is {choices}" if prompts == 1 else f"{prompts} prompts have {choices * prompts} answers"
        raise InvalidRequest(
            f"{said}, and at most {most} are answered or wait at once; ask for fewer",
            field="n" if prompts == 1 else "prompt",
        )


def require_a_stream(*, has_options: bool, stream: bool) -> None:
    """Raises InvalidRequest for `stream_options` without a stream."""
    if has_options and not stream:
        raise InvalidRequest("stream_options is for streams; leave it out, or set stream", field="stream_options")
