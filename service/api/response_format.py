"""`response_format`, as in OpenAI's API: an answer that is JSON, of any form or of a schema's.

Source: https://platform.openai.com/docs/guides/structured-outputs
"""

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, model_validator

from service.api.fields import Label, Sampled, Strict, Text
from service.chat.form import Form
from service.engine.grammars.bounds import excess
from service.engine.grammars.closing import held_to
from service.engine.grammars.schema import ANY_OBJECT
from service.errors import InvalidRequest


class NamedSchema(Strict):
    """A JSON schema. It is always kept to, whether `strict` or not; name and description change nothing."""

    name: Label = ""
    description: Text | None = None
    schema_: dict[str, Any] | None = Field(
        None,
        alias="schema",
        description="Keywords that cannot be kept to are refused, never ignored, but for formats that JSON Schema has "
        "not. An object has no properties but those that are listed, unless it says that it may.",
    )
    strict: bool | None = None


def schema_of(form: str, schema: dict[str, Any] | None) -> dict[str, Any] | None:
    """What an answer of this form must fit, JSON of `schema` or, without one, of any object; None for text."""
    return None if form == "text" else ANY_OBJECT if schema is None else schema


class ResponseFormat(Strict):
    """What form the answer has: text, or the JSON of some object or of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = Field(None, description="With the type json_schema, and only there.")

    @model_validator(mode="after")
    def _one_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, and only there; send both or neither")
        return self

    @property
    def schema_of_json(self) -> dict[str, Any] | None:
        """What the answer must fit; None for text."""
        return schema_of(self.type, self.json_schema.schema_ if self.json_schema else None)


class Formatted(Sampled):
    """How to answer, and in what form."""

    response_format: ResponseFormat | None = Field(
        None, description="json_object or json_schema: the answer is JSON. Say in the prompt, too, what you want."
    )

    def answer_form(self, *, thinking: bool = False) -> Form | None:
        """What the answer must be; None for any text. Raises InvalidRequest as `kept_to`."""
        schema = self.response_format.schema_of_json if self.response_format else None
        if schema is None:
            return None
        return kept_to(Form("response_format", "response_format.json_schema.schema", schema), thinking=thinking)


def kept_to(form: Form, *, thinking: bool) -> Form:
    """`form`, if an answer can have it. Raises InvalidRequest for `thinking` beside it, and for a schema that is too
    large."""
    if thinking:
        raise InvalidRequest(
            f"thinking writes its reasoning into the answer, and {form.name} leaves no room for it there; "
            "send one of them",
            field=form.name,
        )
    if form.schema is None:
        return form
    if too_much := excess(form.schema):
        raise InvalidRequest(f"the schema asks for too much: {too_much}", field=form.field)
    # An answer that can only be {} is what nobody wants.
    kept = held_to({name: each for name, each in form.schema.items() if (name, each) != ("properties", {})})
    return form if kept is None else replace(form, schema=kept)
