"""Questions and answers in turn, and the history that makes them a conversation."""

import time
from contextlib import closing
from typing import Any

from service.chat.printable import without_control
from service.terminal.client import ChatClient, ChatFailed, Finish, TryLater
from service.terminal.screen import Screen

LEAST_WAIT_SECONDS = 0.1
LENGTH_NOTE = "[the answer reached its limit of tokens]"


class Conversation:
    """One user's conversation with one service."""

    def __init__(self, client: ChatClient, screen: Screen, system: str | None, thinking: bool) -> None:
        self._client = client
        self._screen = screen
        self._options: dict[str, Any] = {"thinking": True} if thinking else {}
        if system is not None:
            self._options["system"] = _sendable(system)
        self._history: list[dict[str, str]] = []

    def run(self) -> int:
        """Talk until the user ends it; the exit status. Raises ChatFailed if there is no service to begin with."""
        self._screen.welcome(self._wait_for_model())
        while True:
            try:
                question = self._screen.read_question()
                if question == "/exit":
                    return 0
                self._take_turn(question)
            except KeyboardInterrupt:
                self._screen.end_line()
            except EOFError:
                self._screen.end_line()
                return 0

    def answer_once(self, question: str) -> int:
        """Answer one question. Raises ChatFailed when there is no answer, KeyboardInterrupt when stopped in it."""
        question = _sendable(question).strip()
        if not question:
            raise ChatFailed('no question; give one: internlm-chat chat "How are you?"')
        self._ask(question, [])
        return 0

    def _take_turn(self, question: str) -> None:
        if question == "/reset":
            self._history.clear()
            self._screen.note("The conversation is forgotten.")
        elif question:
            self._answer(_sendable(question))

    def _answer(self, question: str) -> None:
        """Answer within the conversation, which goes on whatever becomes of the answer."""
        pieces: list[str] = []
        try:
            self._ask(question, pieces)
        except KeyboardInterrupt:
            self._screen.note("[stopped]")
        except ChatFailed as failure:
            self._screen.complain(str(failure))
        finally:
            self._remember(question, "".join(pieces))

    def _remember(self, question: str, answer: str) -> None:
        """A stopped answer is remembered as far as it was read; a question nobody answered is not."""
        if answer:
            self._history += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def _ask(self, question: str, pieces: list[str]) -> None:
        """Write the answer as it comes and collect it in `pieces`, waiting until the service takes the question."""
        request = {"prompt": question, "history": self._history} | self._options
        while True:
            try:
                return self._write_answer(request, pieces)
            except TryLater as refusal:
                self._wait(refusal)

    def _write_answer(self, request: dict[str, Any], pieces: list[str]) -> None:
        finish = Finish("")
        try:
            with closing(self._client.ask(request)) as answer:
                for piece in answer:
                    if isinstance(piece, Finish):
                        finish = piece
                    else:
                        pieces.append(piece)
                        self._screen.write(piece)
        finally:
            if pieces:
                self._screen.end_line()
        if finish.reason == "length":
            self._screen.note(LENGTH_NOTE)

    def _wait_for_model(self) -> str:
        while True:
            try:
                return self._client.model()
            except TryLater as refusal:
                self._wait(refusal)

    def _wait(self, refusal: TryLater) -> None:
        with self._screen.waiting(refusal.reason):
            time.sleep(max(refusal.seconds, LEAST_WAIT_SECONDS))


def _sendable(text: str) -> str:
    """Bytes that were no UTF-8 on the way in (lone surrogates here) become question marks; JSON cannot carry them. And
    control characters go, such as a log's colours have: the service takes none."""
    return without_control(text.encode("utf-8", "replace").decode("utf-8"))
