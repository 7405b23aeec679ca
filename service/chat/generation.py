"""The use case: a prompt goes in, text comes out piece by piece, and how each request ended is counted.

Knows the engine only by its interface.
"""

import asyncio
import time
import uuid
from contextlib import aclosing
from dataclasses import dataclass, field

from service.chat.endings import OURS, FieldNames, reason_of, too_late
from service.chat.form import Form
from service.chat.logprobs import Reporter, Spelling
from service.chat.pieces import Pieces
from service.chat.preparation import Preparation, Prompt, Shared
from service.chat.reading import AnswerReader
from service.chat.stopwatch import Stopwatch
from service.chat.templates import ChatTemplate
from service.chat.token_ids import require_known
from service.chat.tools.markup import CallMarks
from service.chat.tools.offer import Offer
from service.chat.verbatim import Verbatim
from service.engine.base import Engine, EngineInfo, Finish, FinishReason, GenerationRequest, SamplingParams
from service.errors import ContextTooLong
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Chat:
    """What a client wants answered, with at most so many tokens: `or_what_fits`, where the context leaves fewer. It
    ends before the first text of `stop`, and with the first token of `stop_ids`, too.

    `form`: what the answer must be; None for any text. `offer`: tools that it may call, or must, of which the messages
    of the `prompt` tell the model; only where it `calls_tools`, and not beside a pattern. `logprobs`: the tokens of its
    text are reported, each beside so many of the likeliest ones; None: they are not. `echo`: the answer begins with the
    tokens of the prompt, which is verbatim, and reports them, too. `shared`: with other answers to the same.
    """

    prompt: Prompt
    sampling: SamplingParams
    max_new_tokens: int
    or_what_fits: bool = False
    stop: list[str] = field(default_factory=list)
    stop_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    form: Form | None = None
    offer: Offer | None = None
    logprobs: int | None = None
    echo: bool = False
    fields: FieldNames = OURS
    shared: Shared | None = None

    @property
    def held_by(self) -> str:
        """The field of the request that the answer's grammar comes from; empty for none."""
        return "tools" if self.offer else self.form.field if self.form else ""


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
        self._preparation = Preparation(template, tokenizer)

    @property
    def calls_tools(self) -> bool:
        """Whether the model's format has tools, their calls and what they gave, and it scores their marks."""
        info, marks = self._engine.status.info, self._template.call_marks
        return marks is not None and info is not None and max(marks) < info.vocab_size

    @property
    def decode_errors(self) -> str:
        """The codec error handler for bytes of answers that are no UTF-8."""
        return self._tokenizer.decode_errors

    @property
    def max_running(self) -> int:
        """How many requests are answered at once."""
        return self._info.max_running

    @property
    def _info(self) -> EngineInfo:
        """Asked for each time: an engine that was started again may have less room."""
        info = self._engine.status.info
        assert info is not None, "a model that is asked was loaded"
        return info

    async def stream(self, chat: Chat) -> Pieces:
        """Deltas, then one Done. Closing it early stops the work within one engine step.

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
            watch.submitted(len(request.prompt_ids) + len(request.forced))
            answer = self._reader(chat, request)
            async with aclosing(self._engine.submit(request)) as events:
                async for event in events:
                    if isinstance(event, Finish):
                        watch.end(answer.judged(event))
                        break
                    (watch.begun if answer.is_echoing else watch.token)(event)
                    if delta := answer.push(event, watch.counts):
                        yield delta
                    if answer.stopped:
                        watch.end(Finish(request.id, FinishReason.STOP))
                        break
            rest = answer.flush(watch.counts)
            if answer.stopped and watch.finish and watch.finish.reason is FinishReason.LENGTH:
                watch.end(Finish(request.id, FinishReason.STOP))  # in what was held back
            reason = reason_of(watch, self._request_timeout, chat.fields, chat.held_by)
            if rest:
                yield rest
            yield answer.done(reason, watch.counts)

    async def _request(self, chat: Chat, watch: Stopwatch) -> GenerationRequest:
        deadline = time.monotonic() + self._request_timeout
        try:
            async with asyncio.timeout(self._request_timeout):
                vocab_size = self._info.vocab_size
                require_known((token for token, _ in chat.sampling.logit_bias), vocab_size, "logit_bias")
                require_known(chat.stop_ids, vocab_size, "stop_token_ids")
                prompt = await self._preparation.prompt(chat.prompt, vocab_size, chat.fields, chat.shared)
                new_tokens = self._new_tokens(len(prompt), chat)  # before work that would be for nothing
                grammar = await self._preparation.grammar(chat.form, chat.offer, chat.shared)
        except TimeoutError:
            raise too_late(watch, self._request_timeout, chat.fields) from None
        # The engine reports what it says: so it says what of the prompt is to be reported.
        forced = prompt[1:] if chat.echo else []
        return GenerationRequest(
            id=uuid.uuid4().hex,
            prompt_ids=prompt[: len(prompt) - len(forced)],
            max_new_tokens=new_tokens + len(forced),
            stop_ids=self._stop_ids(chat),
            deadline=deadline,
            sampling=chat.sampling,
            grammar=grammar,
            logprobs=chat.logprobs,
            forced=forced,
        )

    def _reader(self, chat: Chat, request: GenerationRequest) -> AnswerReader:
        reader = AnswerReader(
            self._tokenizer,
            chat.stop,
            Reporter(self._spelling),
            [] if isinstance(chat.prompt, Verbatim) else request.stop_ids,  # of a text every token is reported
            self._marks(chat),
            silent_ids=chat.stop_ids,
            continues=self._continues(chat, request.prompt_ids[-1]),
        )
        if chat.echo:
            reader.echo(request.prompt_ids[0], len(request.forced))
        return reader

    def _continues(self, chat: Chat, last: int) -> bool:
        """Whether the answer keeps a space that it begins with: that of a pattern, and a text that goes on behind its
        prompt's `last` token; behind a special one a new text begins."""
        if chat.form and chat.form.is_pattern:
            return True
        return isinstance(chat.prompt, Verbatim) and not chat.echo and last not in self._tokenizer.special_ids

    def _marks(self, chat: Chat) -> CallMarks | None:
        """Those around a call, of which the answer may have one."""
        return self._template.call_marks if chat.offer else None

    def _stop_ids(self, chat: Chat) -> list[int]:
        marks = self._marks(chat)
        ends = [] if chat.ignore_eos else [*self._tokenizer.stop_ids, *([marks.end] if marks else [])]
        return ends + chat.stop_ids

    def _new_tokens(self, prompt: int, chat: Chat) -> int:
        context, wanted, fields = self._info.max_context, chat.max_new_tokens, chat.fields
        room = context - prompt
        if room < 1:
            raise ContextTooLong(  # in words that LiteLLM looks for, to try a model with a longer context
                f"with one token of answer, the {fields.prompt_is} of {prompt} tokens is longer than the model's "
                f"context length of {context} tokens. Shorten the {fields.prompt_is}.",
                field=fields.prompt,
            )
        if wanted > room and not chat.or_what_fits:
            raise ContextTooLong(
                f"{fields.max_new_tokens} is {wanted}: with them, the {fields.prompt_is} of {prompt} tokens is longer "
                f"than the model's context length of {context}. Ask for at most {room}, or shorten the "
                f"{fields.prompt_is}.",
                field=fields.max_new_tokens,
            )
        return min(wanted, room)
