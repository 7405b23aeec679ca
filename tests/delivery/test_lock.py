"""The volume's lock where processes cannot show it: file systems without locks, holders that leave no name."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from service.delivery.disk import lock
from service.delivery.failures import Cause, DeliveryFailed


def test_a_lock_names_its_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with lock.volume_lock(tmp_path, 1, lambda: 0):
            assert f"process {os.getpid()}" in (tmp_path / lock.NAME).read_text()


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with lock.volume_lock(tmp_path, 1, lambda: 0):
        pass
    assert "cannot be locked on this file system" in caplog.text


def test_a_lock_that_fails_otherwise_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(DeliveryFailed) as raised, lock.volume_lock(tmp_path, 1, lambda: 0):
        pass
    assert raised.value.cause is Cause.DISK


def test_a_link_in_the_locks_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / lock.NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeliveryFailed), lock.volume_lock(tmp_path, 1, lambda: 0):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_patience_starts_anew_with_every_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "POLL_SECONDS", 0)
    now = iter(range(1000))

    def moment() -> float:
        seconds = next(now)
        os.utime(tmp_path / lock.NAME, ns=(0, min(seconds, 50)))
        return float(seconds)

    with (
        lock.volume_lock(tmp_path, 1, lambda: 0),
        pytest.raises(DeliveryFailed, match="got no further for 10 s"),
        lock.volume_lock(tmp_path, 10, lambda: 0, clock=moment),
    ):
        pass
    assert next(now) > 55


def test_without_patience_no_sign_of_life_is_waited_for(tmp_path: Path) -> None:
    there = iter(range(1000))
    with (
        lock.volume_lock(tmp_path, 1, lambda: 0),
        pytest.raises(DeliveryFailed),
        lock.volume_lock(tmp_path, 0, lambda: next(there)),
    ):
        pass
    assert next(there) < 3


def test_who_gets_further_shows_it_and_who_reports_the_same_again_does_not(tmp_path: Path) -> None:
    reported: list[tuple[str, int, int]] = []
    with lock.volume_lock(tmp_path, 1, lambda: 0) as descriptor:
        progress = lock.signs_of_life(descriptor, lambda *figures: reported.append(figures))
        shown = []
        for figures in (("verifying", 1, 9), ("verifying", 1, 9), ("verifying", 2, 9)):
            os.utime(descriptor, ns=(0, 0))
            progress(*figures)
            shown.append((tmp_path / lock.NAME).stat().st_mtime_ns > 0)
    assert shown == [True, False, True]
    assert len(reported) == 3


def test_patience_starts_anew_with_every_byte_of_the_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "POLL_SECONDS", 0)
    now, there = iter(range(1000)), iter([*range(50), *[50] * 1000])
    with (
        lock.volume_lock(tmp_path, 1, lambda: 0),
        pytest.raises(DeliveryFailed, match="got no further for 10 s"),
        lock.volume_lock(tmp_path, 10, lambda: next(there), clock=lambda: float(next(now))),
    ):
        pass
    assert next(there) == 50
    assert next(now) > 55
