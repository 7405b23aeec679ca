"""How InternLM writes tools, their calls and what they gave into a conversation.

Source: https://github.com/InternLM/InternLM/blob/main/chat/chat_format.md, section "Function Call". It is InternLM2's,
whose special tokens InternLM3 has, too; and lmdeploy, from the same laboratory, writes InternLM3's conversations so
(`InternLM2Chat7B.messages2prompt` in lmdeploy/model.py), tools on one line. InternLM3's own model card says nothing.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from service.chat.tools.offer import Tool
from service.tokenizer.tokenizer import Tokenizer

ACTION_START, PLUGIN, ACTION_END = "<|action_start|>", "<|plugin|>", "<|action_end|>"

TOOLS = f"system name={PLUGIN}"
RESULT = f"environment name={PLUGIN}"
ROLES = (TOOLS, RESULT)
"""Of messages, beside those of every conversation."""

CALL_BEGINS, CALL_ENDS = f"{ACTION_START}{PLUGIN}\n", ACTION_END
"""What stands around a call, behind the text of an assistant's message."""

TAIL = "}"


class CallMarks(NamedTuple):
    """The ids of the special tokens around a call."""

    start: int
    plugin: int
    end: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self | None:
        """Those of a tokenizer; None if it lacks one, or one swallows the space beside it."""
        ids = [tokenizer.special_tokens.get(name) for name in (ACTION_START, PLUGIN, ACTION_END)]
        known = [token for token in ids if token is not None and token not in tokenizer.trimming_ids]
        return cls(*known) if len(known) == len(ids) else None


def head(name: str) -> str:
    """A call up to its arguments, which TAIL follows."""
    return f'{{"name": {json.dumps(name)}, "parameters": '


def call(name: str, arguments: object) -> str:
    """A call, between its marks; `arguments`: a JSON object, unless a call was none."""
    return head(name) + json.dumps(arguments, ensure_ascii=False) + TAIL


def described(tools: Sequence[Tool]) -> str:
    """What the model is told of the tools."""
    return json.dumps(list(map(_described, tools)), ensure_ascii=False)


def _described(tool: Tool) -> dict[str, Any]:
    description = {"description": tool.description} if tool.description else {}
    return {"name": tool.name, **description, "parameters": tool.parameters}
