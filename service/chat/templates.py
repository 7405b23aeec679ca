"""Conversations to token ids by the checkpoint's own chat template, in which no message can forge a role."""

import logging
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import TemplateError

from service.chat.jinja_environment import compile_template
from service.chat.tools import markup
from service.chat.tools.markup import CallMarks
from service.errors import ConfigurationError, MessageRefused
from service.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

ROLES = ("system", "user", "assistant")

CHATML = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""InternLM3's format, for directories that bring no template (lmdeploy and ms-swift write the same)."""

_MARKUP = re.compile(r"<\|\w+\|>")


class Message(NamedTuple):
    """One turn of a conversation; `role` is one of ROLES, or of `markup.ROLES` where the model calls tools. `calls`: of
    tools, behind what an assistant says, as `markup.call` writes them."""

    role: str
    content: str
    calls: tuple[str, ...] = ()

    @property
    def characters(self) -> int:
        return len(self.content) + sum(map(len, self.calls))

    @property
    def texts(self) -> list[str]:
        """What is said, without white space at its edges, and the calls."""
        return [self.content.strip(), *self.calls]


# Contents that show what a template does to them: spaces at the edges, lines, HTML, quotes, Jinja's own marks.
_SAMPLE = (
    Message("system", " You are helpful.\n\n- Be brief. \n"),
    Message("user", '\n  <b>Fish & "chips"</b>, what\'s that?\t{{ 1 + 1 }} {% x %}\r\n'),
    Message("assistant", "  汉字, É, ß and `code`:\n\n    x = [1]\\n "),
    Message("user", "Thanks"),
)

_WITH_TOOLS = (
    Message("system", "You are helpful."),
    Message(markup.TOOLS, '[{"name": "now", "parameters": {}}]'),
    Message("user", "What time is it?"),
    Message("assistant", "I'll look.", (markup.call("now", {}), markup.call("now", {"zone": "<UTC>"}))),
    Message(markup.RESULT, " 12:00\n"),
)


class ChatTemplate:
    """Renders conversations. Only the template's own text gives special tokens; contents are encoded as plain text.

    Placeholders stand for the contents while the template renders, so it cannot look into them: one that looks for
    something in a message (an earlier answer's <think> part, to drop it) does not find it there.
    White space at a content's edges stays outside the placeholder, so a template that strips, strips here too.

    `call_marks`: the special tokens around the call of a tool; None where the template or the tokenizer knows none.
    """

    def __init__(self, tokenizer: Tokenizer, source: str) -> None:
        """Raises ConfigurationError for a template that cannot carry a conversation or does not fit the tokenizer."""
        self._tokenizer = tokenizer
        self._template = compile_template(source)
        self._placeholder = _Placeholder()
        self.call_marks: CallMarks | None = None
        self._check()
        if self._writes_tools():
            self.call_marks = CallMarks.of(tokenizer)

    @classmethod
    def load(cls, model_dir: Path, tokenizer: Tokenizer) -> "ChatTemplate":
        """The template of a model directory, ChatML if it has none. Raises ConfigurationError as the constructor."""
        source = tokenizer.settings.chat_template
        if source is None:
            logger.info("%s has no chat template: using ChatML, InternLM3's", model_dir)
        return cls(tokenizer, CHATML if source is None else source)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt for the next assistant message. Raises MessageRefused for what the template does not take."""
        self._require_roles(messages)
        try:
            rendered = self._render_placeholders(messages)
        except TemplateError as error:
            raise MessageRefused(f"the model's chat template refuses these messages: {error}", index=None) from error
        self._require_all(messages, rendered)
        ids: list[int] = []
        for part in self._tokenizer.split(rendered):
            ids += [part] if isinstance(part, int) else self._encode_run(part, messages)
        return ids

    def _encode_run(self, run: str, messages: Sequence[Message]) -> list[int]:
        # One run, as the model was trained: "user\n" and what the user said share their tokens.
        return self._tokenizer.encode_text(self._placeholder.fill(run, messages))

    def _require_roles(self, messages: Sequence[Message]) -> None:
        """They are written between the special tokens."""
        known = (*ROLES, *(markup.ROLES if self.call_marks else ()))
        for at, message in enumerate(messages):
            if message.role not in known:
                raise MessageRefused(f"a role must be one of {', '.join(ROLES)}, not {message.role!r}", at)

    def _render_placeholders(self, messages: Sequence[Message]) -> str:
        return self._render([self._placeholder.stand_in(at, message) for at, message in enumerate(messages)])

    def _render(self, messages: Sequence[Message]) -> str:
        plain = [{"role": message.role, "content": message.content} for message in messages]
        named = self._tokenizer.settings.named
        try:
            return self._template.render(
                messages=plain, add_generation_prompt=True, tools=None, documents=None, **named
            )
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # raised by the template's expressions
            raise TemplateError(str(error)) from error

    def _require_all(self, messages: Sequence[Message], rendered: str) -> None:
        left_out = self._placeholder.left_out(rendered, messages)
        if left_out is not None:
            role = messages[left_out].role
            raise MessageRefused(f"the model's chat template leaves out this message (role {role})", left_out)

    def _check(self) -> None:
        try:
            rendered = self._render_placeholders(_SAMPLE)
            direct = self._render(_SAMPLE)
        except TemplateError as error:
            raise ConfigurationError(
                f"the chat template cannot render system, user, assistant and user messages: {error}"
            ) from error
        is_whole = self._placeholder.left_out(rendered, _SAMPLE) is None
        if not is_whole or self._placeholder.fill(rendered, _SAMPLE) != direct:
            raise ConfigurationError("the chat template drops or changes what messages say; it cannot be served")
        self._check_special_tokens(rendered)
        self._check_bos()

    def _writes_tools(self) -> bool:
        """Whether the template writes the roles of tools as they are, and the marks of their calls. Most write what
        they are given, and know nothing of it."""
        try:
            rendered = self._render_placeholders(_WITH_TOOLS)
        except TemplateError:
            return False
        written = [*markup.ROLES, *map(self._placeholder.call, [3, 3], [1, 2])]
        is_whole = self._placeholder.left_out(rendered, _WITH_TOOLS) is None
        return is_whole and all(each in rendered for each in written)

    def _check_special_tokens(self, rendered: str) -> None:
        tokenizer = self._tokenizer
        for part in tokenizer.split(rendered):
            if isinstance(part, str):
                self._check_run(part)
            elif part in tokenizer.trimming_ids:
                raise ConfigurationError(
                    f"the chat template uses the special token {part}, which swallows spaces beside it: not supported"
                )

    def _check_run(self, run: str) -> None:
        """Template text must not hold what was meant as a special token, nor tokens that a message could write too."""
        unresolved = [
            *_MARKUP.findall(run),
            *(name for name in self._tokenizer.settings.named.values() if name in run),
        ]
        plain = [name for name in self._tokenizer.plain_tokens if name in run and name.strip()]
        for name in (*unresolved, *plain):
            raise ConfigurationError(f"the chat template writes {name}, which is no special token of the tokenizer")

    def _check_bos(self) -> None:
        bos = self._tokenizer.token_id(self._tokenizer.settings.named.get("bos_token", ""))
        ids = self.encode(_SAMPLE)
        if ids[:2] == [bos, bos]:
            raise ConfigurationError("the chat template begins with two bos tokens")
        if self._tokenizer.settings.add_bos and ids[0] != bos:
            logger.warning("the chat template begins without the bos token, though the tokenizer's settings ask for it")


class _Placeholder:
    """What stands for a content in the template: unguessable, and changed by whatever would change a text."""

    def __init__(self) -> None:
        # Both cases of letters, to show upper() and lower(); private-use characters, so that nothing joins them.
        self._nonce = f"Content{secrets.token_hex(16)}"
        self._pattern = re.compile(f"\ue000{self._nonce}:(\\d+)\\.(\\d+)\ue001")

    def mark(self, at: int, part: int = 0) -> str:
        """What stands for one of a message's texts: what is said, or a call."""
        return f"\ue000{self._nonce}:{at}.{part}\ue001"

    def call(self, at: int, part: int) -> str:
        """What stands for a call, with its marks."""
        return markup.CALL_BEGINS + self.mark(at, part) + markup.CALL_ENDS

    def stand_in(self, at: int, message: Message) -> Message:
        """The message with its content's inner part replaced, and its calls behind that. White space cannot forge
        anything."""
        inner, *calls = message.texts
        content = message.content
        if inner:
            before, after = content.split(inner, 1)
            content = before + self.mark(at) + after
        return message._replace(content=content + "".join(self.call(at, 1 + each) for each in range(len(calls))))

    def left_out(self, text: str, messages: Sequence[Message]) -> int | None:
        """The first of the messages of which something is not in `text`; None if nothing is missing."""
        found = {(int(at), int(part)) for at, part in self._pattern.findall(text)}
        said = ((at, part) for at, message in enumerate(messages) for part, each in enumerate(message.texts) if each)
        return next((at for at, part in said if (at, part) not in found), None)

    def fill(self, text: str, messages: Sequence[Message]) -> str:
        """`text` with the contents put back in."""
        return self._pattern.sub(lambda found: messages[int(found[1])].texts[int(found[2])], text)
