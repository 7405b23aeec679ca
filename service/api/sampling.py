"""How an answer's tokens are drawn: the fields that both chat routes have, their bounds, and what the engine gets."""

import secrets
from typing import Annotated, Protocol

from pydantic import Field

from service.engine.base import SamplingParams

Number = Annotated[float, Field(allow_inf_nan=False)]
Temperature = Annotated[Number, Field(ge=0, le=10, description="0 is greedy.")]
TopK = Annotated[int, Field(ge=0, le=200_000, description="Draw from the k likeliest tokens; 0: from all.")]
TopP = Annotated[
    Number, Field(gt=0, le=1, description="Draw from the likeliest tokens that hold this share; 1: from all.")
]
RepetitionPenalty = Annotated[Number, Field(ge=0.01, le=10, description="Above 1: shun tokens that were used; 1: off.")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Sampled(Protocol):
    """A request with these fields."""

    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int | None


def params(body: Sampled) -> SamplingParams:
    """What the engine gets of them; without a seed, a new one for each request."""
    return SamplingParams(
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        repetition_penalty=body.repetition_penalty,
        seed=secrets.randbits(63) if body.seed is None else body.seed,
    )
