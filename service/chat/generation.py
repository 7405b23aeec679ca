"""The use case: a conversation goes in, text comes out piece by piece, and how each request ended is counted.

Knows the engine only by its interface. Prompts are tokenized off the event loop when they are long.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field

from service.chat.endings import OURS, FieldNames, reason_of, too_late
from service.chat.logprobs import Reporter, Spelling, TokenReport
from service.chat.stops import StopMatcher
from service.chat.stopwatch import Counts, Stopwatch
from service.chat.templates import ChatTemplate, Message
from service.engine.base import Engine, Finish, FinishReason, GenerationRequest, SamplingParams, Token
from service.engine.grammars.schema import problem_of
from service.errors import ContextTooLong, InvalidRequest
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.tokenizer.detokenizer import Detokenizer
from service.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

TOKENIZING_THREADS = 2
"""Threads for long prompts alone, so that hundreds of them keep no other work waiting (restarting an engine, say). Two
tokenize tens of the longest prompts a second, more than a GPU prefills."""

CHECKING_THREADS = 2
"""Threads for grammars alone, each of which takes milliseconds."""

INLINE_CHARACTERS = 4096
"""A prompt up to so long is tokenized in about a millisecond, which is not worth the way to a thread and back."""


@dataclass(frozen=True)
class Chat:
    """What a client wants answered, with at most so many tokens: `or_what_fits`, where the context leaves fewer.

    `grammar`: what the answer must keep to, as `grammars.schema` writes it; empty for nothing. `logprobs`: its tokens
    are reported, each beside so many of the likeliest ones; None: they are not.
    """

    messages: list[Message]
    sampling: SamplingParams
    max_new_tokens: int
    or_what_fits: bool = False
    stop: list[str] = field(default_factory=list)
    ignore_eos: bool = False
    grammar: str = ""
    logprobs: int | None = None
    fields: FieldNames = OURS


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text of the answer; never empty. `tokens`: those that begin in it, if they are reported. `choice`: of several
    answers, which one it belongs to (see `choices`)."""

    text: str
    counts: Counts
    tokens: list[TokenReport]
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is whole. `finish_reason` is "stop" or "length". `tokens`: those behind its last text.
    `choice` as of a TextDelta."""

    finish_reason: str
    counts: Counts
    tokens: list[TokenReport]
    choice: int = 0


Pieces = AsyncGenerator[TextDelta | Done]
"""Those of an answer, in order; closed early, they end it."""


class Generation:
    """Answers chats with one loaded model. An answer may take `request_timeout` seconds in all."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        request_timeout: float,
        lifecycle: Lifecycle,
        metrics: Metrics,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._spelling = Spelling(tokenizer)
        self._template = template
        self._request_timeout = request_timeout
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._tokenizing = ThreadPoolExecutor(TOKENIZING_THREADS, thread_name_prefix="tokenizing")
        self._checking = ThreadPoolExecutor(CHECKING_THREADS, thread_name_prefix="grammars")

    async def stream(self, chat: Chat) -> Pieces:
        """Text deltas, then one Done. Closing it early stops the work within one engine step.

        Raises NotReady, InvalidRequest, QueueFull, DeadlineExceeded or EngineFailed. All but NotReady are counted.
        """
        with self._lifecycle.serving():
            async with aclosing(self._answer(chat, Stopwatch(self._metrics))) as pieces:
                async for piece in pieces:
                    yield piece

    async def probe(self, chat: Chat) -> None:
        """Have `chat` answered, ready or not. It is no client's request and counted nowhere. Raises as `stream`."""
        async for _ in self._answer(chat, Stopwatch(metrics=None)):
            pass

    async def _answer(self, chat: Chat, watch: Stopwatch) -> Pieces:
        with watch:
            request = await self._request(chat, watch)
            watch.submitted(len(request.prompt_ids))
            answer = _Answer(self._tokenizer, chat.stop, Reporter(self._spelling), request.stop_ids)
            async with aclosing(self._engine.submit(request)) as events:
                async for event in events:
                    if isinstance(event, Finish):
                        watch.end(event)
                        break
                    watch.token(event)
                    if text := answer.push(event):
                        yield TextDelta(text, watch.counts, answer.reports())
                    if answer.stopped:
                        watch.end(Finish(request.id, FinishReason.STOP))
                        break
            reason = reason_of(watch, self._request_timeout, chat.fields)
            if text := answer.flush():
                yield TextDelta(text, watch.counts, answer.reports())
            yield Done(reason, watch.counts, answer.last_reports())

    async def _request(self, chat: Chat, watch: Stopwatch) -> GenerationRequest:
        deadline = time.monotonic() + self._request_timeout
        try:
            async with asyncio.timeout(self._request_timeout):
                await self._require_keepable(chat)
                prompt = await self._encode(chat.messages)
        except TimeoutError:
            raise too_late(watch, self._request_timeout, chat.fields) from None
        return GenerationRequest(
            id=uuid.uuid4().hex,
            prompt_ids=prompt,
            max_new_tokens=self._new_tokens(len(prompt), chat),
            stop_ids=[] if chat.ignore_eos else self._tokenizer.stop_ids,
            deadline=deadline,
            sampling=chat.sampling,
            grammar=chat.grammar,
            logprobs=chat.logprobs,
        )

    async def _require_keepable(self, chat: Chat) -> None:
        """Raises InvalidRequest for a grammar that can't be kept to: it need not wait for the engine to say so."""
        if chat.grammar:
            problem = await asyncio.get_running_loop().run_in_executor(self._checking, problem_of, chat.grammar)
            if problem:
                raise InvalidRequest(f"the schema cannot be kept to: {problem}", field=chat.fields.grammar)

    async def _encode(self, messages: list[Message]) -> list[int]:
        if sum(len(message.content) for message in messages) <= INLINE_CHARACTERS:
            return self._template.encode(messages)
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, self._template.encode, messages)

    def _new_tokens(self, prompt: int, chat: Chat) -> int:
        info = self._engine.status.info  # asked for each time: an engine that was started again may have less room
        assert info is not None, "a model that is asked was loaded"
        context, wanted, fields = info.max_context, chat.max_new_tokens, chat.fields
        room = context - prompt
        if room < 1:
            raise ContextTooLong(  # in words that LiteLLM looks for, to try a model with a longer context
                f"with one token of answer, the conversation of {prompt} tokens is longer than the model's context "
                f"length of {context} tokens. Shorten the conversation.",
                field=fields.messages,
            )
        if wanted > room and not chat.or_what_fits:
            raise ContextTooLong(
                f"{fields.max_new_tokens} is {wanted}: with them, the conversation of {prompt} tokens is longer than "
                f"the model's context length of {context}. Ask for at most {room}, or shorten the conversation.",
                field=fields.max_new_tokens,
            )
        return min(wanted, room)


class _Answer:
    """Tokens to text, cut at the first stop string, and their reports, but for the one of `stop_ids` that ends it."""

    def __init__(self, tokenizer: Tokenizer, stops: list[str], reporter: Reporter, stop_ids: list[int]) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopMatcher(stops)
        self._reporter = reporter
        self._stop_ids = stop_ids
        self._come = self._handed_on = 0  # characters

    @property
    def stopped(self) -> bool:
        return self._stops.stopped is not None

    def push(self, event: Token) -> str:
        if event.logprobs and event.token not in self._stop_ids:
            first = self._detokenizer.at_start
            self._reporter.push(event.token, event.logprobs, first=first, at=self._come)
        text = self._detokenizer.push([event.token])
        self._come += len(text)
        return self._handing_on(self._stops.push(text))

    def flush(self) -> str:
        if self.stopped:
            return ""
        return self._handing_on(self._stops.push(self._detokenizer.flush()) + self._stops.flush())

    def reports(self) -> list[TokenReport]:
        """Of the tokens that begin in the text that was handed on since the last ones."""
        return self._reporter.take(self._handed_on)

    def last_reports(self) -> list[TokenReport]:
        """Of those that gave no text behind that. What spelled a stop string is none of the answer's."""
        return [] if self.stopped else self._reporter.take_all()

    def _handing_on(self, text: str) -> str:
        self._handed_on += len(text)
        return text
