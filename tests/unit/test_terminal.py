"""`internlm-chat chat` on real pipes and a real terminal, against a real socket, with real signals."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.terminal.client import ChatClient, ChatFailed
from tests.support.chat_server import ChatHandler, ChatServer, Script, begins, refuses, says, serve_chats
from tests.support.pty_process import CTRL_C, CTRL_D, PtyProcess, on_terminal

INTERRUPTED = 130


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serve_chats() as running:
        yield running


@pytest.fixture
def terminal(server: ChatServer) -> Iterator[PtyProcess]:
    """A conversation that waits for its first question."""
    with on_terminal(command(server.url)) as process:
        process.expect("Chatting with tiny")
        process.expect("> ")
        yield process


def command(url: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "service", "chat", "--url", url, *arguments]


def ask(url: str, *arguments: str, piped: str | bytes = "") -> subprocess.CompletedProcess[bytes]:
    data = piped.encode() if isinstance(piped, str) else piped
    return subprocess.run(command(url, *arguments), input=data, capture_output=True, timeout=60)


def test_a_question_is_answered_on_standard_output_and_nothing_else_is(server: ChatServer) -> None:
    done = ask(server.url, "Hi?")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"Hello there.\n", b"")
    assert server.chats == [{"prompt": "Hi?", "history": [], "stream": True}]


def test_a_piped_question_is_answered_too(server: ChatServer) -> None:
    assert ask(server.url, piped="What is\nthis?\n").stdout == b"Hello there.\n"
    assert server.chats[0]["prompt"] == "What is\nthis?"


def test_a_question_given_leaves_a_pipe_unread(server: ChatServer) -> None:
    ask(server.url, "Hi?", piped="not this")
    assert server.chats[0]["prompt"] == "Hi?"


def test_options_are_passed_on(server: ChatServer) -> None:
    ask(server.url, "Hi?", "--system", "Be brief.", "--thinking")
    assert server.chats[0] == {"prompt": "Hi?", "history": [], "stream": True, "system": "Be brief.", "thinking": True}


def test_an_empty_system_prompt_is_passed_on_as_such(server: ChatServer) -> None:
    ask(server.url, "Hi?", "--system", "")
    assert server.chats[0]["system"] == ""


def test_any_text_comes_through_unchanged(server: ChatServer) -> None:
    text = '你好 🎉 a\u2028b\u0085c "quoted" \\ \ttab\n\x1b[31mred'
    server.scripts = [says(*text)]
    assert ask(server.url, "Hi?").stdout.decode() == text + "\n"


def test_input_that_is_no_utf8_is_asked_with_question_marks(server: ChatServer) -> None:
    assert ask(server.url, piped=b"caf\xe9?").returncode == 0
    assert server.chats[0]["prompt"] == "caf??"


def test_what_a_service_does_not_take_is_left_out_of_what_is_asked(server: ChatServer) -> None:
    """As the colours of a log are; and what is no UTF-8, in a system prompt, too."""
    system = os.fsdecode(b"caf\xe9\x07")
    assert ask(server.url, "--system", system, piped="\x1b[31mred\x1b[0m\tblack").returncode == 0
    assert server.chats[0]["prompt"] == "[31mred[0m\tblack"
    assert server.chats[0]["system"] == "caf?"


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf# team a\n\n key-1 \nkey-2\n", b"key-1", b"# caf\xe9\nkey-1\n"])
def test_the_services_own_file_of_keys_opens_it(server: ChatServer, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keys").write_bytes(content)
    assert ask(server.url, "Hi?", "--api-key-file", str(tmp_path / "keys")).returncode == 0
    assert server.authorizations == ["Bearer key-1"]


@pytest.mark.parametrize(("content", "said"), [(b"# none yet\n", b"there is no key in it"), (None, b"No such file")])
def test_a_file_without_a_key_is_told(server: ChatServer, tmp_path: Path, content: bytes | None, said: bytes) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    done = ask(server.url, "Hi?", "--api-key-file", str(tmp_path / "keys"))
    assert (done.returncode, done.stdout) == (1, b"")
    assert said in done.stderr


@pytest.mark.parametrize("piped", ["", " \n"])
def test_no_question_is_told_how_to_ask_one(server: ChatServer, piped: str) -> None:
    done = ask(server.url, piped=piped)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b'no question; give one: internlm-chat chat "' in done.stderr


def test_a_server_that_is_not_there_is_one_line_with_the_way_out() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        done = ask(f"http://127.0.0.1:{unused.getsockname()[1]}", "Hi?")
    assert done.returncode == 1
    assert b"no service answers at http://127.0.0.1" in done.stderr
    assert b"internlm-chat serve" in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("url", ["127.0.0.1:6006", "ftp://127.0.0.1", "http://", "http://[::1", "", "http://\x00"])
def test_a_wrong_address_is_named(url: str) -> None:
    with pytest.raises(ChatFailed, match="--url"):
        ChatClient(url)


def test_a_proxy_of_the_environment_does_not_come_between(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert ask(server.url, "Hi?").stdout == b"Hello there.\n"


REFUSALS = {
    "a bad request": (refuses(400, "max_new_tokens is at most 32768"), b"max_new_tokens is at most 32768"),
    "a deadline": (refuses(504, "the answer took longer than 300 s"), b"the answer took longer than 300 s"),
    "a broken engine": (refuses(503, "the engine died", "engine_failed"), b"the engine died"),
    "a failed service": (refuses(503, "failed: no GPU", "not_ready"), b"failed: no GPU"),
    "a proxy's page": (lambda handler: handler.send_error(502, "Bad Gateway"), b"502 Bad Gateway"),
}


@pytest.mark.parametrize(("script", "told"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_told_in_the_servers_words_and_not_tried_again(
    server: ChatServer, script: Script, told: bytes
) -> None:
    server.scripts = [script]
    done = ask(server.url, "Hi?")
    assert (done.returncode, done.stdout) == (1, b"")
    assert told in done.stderr
    assert len(server.chats) == 1


DELAYS = {
    "loading": (
        refuses(503, "loading: 40 % of the weights", "not_ready", Retry_After="0"),
        b"loading: 40 % of the weights",
    ),
    "a full queue": (
        refuses(429, "256 requests wait already", "queue_full", Retry_After="0"),
        b"256 requests wait already",
    ),
    "a full queue behind a proxy": (refuses(429, "slow down", Retry_After="Wed, 21 Oct"), b"slow down"),
}


@pytest.mark.parametrize(("script", "told"), DELAYS.values(), ids=DELAYS)
def test_a_service_that_takes_no_question_yet_is_waited_for_and_the_reason_told_once(
    server: ChatServer, script: Script, told: bytes
) -> None:
    server.scripts = [script, script, says("At last.")]
    done = ask(server.url, "Hi?")
    assert (done.returncode, done.stdout) == (0, b"At last.\n")
    assert done.stderr.count(told) == 1
    assert len(server.chats) == 3


def test_an_answer_that_breaks_off_is_kept_and_told(server: ChatServer) -> None:
    def breaks(handler: ChatHandler) -> None:
        handler.begin()
        handler.send_delta("Half an")

    server.scripts = [breaks]
    done = ask(server.url, "Hi?")
    assert (done.returncode, done.stdout) == (1, b"Half an\n")
    assert b"the connection ended before the answer did" in done.stderr


def test_an_error_in_the_stream_is_told_in_the_servers_words(server: ChatServer) -> None:
    def fails(handler: ChatHandler) -> None:
        handler.begin()
        handler.send_delta("Half an")
        handler.send_raw(
            f"event: error\ndata: {json.dumps({'status': 504, 'detail': 'longer than 300 s'})}\n\ndata: [DONE]\n\n"
        )

    server.scripts = [fails]
    done = ask(server.url, "Hi?")
    assert (done.returncode, done.stdout) == (1, b"Half an\n")
    assert b"longer than 300 s" in done.stderr


def test_an_answer_cut_at_its_limit_says_so(server: ChatServer) -> None:
    server.scripts = [says("1, 2, 3", reason="length")]
    done = ask(server.url, "Count.")
    assert (done.returncode, done.stdout) == (0, b"1, 2, 3\n")
    assert b"limit of tokens" in done.stderr


def test_a_reader_that_leaves_is_no_traceback(server: ChatServer) -> None:
    server.scripts = [begins("first\n", *["more\n"] * 20_000)]
    with subprocess.Popen(command(server.url, "Hi?"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"first\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_an_interrupted_answer_stops_on_the_server_and_the_status_says_so(server: ChatServer) -> None:
    server.scripts = [begins("Once upon\n")]
    with subprocess.Popen(command(server.url, "A tale?"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"Once upon\n"
        process.send_signal(signal.SIGINT)
        assert process.wait() == INTERRUPTED
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    assert server.client_left.wait(60)


def test_a_conversation_remembers_its_turns(server: ChatServer, terminal: PtyProcess) -> None:
    for question in ("one", "two", "three"):
        terminal.type(f"{question}\r")
        terminal.expect("Hello there.")
        terminal.expect("> ")
    assert [chat["prompt"] for chat in server.chats] == ["one", "two", "three"]
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "Hello there."}]
    assert server.chats[1]["history"] == turns
    assert len(server.chats[2]["history"]) == 4


def test_reset_forgets_the_conversation(server: ChatServer, terminal: PtyProcess) -> None:
    terminal.type("one\r")
    terminal.expect("> ")
    terminal.type("/reset\r")
    terminal.expect("forgotten")
    terminal.expect("> ")
    terminal.type("two\r")
    terminal.expect("Hello there.")
    assert server.chats[-1]["history"] == []


@pytest.mark.parametrize("keys", [CTRL_D, "/exit\r"])
def test_a_conversation_ends_when_told(terminal: PtyProcess, keys: str) -> None:
    terminal.type(keys)
    assert terminal.wait() == 0


def test_ctrl_c_stops_the_answer_not_the_program_and_the_part_is_remembered(
    server: ChatServer, terminal: PtyProcess
) -> None:
    server.scripts = [begins("Once upon", " a time"), says("Fine.")]
    terminal.type("A tale?\r")
    terminal.expect("Once upon a time")
    terminal.type(CTRL_C)
    terminal.expect("[stopped]")
    assert server.client_left.wait(60)
    terminal.expect("> ")
    terminal.type("Go on.\r")
    terminal.expect("Fine.")
    assert [turn["content"] for turn in server.chats[-1]["history"]] == ["A tale?", "Once upon a time"]
    terminal.expect("> ")
    terminal.type(CTRL_D)
    assert terminal.wait() == 0


def test_ctrl_c_at_the_prompt_forgets_the_line_only(server: ChatServer, terminal: PtyProcess) -> None:
    terminal.type("half a quest")
    terminal.expect("half a quest")
    terminal.until_it_waits()
    terminal.type(CTRL_C)
    terminal.expect("> ")
    terminal.type("whole\r")
    terminal.expect("Hello there.")
    assert [chat["prompt"] for chat in server.chats] == ["whole"]


def test_ctrl_c_gives_up_waiting_for_a_full_queue(server: ChatServer, terminal: PtyProcess) -> None:
    server.scripts = [refuses(429, "256 requests wait already", "queue_full", Retry_After="3600"), says("Fine.")]
    terminal.type("one\r")
    terminal.expect("256 requests wait already")
    terminal.type(CTRL_C)
    terminal.expect("[stopped]")
    terminal.type("two\r")
    terminal.expect("Fine.")
    assert server.chats[-1]["history"] == []


def test_a_failed_answer_leaves_the_conversation_going(server: ChatServer, terminal: PtyProcess) -> None:
    server.scripts = [refuses(400, "prompt is too long"), says("Fine.")]
    terminal.type("one\r")
    terminal.expect("prompt is too long")
    terminal.type("two\r")
    terminal.expect("Fine.")
    assert server.chats[-1]["history"] == []


def test_a_terminal_gets_no_control_characters_from_a_model(server: ChatServer, terminal: PtyProcess) -> None:
    server.scripts = [says("a\x1b]0;owned\x07\x9b2J\rb\tc")]
    terminal.type("Hi?\r")
    assert terminal.expect("]0;owned2Jb").endswith("a")
    terminal.expect("> ")


@pytest.mark.parametrize("kind", ["xterm-256color", "dumb"])
def test_a_conversation_waits_for_a_loading_model_and_shows_why(server: ChatServer, kind: str) -> None:
    server.health = [(503, {"status": "loading", "reason": "reading weights"})] * 2 + server.health
    with on_terminal(command(server.url), kind) as process:
        process.expect("loading: reading weights")
        process.expect("Chatting with tiny")
    assert server.health_checks == 3


def test_a_conversation_does_not_wait_for_a_failed_service(server: ChatServer) -> None:
    server.health = [(503, {"status": "failed", "reason": "no such GPU"})]
    with on_terminal(command(server.url)) as process:
        process.expect("no such GPU")
        assert process.wait() == 1
