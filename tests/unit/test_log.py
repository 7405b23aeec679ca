"""Log lines are JSON objects that say whose request they belong to, or plain lines on a terminal."""

import json
import logging
import sys

import pytest

from service import log


@pytest.fixture
def record() -> logging.LogRecord:
    made = logging.LogRecord("service.test", logging.WARNING, __file__, 1, "%d blocks of %s", (3, "你"), None)
    made.fields = {"route": "/v1/chat"}
    return made


def test_a_json_line_has_time_level_message_and_fields(record: logging.LogRecord) -> None:
    line = json.loads(log.JsonFormatter().format(record))
    assert line["message"] == "3 blocks of 你"
    assert (line["level"], line["logger"], line["route"]) == ("warning", "service.test", "/v1/chat")
    assert line["time"].endswith("Z")
    assert "request_id" not in line


def test_a_line_inside_a_request_names_it(record: logging.LogRecord) -> None:
    token = log.request_id.set("abc")
    try:
        assert json.loads(log.JsonFormatter().format(record))["request_id"] == "abc"
    finally:
        log.request_id.reset(token)


def test_a_line_break_in_a_message_stays_one_line(record: logging.LogRecord) -> None:
    record.msg, record.args = "two\nlines", None
    assert "\n" not in log.JsonFormatter().format(record)


@pytest.mark.parametrize("formatter", [log.JsonFormatter(), log.ConsoleFormatter()])
def test_an_exception_is_kept(formatter: logging.Formatter, record: logging.LogRecord) -> None:
    try:
        raise ValueError("the cause")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert "the cause" in formatter.format(record)


def test_console_lines_read_well(record: logging.LogRecord) -> None:
    assert log.ConsoleFormatter().format(record).endswith("warning  service.test: 3 blocks of 你 route=/v1/chat")


def test_a_field_cannot_write_a_console_line_of_its_own(record: logging.LogRecord) -> None:
    record.fields = {"prompt": "你好\n12:00:00 error    forged\x1b[2J", "seconds": 0.5}
    line = log.ConsoleFormatter().format(record)
    assert line.isprintable()
    assert line.endswith("prompt='你好\\n12:00:00 error    forged\\x1b[2J' seconds=0.5")


@pytest.mark.parametrize(
    ("log_format", "terminal", "console"),
    [("auto", True, True), ("auto", False, False), ("json", True, False), ("console", False, True)],
)
def test_readable_lines_are_for_terminals_unless_set(
    monkeypatch: pytest.MonkeyPatch, log_format: str, terminal: bool, console: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert log.is_console(log_format) is console


def test_configuring_sets_level_and_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.root.level)
    log.configure("warning", "auto")
    assert logging.root.level == logging.WARNING
    assert isinstance(logging.root.handlers[0].formatter, log.JsonFormatter)  # pytest's stderr is no terminal
    log.configure("debug", "console")
    assert isinstance(logging.root.handlers[0].formatter, log.ConsoleFormatter)
    assert len(logging.root.handlers) == 1
    logging.captureWarnings(False)


def test_a_flood_of_one_kind_leaves_one_line_a_while_and_others_alone(record: logging.LogRecord) -> None:
    seldom = log.Seldom("blocks", seconds=5.0)
    assert seldom.filter(record)
    record.msg, record.args = "blocks everywhere", None
    passed = []
    for moment in (100.0, 101.0, 104.9, 105.0, 106.0):
        record.created = moment
        passed.append(seldom.filter(record))
    assert passed == [True, False, False, True, False]
