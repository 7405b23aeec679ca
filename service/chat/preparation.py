"""What is worked out of a prompt before the engine gets it: its tokens, and the grammar of its answers.

Threads do what may take long, so that the event loop never waits for it.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from service.chat.endings import FieldNames
from service.chat.form import Form
from service.chat.templates import ChatTemplate, Message
from service.chat.tools.grammar import calling_grammar
from service.chat.tools.markup import CallMarks
from service.chat.tools.offer import Offer
from service.chat.verbatim import Verbatim
from service.engine.grammars.schema import problem_of
from service.errors import InvalidRequest
from service.log import note
from service.tokenizer.tokenizer import Tokenizer

TOKENIZING_THREADS = 2
"""Threads for long prompts alone, so that hundreds of them keep no other work waiting (restarting an engine, say). Two
tokenize tens of the longest prompts a second, more than a GPU prefills."""

CHECKING_THREADS = 2
"""Threads for grammars alone: a schema's takes milliseconds, that of very many tools some tenths of a second."""

INLINE_CHARACTERS = 4096
"""A prompt up to so long is tokenized in about a millisecond, which is not worth the way to a thread and back."""
MESSAGE_CHARACTERS = 32
"""What a message costs besides its text, in characters."""

Result = TypeVar("Result")


Prompt = list[Message] | Verbatim
"""A conversation, or what is none."""


class Shared:
    """What several answers to one request have in common: the first that needs it has it worked out for all."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    async def get(self, name: str, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """What `work` gives, or raises; done once for each `name`, also when whoever asked first no longer waits."""
        task: asyncio.Task[Result] | None = self._tasks.get(name)
        if task is None:
            task = self._tasks[name] = asyncio.create_task(work())
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody waits any more
        return await asyncio.shield(task)


class Preparation:
    """Prepares prompts for one loaded model. With `shared`, each step is done once for all that have it."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._tokenizing = ThreadPoolExecutor(TOKENIZING_THREADS, thread_name_prefix="tokenizing")
        self._checking = ThreadPoolExecutor(CHECKING_THREADS, thread_name_prefix="grammars")

    async def prompt(self, prompt: Prompt, vocab_size: int, fields: FieldNames, shared: Shared | None) -> list[int]:
        """The prompt's tokens. Raises MessageRefused for a conversation, InvalidRequest for one that is verbatim."""
        if _characters(prompt) <= INLINE_CHARACTERS and shared is None:
            return self._encoded(prompt, vocab_size, fields)
        name = f"prompt in {fields.prompt}"
        return await self._in_thread(self._tokenizing, shared, name, self._encoded, prompt, vocab_size, fields)

    def _encoded(self, prompt: Prompt, vocab_size: int, fields: FieldNames) -> list[int]:
        if isinstance(prompt, Verbatim):
            return prompt.encode(self._tokenizer, vocab_size, fields.prompt)
        return self._template.encode(prompt)

    async def grammar(self, form: Form | None, offer: Offer | None, shared: Shared | None) -> str:
        """What the answer must keep to; empty for nothing. Raises InvalidRequest for what can't be kept to: it need not
        wait for the engine to say so."""
        if form is None and offer is None:
            return ""
        grammar, lax = await self._in_thread(self._checking, shared, "grammar", self._grammar, form, offer)
        if lax:
            note(tools_called_with_any_object=lax)
        return grammar

    def _grammar(self, form: Form | None, offer: Offer | None) -> tuple[str, int]:
        grammar = form.grammar() if form else ""
        if form and (problem := problem_of(grammar)):
            raise InvalidRequest(f"the {form.kind} cannot be kept to: {problem}", field=form.field)
        marks: CallMarks | None = self._template.call_marks
        return calling_grammar(offer, marks, form.schema if form else None) if offer and marks else (grammar, 0)

    async def _in_thread(
        self, pool: ThreadPoolExecutor, shared: Shared | None, name: str, work: Callable[..., Result], *of: Any
    ) -> Result:
        async def done() -> Result:
            return await asyncio.get_running_loop().run_in_executor(pool, work, *of)

        return await (shared.get(name, done) if shared else done())


def _characters(prompt: Prompt) -> int:
    if isinstance(prompt, Verbatim):
        return prompt.characters
    return sum(message.characters + MESSAGE_CHARACTERS for message in prompt)
