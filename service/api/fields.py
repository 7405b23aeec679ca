"""What both chat routes take: texts and numbers with their bounds, each stated once, and how an answer is drawn.

Unknown fields are refused, never ignored.
"""

import secrets
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from service.chat.printable import CONTROL_CHARACTER
from service.engine.base import SamplingParams

MAX_TEXT_CHARACTERS = 400_000
"""More than 32,768 tokens of natural language ever hold; what is longer is refused without tokenizing it."""

MAX_STOP_CHARACTERS = 1000
MAX_TURNS = 1000
MOST_NAMES = 16
"""Of metadata."""


def printable(text: str) -> str:
    """A validator: the text, if it has no control characters."""
    found = CONTROL_CHARACTER.search(text)
    if found:
        raise ValueError(
            f"character {found.start() + 1} is the control character U+{ord(found.group()):04X}; "
            "of those only tab, line feed and carriage return are text"
        )
    return text


def _few(metadata: Any) -> Any:
    """Looked at before its values, since pydantic counts them last: a complaint about each would take seconds, in which
    nobody else is served."""
    if isinstance(metadata, dict) and len(metadata) > MOST_NAMES:
        raise ValueError(f"it has {len(metadata)} names; at most {MOST_NAMES} are taken")
    return metadata


Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS), AfterValidator(printable)]
NonEmptyText = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARACTERS), AfterValidator(printable)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS), AfterValidator(printable)]
Label = Annotated[str, Field(max_length=256), AfterValidator(printable)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=MOST_NAMES),
    BeforeValidator(_few),
]
StopOrStops = Annotated[
    list[Stop], Field(max_length=16), BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop)
]
"""One may be sent by itself."""

NewTokens = Annotated[int, Field(ge=1, le=32_768)]


class Strict(BaseModel):
    """What a client sends. A field that is not declared is refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _first_of_many(cls, value: Any) -> Any:
        """Of more fields than are declared, keep those and the first unknown one: pydantic would spend seconds, in
        which nobody else is served, on a complaint about each of the others."""
        names = [each.alias or name for name, each in cls.model_fields.items()]
        if not isinstance(value, dict) or len(value) <= len(names):
            return value
        unknown = next(name for name in value if name not in names)
        return {name: value[name] for name in (*names, unknown) if name in value}


class Measured(Protocol):
    """A message, of whichever form."""

    @property
    def characters(self) -> int: ...


Message = TypeVar("Message", bound=Measured)


def bounded(messages: list[Message]) -> list[Message]:
    """A validator: the messages, if they are not too long together."""
    characters = sum(message.characters for message in messages)
    if characters > MAX_TEXT_CHARACTERS:
        raise ValueError(
            f"its messages have {characters} characters together; at most {MAX_TEXT_CHARACTERS} are read. "
            "Leave out the oldest ones."
        )
    return messages


Number = Annotated[float, Field(allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0)]
"""Of which the model's end somewhere; see `chat.token_ids`."""


class Sampled(Strict):
    """How to answer. The defaults are the model card's."""

    stream: bool = Field(False, description="Answer as server-sent events, piece by piece.")
    temperature: Number = Field(1.0, ge=0, le=10, description="0 is greedy.")
    top_k: int = Field(40, ge=0, le=200_000, description="Draw from the k likeliest tokens; 0: from all.")
    top_p: Number = Field(
        0.8, gt=0, le=1, description="Draw from the likeliest tokens that hold this share; 1: from all."
    )
    min_p: Number = Field(
        0.0, ge=0, le=1, description="Draw from tokens at least so likely as this share of the likeliest; 0: from all."
    )
    repetition_penalty: Number = Field(
        1.005, ge=0.01, le=10, description="Above 1: shun tokens of conversation and answer; 1: off."
    )
    frequency_penalty: Number = Field(
        0.0, ge=-2, le=2, description="Taken off a token's logit as often as it stands in the answer, 63 times at most."
    )
    presence_penalty: Number = Field(
        0.0, ge=-2, le=2, description="Taken off a token's logit once it stands in the answer."
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="The same seed and settings give the same answer.")

    def sampling(self) -> SamplingParams:
        """What the engine gets of it; without a seed, a new one for each request."""
        return SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            seed=secrets.randbits(63) if self.seed is None else self.seed,
        )


class Thoughtful(Sampled):
    """How to answer a conversation."""

    thinking: bool = Field(False, description="Think step by step: InternLM3's deep-thinking system prompt.")
