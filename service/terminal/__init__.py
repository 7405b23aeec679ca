"""`internlm-chat chat`: talk to a running service from a terminal or a pipe."""

import io
import os
import sys
from pathlib import Path

from service.key_file import keys_in
from service.terminal.client import ChatClient, ChatFailed
from service.terminal.conversation import Conversation
from service.terminal.screen import Screen

INTERRUPTED = 130
"""A shell's status for a program that Ctrl-C ended: 128 + SIGINT."""


def chat(url: str, question: str | None, system: str | None, thinking: bool, api_key_file: Path | None = None) -> int:
    """Chat with the service at `url` and return the exit status.

    A `question`, or one piped to standard input, is answered once; otherwise a conversation runs until Ctrl-D.
    """
    screen = Screen()
    try:
        if question is None and not sys.stdin.isatty():
            question = sys.stdin.read()
        with ChatClient(url, _first_key(api_key_file) if api_key_file else None) as client:
            conversation = Conversation(client, screen, system, thinking)
            return conversation.run() if question is None else conversation.answer_once(question)
    except ChatFailed as failure:
        screen.complain(str(failure))
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return 1


def _first_key(file: Path) -> str:
    try:
        keys = keys_in(file)
    except OSError as error:
        raise ChatFailed(f"--api-key-file {file}: {error.strerror}") from None
    if not keys:
        raise ChatFailed(f"--api-key-file {file}: there is no key in it")
    return keys[0]


def _forget_stdout() -> None:
    """Whoever read our output left (`| head`): Python's flush at exit must not complain about it."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except io.UnsupportedOperation:
        return
