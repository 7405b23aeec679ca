"""Log-probabilities as all of OpenAI's routes are asked for them: beside how many of the likeliest tokens."""

from service.errors import InvalidRequest

MOST_IN_ONE_PIECE = 200_000
"""Of an answer that is not streamed: some 15 MB, and a tenth of a second in which nobody else is served."""


def reported(
    top_logprobs: int, tokens: int, *, switch: str, is_on: bool, stream: bool, count_field: str = "top_logprobs"
) -> int | None:
    """How many of the likeliest tokens each one of up to `tokens` is reported beside; None: without a report.

    `switch`: the field that asks for reports; `count_field`: the one that says beside how many. Raises InvalidRequest
    for likeliest tokens without reports, and for too many in one piece.
    """
    if not is_on:
        require_none(top_logprobs, switch)
        return None
    count = tokens * (1 + top_logprobs)
    if count > MOST_IN_ONE_PIECE and not stream:
        raise InvalidRequest(
            f"{tokens} tokens with {top_logprobs} of the likeliest beside each may be {count} log-probabilities, and "
            f"at most {MOST_IN_ONE_PIECE} are sent in one piece: ask for fewer, or for a stream",
            field=count_field if top_logprobs else switch,
        )
    return top_logprobs


def require_none(top_logprobs: int, switch: str) -> None:
    if top_logprobs:
        raise InvalidRequest(
            f"top_logprobs goes with log-probabilities, and {switch} asks for none; have it ask, or leave this out",
            field="top_logprobs",
        )
