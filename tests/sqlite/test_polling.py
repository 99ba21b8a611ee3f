"""Polling: the same signals as inotify, found by looking, on a bounded budget."""

import os
import sqlite3
from pathlib import Path

from basenet.sqlite.polling import (
    POLL_NS_MAX,
    POLL_NS_MIN,
    POLLS_PER_SECOND_MAX,
    PollingWake,
)
from basenet.sqlite.signals import Signal

SECOND_NS = 1_000_000_000


class Clock:
    """Monotonic time by hand; the wall stands an hour after the files unless told otherwise."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.wall_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def poller(clock: Clock) -> PollingWake:
    return PollingWake(clock=clock, wall_clock=lambda: clock.wall_ns)


def look(wake: PollingWake, clock: Clock) -> list[tuple[str, Signal]]:
    """Wait until the next look is due and take it."""
    seconds = wake.seconds_to_poll()
    assert seconds is not None
    clock.now_ns += round(seconds * SECOND_NS)
    return wake.read_events()


def test_the_interval_grows_while_idle_and_falls_at_a_change(tmp_path: Path) -> None:
    """2 ms after a change, 100 ms at rest."""
    clock = Clock()
    wake = poller(clock)
    wal = tmp_path / "a.db-wal"
    wal.write_bytes(b"1")
    wake.watch("a", tmp_path / "a.db")
    for _ in range(12):
        assert look(wake, clock) == []
    assert wake.seconds_to_poll() == POLL_NS_MAX / SECOND_NS
    wal.write_bytes(b"22")
    assert look(wake, clock) == [("a", Signal.WRITTEN)]
    assert wake.seconds_to_poll() == POLL_NS_MIN / SECOND_NS
    assert look(wake, clock) == []


def test_many_shards_share_a_budget_of_looks(tmp_path: Path) -> None:
    """10,000 shards that all change are not looked at more often than the budget allows."""
    clock = Clock()
    wake = poller(clock)
    for number in range(10_000):
        wake.watch(str(number), tmp_path / f"{number}.db")
    look(wake, clock)
    rest = wake.seconds_to_poll()
    assert rest is not None
    assert rest >= 10_000 / POLLS_PER_SECOND_MAX


def test_a_write_within_the_grain_of_the_files_time_is_told_once_more(tmp_path: Path) -> None:
    """Same size, same mtime: the second write looks like the first, so a fresh file counts."""
    clock = Clock()
    wake = poller(clock)
    wal = tmp_path / "a.db-wal"
    wal.write_bytes(b"1")
    clock.wall_ns = wal.stat().st_mtime_ns + 1_000_000
    wake.watch("a", tmp_path / "a.db")
    assert look(wake, clock) == [("a", Signal.WRITTEN)]
    clock.wall_ns += SECOND_NS
    assert look(wake, clock) == []


def test_files_that_come_go_and_are_replaced_are_told(tmp_path: Path) -> None:
    """The same words as inotify has for them."""
    clock = Clock()
    wake = poller(clock)
    path, wal = tmp_path / "a.db", tmp_path / "a.db-wal"
    wake.watch("a", path)
    path.write_bytes(b"1")
    assert look(wake, clock) == [("a", Signal.DATABASE_APPEARED)]
    wal.write_bytes(b"1")
    assert look(wake, clock) == [("a", Signal.WAL_APPEARED)]
    wal.unlink()
    assert look(wake, clock) == [("a", Signal.WAL_VANISHED)]
    (tmp_path / "new").write_bytes(b"1")
    os.replace(tmp_path / "new", path)  # noqa: PTH105  (the call that is meant)
    assert look(wake, clock) == [("a", Signal.DATABASE_APPEARED)]
    path.unlink()
    assert look(wake, clock) == [("a", Signal.DATABASE_VANISHED)]


def test_a_rollback_database_that_changes_is_worth_a_look(tmp_path: Path) -> None:
    """An empty file that becomes a database through a rollback journal is noticed."""
    clock = Clock()
    wake = poller(clock)
    path = tmp_path / "a.db"
    path.touch()
    wake.watch("a", path)
    connection = sqlite3.connect(path)
    connection.execute("create table t(x)")
    connection.close()
    assert ("a", Signal.JOURNAL_VANISHED) in look(wake, clock)


def test_a_probe_is_asked_instead_of_the_wal(tmp_path: Path) -> None:
    """A -wal that is reused keeps its size; the wal-index header does not lie."""
    clock = Clock()
    wake = poller(clock)
    (tmp_path / "a.db-wal").touch()
    clock.wall_ns = (tmp_path / "a.db-wal").stat().st_mtime_ns + SECOND_NS
    value: list[int] = [1]
    wake.watch("a", tmp_path / "a.db", probe=lambda: value[0])
    assert look(wake, clock) == []
    value[0] = 2
    assert look(wake, clock) == [("a", Signal.WRITTEN)]
    assert look(wake, clock) == []
    wake.set_probe("a", None)
    value[0] = 3
    assert look(wake, clock) == []


def test_a_paused_shard_is_not_looked_at_and_resuming_looks_soon(tmp_path: Path) -> None:
    """What happened meanwhile is found by the first look after it."""
    clock = Clock()
    wake = poller(clock)
    wal = tmp_path / "a.db-wal"
    wal.write_bytes(b"1")
    wake.watch("a", tmp_path / "a.db")
    wake.pause("a")
    assert wake.seconds_to_poll() is None
    wal.write_bytes(b"22")
    clock.now_ns += SECOND_NS
    assert wake.read_events() == []
    wake.resume("a")
    assert look(wake, clock) == [("a", Signal.WRITTEN)]


def test_an_open_shows_as_the_wal_that_it_creates(tmp_path: Path) -> None:
    """A bare open leaves no trace to look for; the first read in WAL mode makes a -wal."""
    clock = Clock()
    wake = poller(clock)
    wake.watch("a", tmp_path / "a.db")
    wake.watch_opens("a")
    (tmp_path / "a.db-wal").touch()
    assert look(wake, clock) == [("a", Signal.WAL_APPEARED), ("a", Signal.OPENED)]
    wake.ignore_opens("a")
    (tmp_path / "a.db-wal").unlink()
    look(wake, clock)
    (tmp_path / "a.db-wal").touch()
    assert look(wake, clock) == [("a", Signal.WAL_APPEARED)]


def test_a_directory_is_looked_at_for_names(tmp_path: Path) -> None:
    """A new file, and the directory's own coming and going, change the listing."""
    clock = Clock()
    wake = poller(clock)
    home = tmp_path / "home"
    wake.watch_directory("dir", home)
    assert look(wake, clock) == []
    home.mkdir()
    assert look(wake, clock) == [("dir", Signal.LISTING_CHANGED)]
    assert look(wake, clock) == []
    (home / "b.db").touch()
    assert look(wake, clock) == [("dir", Signal.LISTING_CHANGED)]
    wake.unwatch_directory("dir")
    assert wake.seconds_to_poll() is None
