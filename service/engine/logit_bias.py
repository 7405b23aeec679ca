"""What a request has added to the logits of tokens that it names (OpenAI's `logit_bias`), as a row of whole numbers:
how many tokens there are, their ids, and the bits of what each gets in fp32."""

import numpy as np
import torch

from service.engine.base import SamplingParams
from service.engine.defaults import MOST_BIASED

WIDTH = 1 + 2 * MOST_BIASED
"""Numbers of a row. Behind the last token, ids and bits are zero, and nothing is added."""


def row_of(params: SamplingParams) -> list[int]:
    """WIDTH numbers for the request's `logit_bias`, in the order of ids: a kernel that looks at a part of the
    vocabulary finds those of its own side by side."""
    row = np.zeros(WIDTH, dtype=np.int32)
    tokens, added = row[1 : 1 + MOST_BIASED], row[1 + MOST_BIASED :].view(np.float32)
    for place, (token, value) in enumerate(sorted(params.logit_bias)):
        tokens[place], added[place] = token, value
    row[0] = len(params.logit_bias)
    return [int(number) for number in row]


def biased(scores: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Scores fp32 [B, vocab] with what the rows of `bias` int32 [B, WIDTH] add; a token is named once at most."""
    tokens, added = bias[:, 1 : 1 + MOST_BIASED], bias[:, 1 + MOST_BIASED :].view(torch.float32)
    return scores.scatter_add(1, tokens.long(), added)
