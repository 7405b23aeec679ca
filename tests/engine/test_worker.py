"""The engine process spoken to directly: its first words, its heartbeat, whose events go where, and its end."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from service import __version__
from service.engine.base import EngineConfig, Event, Finish, FinishReason
from service.engine.process import wire
from service.engine.process.lifetime import WORKER, find_or_start
from service.engine.process.run_dir import forget
from tests.support.engines import PATIENCE, a_request, fake_config, finish_of, scripted, tokens_of


class Peer:
    """One connection to an engine process, with blocking reads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._connection.settimeout(PATIENCE)
        self._decoder = wire.engine_decoder()

    def send(self, message: wire.FromClient) -> None:
        self._connection.sendall(wire.frame(message))

    def send_bytes(self, data: bytes) -> None:
        self._connection.sendall(data)

    def next(self) -> wire.FromEngine | None:
        return wire.receive(self._connection, self._decoder)

    def until(self, wanted: Callable[[wire.FromEngine], object]) -> wire.FromEngine:
        """The next message of interest."""
        while (message := self.next()) is not None:
            if wanted(message):
                return message
        raise AssertionError("the engine went away")

    def ready(self) -> wire.Beat:
        beat = self.until(lambda message: isinstance(message, wire.Beat) and message.info)
        assert isinstance(beat, wire.Beat)
        return beat

    def events(self, request_id: str) -> list[Event]:
        """A request's events, to its end."""
        events: list[Event] = []
        while not events or not isinstance(events[-1], Finish):
            report = self.until(lambda message: isinstance(message, wire.Report))
            assert isinstance(report, wire.Report)
            events += [event for event in report.events if event.id == request_id]
        return events

    def close(self) -> None:
        self._connection.close()


class Process:
    """An engine process and how to reach it."""

    def __init__(self, run_dir: Path, child: "subprocess.Popen[bytes]", first: Peer) -> None:
        self.run_dir = run_dir
        self.child = child
        self.first = first

    def connect(self) -> Peer:
        """One more connection, beyond its first message."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(self.run_dir / "engine.sock"))
        peer = Peer(connection)
        assert isinstance(peer.next(), wire.Hello)
        return peer


@contextmanager
def engine_process(
    tmp_path: Path, config: EngineConfig | None = None, command: Sequence[str] = WORKER, orphan: float = 60
) -> Iterator[Process]:
    found = find_or_start(config or fake_config(), tmp_path / "run", command, orphan)
    assert found.process.child is not None
    process = Process(tmp_path / "run", found.process.child, Peer(found.connection))
    try:
        yield process
    finally:
        process.first.close()
        process.child.kill()
        process.child.wait()


def test_its_first_words_say_what_it_is(tmp_path: Path) -> None:
    with engine_process(tmp_path) as process:
        assert process.first.next() == wire.Hello(__version__, wire.digest(fake_config()), process.child.pid)


def test_loading_is_reported_while_it_lasts_and_requests_are_refused(tmp_path: Path) -> None:
    with engine_process(tmp_path, command=scripted(load_seconds=600)) as process:
        beat = process.first.until(lambda message: isinstance(message, wire.Beat) and message.phase != "starting")
        assert isinstance(beat, wire.Beat)
        assert (beat.phase, beat.info) == ("pretending to load", None)
        process.first.send(wire.Submit(a_request(id_="a")))
        assert finish_of(process.first.events("a")).reason is FinishReason.ERROR


def test_the_heart_beats_while_a_step_hangs_and_tells_its_age(tmp_path: Path) -> None:
    with engine_process(tmp_path, command=scripted(hang_at_step=1)) as process:
        process.first.ready()
        process.first.send(wire.Submit(a_request()))
        first = process.first.until(lambda message: isinstance(message, wire.Beat) and message.step_age > 0)
        second = process.first.until(lambda message: isinstance(message, wire.Beat))
        assert isinstance(first, wire.Beat)
        assert isinstance(second, wire.Beat)
        assert second.step_age > first.step_age


def test_each_connection_gets_the_events_of_its_own_requests(tmp_path: Path) -> None:
    with engine_process(tmp_path) as process:
        second = process.connect()
        process.first.ready()
        process.first.send(wire.Submit(a_request([5], new=3, id_="a")))
        second.send(wire.Submit(a_request([6], new=3, id_="b")))
        for peer, mine, token in ((process.first, "a", 5), (second, "b", 6)):
            events: list[Event] = []
            while not any(isinstance(event, Finish) for event in events):
                report = peer.until(lambda message: isinstance(message, wire.Report))
                assert isinstance(report, wire.Report)
                events += report.events
            assert {event.id for event in events} == {mine}
            assert tokens_of(events) == [token] * 3
        second.close()


def test_a_connections_requests_are_cancelled_when_it_goes_and_the_others_stay(tmp_path: Path) -> None:
    with engine_process(tmp_path) as process:
        second = process.connect()
        process.first.ready()
        for peer, id_ in ((process.first, "stays"), (second, "goes")):
            peer.send(wire.Submit(a_request(new=30_000, id_=id_)))
        process.first.until(lambda message: isinstance(message, wire.Report | wire.Beat) and _running(message) == 2)
        second.close()
        process.first.until(lambda message: isinstance(message, wire.Report | wire.Beat) and _running(message) == 1)
        process.first.send(wire.Cancel("stays"))
        assert finish_of(process.first.events("stays")).reason is FinishReason.CANCELLED


def _running(message: wire.Report | wire.Beat) -> int:
    return message.stats.running if message.stats else -1


def test_nobody_can_cancel_another_connections_request_or_use_its_id(tmp_path: Path) -> None:
    with engine_process(tmp_path) as process:
        second = process.connect()
        process.first.ready()
        process.first.send(wire.Submit(a_request([5], new=40, id_="a")))
        process.first.until(lambda message: isinstance(message, wire.Report) and message.events)
        second.send(wire.Cancel("a"))
        second.send(wire.Submit(a_request(id_="a")))
        assert "this id" in finish_of(second.events("a")).message
        assert finish_of(process.first.events("a")).reason is FinishReason.LENGTH
        second.close()


def test_a_connection_that_talks_nonsense_is_closed_and_no_other(tmp_path: Path) -> None:
    with engine_process(tmp_path) as process:
        process.first.ready()
        for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x02\xff\xff", wire.frame(wire.Kept())):
            second = process.connect()
            second.send_bytes(nonsense)
            while second.next() is not None:
                pass
            second.close()
        process.first.send(wire.Submit(a_request([5], new=1, id_="a")))
        assert tokens_of(process.first.events("a")) == [5]


@pytest.mark.parametrize("way", ["stop", "sigterm"])
@pytest.mark.parametrize("script", [{}, {"load_seconds": 600}], ids=["ready", "loading"])
def test_it_ends_cleanly_when_told_to_whatever_it_does(tmp_path: Path, way: str, script: dict[str, object]) -> None:
    with engine_process(tmp_path, command=scripted(**script)) as process:
        process.first.until(
            lambda message: isinstance(message, wire.Beat) and (not script or message.phase != "starting")
        )
        process.first.send(wire.Stop()) if way == "stop" else os.kill(process.child.pid, signal.SIGTERM)
        ended = process.first.until(lambda message: isinstance(message, wire.Ended))
        assert isinstance(ended, wire.Ended)
        assert "stopped" in ended.reason
        assert process.child.wait(PATIENCE) == 0
        assert list((tmp_path / "run").iterdir()) == []


SLOW = """
import time
from service.engine import worker
run = worker.Worker.run
worker.Worker.run = lambda self: time.sleep(1) or run(self)
worker.main()
"""


def test_it_ends_in_order_when_told_to_between_its_first_word_and_its_first_work(tmp_path: Path) -> None:
    with engine_process(tmp_path, command=(sys.executable, "-c", SLOW)) as process:
        process.first.until(lambda message: isinstance(message, wire.Beat))
        os.kill(process.child.pid, signal.SIGTERM)
        ended = process.first.until(lambda message: isinstance(message, wire.Ended))
        assert isinstance(ended, wire.Ended)
        assert process.child.wait(PATIENCE) == 0


def test_a_stop_while_others_are_connected_only_ends_the_connection(tmp_path: Path) -> None:
    with engine_process(tmp_path) as process:
        second = process.connect()
        process.first.ready()
        second.send(wire.Stop())
        assert isinstance(second.until(lambda message: isinstance(message, wire.Kept)), wire.Kept)
        while second.next() is not None:
            pass
        process.first.send(wire.Submit(a_request([5], new=1, id_="a")))
        assert tokens_of(process.first.events("a")) == [5]
        second.close()


@pytest.mark.parametrize(
    ("script", "reason", "restart", "code"),
    [
        ({"misconfigured": "no such directory"}, "no such directory", False, 2),
        ({"broken": "out of luck"}, "RuntimeError: out of luck", True, 1),
        ({"broken": "illegal access", "pinned": True}, "RuntimeError: illegal access", True, 1),
        ({"crash_at_step": 1}, "crash at step 1", True, 1),
    ],
    ids=["misconfigured", "broken while loading", "broken with what must not be freed", "broken in a step"],
)
def test_its_last_words_say_why_it_ends_and_whether_a_new_one_could_do_better(
    tmp_path: Path, script: dict[str, object], reason: str, restart: bool, code: int
) -> None:
    with engine_process(tmp_path, command=scripted(**script)) as process:
        if "crash_at_step" in script:
            process.first.ready()
            process.first.send(wire.Submit(a_request()))
        ended = process.first.until(lambda message: isinstance(message, wire.Ended))
        assert isinstance(ended, wire.Ended)
        assert reason in ended.reason
        assert ended.restart is restart
        assert process.child.wait(PATIENCE) == code


def test_it_waits_for_nobody_longer_than_it_was_told_to(tmp_path: Path) -> None:
    with engine_process(tmp_path, orphan=0.1) as process:
        process.first.ready()
        process.first.close()
        assert process.child.wait(PATIENCE) == 0
        assert list((tmp_path / "run").iterdir()) == []


def test_it_stays_while_a_lost_connection_is_made_good_in_time(tmp_path: Path) -> None:
    with engine_process(tmp_path, orphan=60) as process:
        process.first.ready()
        process.first.close()
        again = process.connect()
        assert again.ready().info is not None
        again.close()


def test_a_successors_traces_are_not_removed(tmp_path: Path) -> None:
    with engine_process(tmp_path) as process:
        assert forget(tmp_path / "run", process.child.pid + 1)
        assert {path.name for path in (tmp_path / "run").iterdir()} == {"engine.sock", "engine.pid"}


def test_it_logs_json_lines_with_the_level_of_its_configuration(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with engine_process(tmp_path, fake_config(log_format="json", log_level="info")) as process:
        process.first.ready()
        process.first.send(wire.Stop())
        process.child.wait(PATIENCE)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert {line["logger"] for line in lines} == {"service.engine.worker"}
    assert any("ready" in line["message"] for line in lines)


def test_the_fake_engine_process_needs_no_torch() -> None:
    code = (
        "import sys; from service.engine.worker import build; from service.engine.base import EngineConfig; "
        "build(EngineConfig(kind='fake', model_dir=''), print); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
