"""What the tokens of a step are reported with, where requests ask: log-probabilities as the model gives them, before
bias, penalties, temperature, filters and grammar."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from service.engine.base import Logprobs

ROWS_AT_ONCE = 32
"""Rows whose logits are widened together: bounds the memory of it to some 20 MB."""

Upload = Callable[[list[int]], torch.Tensor]


def logprobs_of(logits: torch.Tensor, token: int, count: int) -> Logprobs:
    """What `token` is reported with by its row's logits [vocab]."""
    each = logits.float().log_softmax(-1)
    values, tokens = each.topk(min(count, len(each)))
    return _logprobs(token, float(each[token]), tokens.tolist(), values.tolist())


class Scores(NamedTuple):
    """Of R rows that are reported: what `Report.read` needs, on its way to the host."""

    chosen: torch.Tensor  # int64 [R]: the tokens that were drawn
    drawn: torch.Tensor  # [R, 1]: their logits
    tokens: torch.Tensor  # int64 [R, most]: those of the largest logits, the first of the largest
    likeliest: torch.Tensor  # [R, most]: these logits
    denominators: torch.Tensor  # fp32 [R]: the logarithm of the softmax's


class Report:
    """The report of one step. `asked`: how many of the likeliest tokens a row is reported beside its own, by the row's
    place in the step, of which there is one at least; `hidden` [>= B, hidden]: the states that the step samples from,
    rows of padding included.

    The logits are computed for it once more, by `logits_of`, since a recorded sampler keeps its own to itself: of all
    rows, as there, so that they are rounded as there.
    """

    def __init__(
        self,
        asked: Mapping[int, int],
        hidden: torch.Tensor,
        logits_of: Callable[[torch.Tensor], torch.Tensor],
        upload: Upload,
    ) -> None:
        self._asked = asked
        self._hidden = hidden
        self._logits_of = logits_of
        self._upload = upload

    def around(self, draw: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Scores]:
        """What `draw` gives, the step's tokens [B], and their scores. All memory is taken before the tokens are drawn:
        until then it may be done again, and then no more."""
        places = self._upload(list(self._asked))
        logits = self._logits_of(self._hidden).index_select(0, places)
        denominators = torch.cat([part.float().logsumexp(-1) for part in torch.split(logits, ROWS_AT_ONCE)])
        likeliest, tokens = logits.topk(min(max(self._asked.values()), logits.shape[1]))
        chosen, scored = torch.empty_like(places), logits.new_empty(len(places), 1)
        drawn = draw()
        torch.index_select(drawn, 0, places, out=chosen)
        torch.gather(logits, 1, chosen[:, None], out=scored)
        return drawn, Scores(chosen, scored, tokens, likeliest, denominators)

    def read(self, scores: Scores) -> dict[int, Logprobs]:
        """By a row's place in the step, once the scores are on the host."""
        own = scores.drawn[:, 0].float() - scores.denominators
        values = scores.likeliest.float() - scores.denominators[:, None]
        columns = (each.tolist() for each in (scores.chosen, own, scores.tokens, values))
        return {
            place: _logprobs(token, value, tokens[:count], likeliest[:count])
            for (place, count), token, value, tokens, likeliest in zip(self._asked.items(), *columns, strict=True)
        }


def _logprobs(token: int, own: float, tokens: list[int], values: list[float]) -> Logprobs:
    """Of equally likely tokens, which come in no order, the one that was drawn is named first."""
    if own in values:
        first = values.index(own)
        others = [other for other in tokens[first:] if other != token]
        tokens = [*tokens[:first], token, *others][: len(values)]
    return Logprobs(own, tokens, values)
