"""A call as it is written, token by token: which tool, and then its arguments."""

import json
import re

from service.chat.tools.markup import TAIL

HEAD = re.compile(r'\s*\{"name": ("[^"\\]*"), "parameters": ')
"""What `markup.head` writes. Names need no escapes (see `api.openai.tools`)."""

STRING = re.compile(r'"(?:[^"\\]|\\.)*"?')
"""Of JSON; the last one may have no end."""


class CallReader:
    """Reads the text between a call's marks, piece by piece."""

    def __init__(self) -> None:
        self.name = ""  # until it is known
        self._held = ""  # what may still be part of the head, and then what may be the tail
        self._arguments: list[str] = []

    def push(self, text: str) -> str:
        """More of the call; returns what is now certain to be of its arguments."""
        self._held += text
        if not self.name and (found := HEAD.match(self._held)):
            self.name = json.loads(found[1])
            self._held = self._held[found.end() :]
        if not self.name:
            return ""
        at = len(self._held) - len(TAIL)
        return self._handing_on(self._held[: max(at, 0)])

    def cut(self) -> str:
        """The answer ends here, before the call's end mark; returns what else its arguments had."""
        said = "".join(self._arguments)
        is_tail = not self.name or (said and _is_balanced(said))
        return "" if is_tail else self._handing_on(self._held)

    def _handing_on(self, text: str) -> str:
        self._held = self._held[len(text) :]
        self._arguments.append(text)
        return text


def _is_balanced(arguments: str) -> bool:
    """Whether the beginning of an object is all of it. To parse it would take Python's stack, and its numbers' time."""
    marks = STRING.sub("", arguments)
    return sum(map(marks.count, "{[")) == sum(map(marks.count, "}]"))
