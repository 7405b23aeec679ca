"""What the user sees: answers on standard output, everything else on standard error."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.markup import escape

PROMPT = "> "
HINT = "Ctrl-C stops an answer, /reset forgets the conversation, /exit or Ctrl-D ends it."
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Screen:
    """One user's terminal, or the pipes of a script."""

    def __init__(self) -> None:
        self._notes = Console(stderr=True, highlight=False, soft_wrap=True)
        self._waiting_for = ""
        # What the terminal's encoding lacks becomes a question mark, not a traceback.
        with suppress(AttributeError):
            sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        if sys.stdin.isatty():
            _edit_lines()

    def welcome(self, model: str) -> None:
        self.note(f"Chatting with {model}. {HINT}")

    def read_question(self) -> str:
        """One line of the user's, stripped. Raises EOFError at Ctrl-D and KeyboardInterrupt at Ctrl-C."""
        return input(PROMPT).strip()

    def write(self, text: str) -> None:
        """A piece of an answer, at once. A terminal gets no control characters: a model must not steer it."""
        sys.stdout.write(_CONTROL.sub("", text) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    def end_line(self) -> None:
        self.write("\n")

    @contextmanager
    def waiting(self, reason: str) -> Iterator[None]:
        """Show what is waited for: a spinner where lines can be redrawn, one line per reason elsewhere."""
        if self._notes.is_interactive:
            with self._notes.status(escape(reason)):
                yield
            return
        if reason != self._waiting_for:
            self.note(f"waiting: {reason}")
        self._waiting_for = reason
        yield

    def note(self, text: str) -> None:
        self._notes.print(text, style="dim", markup=False)

    def complain(self, text: str) -> None:
        self._notes.print(f"internlm-chat: {text}", style="red", markup=False)


def _edit_lines() -> None:
    """Arrow keys and recall of earlier questions, where Python was built with readline."""
    with suppress(ImportError):
        import readline  # noqa: F401
