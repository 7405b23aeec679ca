"""`logit_bias`: by the ids of tokens, what is added to their logits.

Source: https://platform.openai.com/docs/api-reference/chat/create
"""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from service.api.fields import Number, TokenId
from service.engine.defaults import MOST_BIASED

_ID = re.compile("0|[1-9][0-9]{0,17}")


def _by_ids(bias: Any) -> Any:
    """JSON's names, which are texts, as the numbers that they spell."""
    if not isinstance(bias, dict):
        return bias
    if len(bias) > MOST_BIASED:
        raise ValueError(f"it names {len(bias)} tokens; at most {MOST_BIASED} are taken")
    if not all(_ID.fullmatch(name) for name in bias):
        raise ValueError('it names tokens by their ids, whole numbers, such as {"42": -100}')
    return {int(name): added for name, added in bias.items()}


LogitBias = Annotated[
    dict[TokenId, Annotated[Number, Field(ge=-100, le=100)]], Field(max_length=MOST_BIASED), BeforeValidator(_by_ids)
]
