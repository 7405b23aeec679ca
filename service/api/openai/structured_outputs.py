"""`structured_outputs`, as vLLM's server has it: an answer that is one of a few texts, matches a pattern, or is JSON.

Source: https://docs.vllm.ai/en/latest/features/structured_outputs.html
"""

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from service.api.fields import Strict, printable
from service.api.openai.unserved import OF_STRUCTURED_OUTPUTS, without
from service.chat.form import Form
from service.engine.grammars.bounds import MAX_CHARACTERS, MAX_TEXT
from service.engine.grammars.schema import ANY_OBJECT
from service.engine.grammars.texts import MAX_PARTS, one_of, parts_of

NAME = "structured_outputs"
KINDS = ("choice", "regex", "json", "json_object")


def _decoded(schema: Any) -> Any:
    """A schema may be sent as the JSON of one."""
    if not isinstance(schema, str):
        return schema
    try:
        return json.loads(schema)
    except RecursionError:
        raise ValueError("it is nested far deeper than any schema needs") from None
    except ValueError as error:
        raise ValueError(f"it is a text and not JSON: {error}") from None


def _bounded(texts: list[str]) -> list[str]:
    characters = sum(map(len, texts))
    if characters > MAX_CHARACTERS:
        raise ValueError(f"its texts have {characters} characters together, more than {MAX_CHARACTERS}")
    return texts


def _not_too_large(pattern: str) -> str:
    if parts_of(pattern) > MAX_PARTS:
        raise ValueError(f"with its counts written out it has more than {MAX_PARTS} characters and classes; count less")
    return pattern


Choice = Annotated[str, Field(min_length=1, max_length=MAX_TEXT), AfterValidator(printable)]
Choices = Annotated[list[Choice], Field(min_length=1, fail_fast=True), AfterValidator(_bounded)]
Pattern = Annotated[str, Field(min_length=1, max_length=MAX_TEXT), AfterValidator(_not_too_large)]


class StructuredOutputs(Strict):
    """What the answer is; one of these."""

    choice: Choices | None = Field(None, description="One of these texts.")
    regex: Pattern | None = Field(
        None,
        description="A text that this regular expression matches from end to end, without looking ahead or behind.",
    )
    schema_: Annotated[dict[str, Any], BeforeValidator(_decoded)] | None = Field(
        None, alias="json", description="The JSON of what fits this schema, as by response_format."
    )
    json_object: bool = Field(False, description="The JSON of some object.")

    @model_validator(mode="before")
    @classmethod
    def _served(cls, value: Any) -> Any:
        return without(OF_STRUCTURED_OUTPUTS, value, f"{NAME}.")

    @model_validator(mode="after")
    def _one_of_them(self) -> "StructuredOutputs":
        if sum((self.choice is not None, self.regex is not None, self.schema_ is not None, self.json_object)) != 1:
            raise ValueError(f"send one of {', '.join(KINDS)}")
        return self

    @property
    def form(self) -> Form:
        """What the answer must be."""
        if self.choice is not None:
            return Form(NAME, f"{NAME}.choice", pattern=one_of(self.choice))
        if self.regex is not None:
            return Form(NAME, f"{NAME}.regex", pattern=self.regex)
        if self.json_object:
            return Form(NAME, f"{NAME}.json_object", ANY_OBJECT)
        return Form(NAME, f"{NAME}.json", self.schema_)
