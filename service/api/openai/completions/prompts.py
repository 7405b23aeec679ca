"""The prompts of a request: a text, token ids, or a list of either."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag

from service.api.body import tag
from service.api.fields import MAX_TEXT_CHARACTERS, TokenId

MOST_PROMPTS = 128
MOST_TOKENS = 200_000
"""Of all prompts together; several times what the context holds."""

Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]
"""With any characters: what the same tokens may stand for is read, too."""
Tokens = Annotated[list[TokenId], Field(max_length=MOST_TOKENS, fail_fast=True)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
TokenLists = Annotated[list[Tokens], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]


def _kind(prompt: Any) -> str:
    """The tag of what a prompt is meant to be, by what it begins with."""
    if not isinstance(prompt, list):
        return tag("text")
    first = prompt[0] if prompt else ""
    return tag("tokens" if isinstance(first, int) else "token lists" if isinstance(first, list) else "texts")


def _bounded(prompt: Any) -> Any:
    each = [content for _, content in apart(prompt)]
    characters = sum(len(content) for content in each if isinstance(content, str))
    tokens = sum(len(content) for content in each if not isinstance(content, str))
    if characters > MAX_TEXT_CHARACTERS or tokens > MOST_TOKENS:
        raise ValueError(
            f"its prompts have {characters} characters and {tokens} token ids together; at most "
            f"{MAX_TEXT_CHARACTERS} and {MOST_TOKENS} are read. Send them in several requests."
        )
    return prompt


Prompts = Annotated[
    Annotated[Text, Tag(tag("text"))]
    | Annotated[Tokens, Tag(tag("tokens"))]
    | Annotated[Texts, Tag(tag("texts"))]
    | Annotated[TokenLists, Tag(tag("token lists"))],
    Discriminator(_kind),
    AfterValidator(_bounded),
]


def apart(prompt: str | Sequence[Any]) -> list[tuple[str, str | list[int]]]:
    """Each prompt, with the field of the body that it comes from."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [("prompt", prompt if isinstance(prompt, str) else list(prompt))]
    return [(f"prompt.{at}", content) for at, content in enumerate(prompt)]
