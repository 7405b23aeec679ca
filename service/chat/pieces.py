"""What an answer comes in: text and perhaps a call of a tool, piece by piece, and its end."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from service.chat.logprobs import TokenReport
from service.chat.stopwatch import Counts


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text of the answer; never empty. `tokens`: those that begin in it, if they are reported. `choice`: of several
    answers, which one it belongs to (see `choices`)."""

    text: str
    counts: Counts
    tokens: list[TokenReport]
    choice: int = 0


@dataclass(frozen=True, slots=True)
class CallDelta:
    """More of the answer's one call of a tool, which comes behind all of its text. `name`: which tool, in the first of
    these alone. `arguments`: new text of the JSON object that it is called with. `choice` as of a TextDelta."""

    name: str
    arguments: str
    counts: Counts
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is whole. `finish_reason` is "stop", "length" or "tool_calls". `tokens`: those behind its last text.
    `choice` as of a TextDelta."""

    finish_reason: str
    counts: Counts
    tokens: list[TokenReport]
    choice: int = 0


Delta = TextDelta | CallDelta
Pieces = AsyncGenerator[Delta | Done]
"""Those of an answer, in order; closed early, they end it."""
