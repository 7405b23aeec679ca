"""A call as it is written, token by token: which tool, and then its arguments."""

import json
import re

from service.chat.tools.markup import TAIL

HEAD = re.compile(r'\s*\{"name": ("[^"\\]*"), "parameters": ')
"""What `markup.head` writes. Names need no escapes (see `api.openai.tools`)."""


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

    def end(self) -> str:
        """The answer ends here, if before the call does; returns what else its arguments had."""
        return "" if self.is_whole or not self.name else self._handing_on(self._held)

    @property
    def is_whole(self) -> bool:
        """Whether the arguments are."""
        try:
            json.loads("".join(self._arguments))
        except ValueError:
            return False
        return True

    def _handing_on(self, text: str) -> str:
        self._held = self._held[len(text) :]
        self._arguments.append(text)
        return text
