"""The node's waker: inotify where it can, polling where it must, and looking again after a wake."""

import os
import select
import sqlite3
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import inotify_simple
import pytest

from basenet.errors import ConflictError, UnavailableError
from basenet.sqlite.inotify import InotifyWake
from basenet.sqlite.polling import PollingWake
from basenet.sqlite.signals import Signal
from basenet.sqlite.wake import RECHECK_NS_MAX, RECHECK_NS_MIN, Recheck, Wake, open_wake


@pytest.fixture
def wake() -> Iterator[Wake]:
    opened = open_wake()
    yield opened
    opened.close()


def signals(wake: Wake) -> set[tuple[str, Signal]]:
    return set(wake.read_events())


def application(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma journal_mode=wal")
    connection.execute("create table if not exists t(x)")
    return connection


def test_a_commit_makes_the_descriptor_readable_and_names_the_shard(
    tmp_path: Path, wake: Wake
) -> None:
    """The event loop waits on `fd` alone; an idle shard has nothing to poll and tells nothing."""
    app = application(tmp_path / "a.db")
    wake.watch("a", tmp_path / "a.db")
    assert wake.fd is not None
    assert wake.seconds_to_poll() is None
    assert select.select([wake.fd], [], [], 0)[0] == []

    app.execute("insert into t values (1)")
    assert select.select([wake.fd], [], [], 5)[0] == [wake.fd]
    assert signals(wake) == {("a", Signal.WRITTEN)}
    assert wake.read_events() == []
    app.close()


def test_looking_at_the_files_wakes_nobody(tmp_path: Path, wake: Wake) -> None:
    """Reading -wal, -shm and database through kept descriptors or SQLite makes no event at all."""
    app = application(tmp_path / "a.db")
    wake.watch("a", tmp_path / "a.db")
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"a.db{suffix}").read_bytes()
    app.execute("select count(*) from t").fetchall()
    assert wake.read_events() == []
    app.close()


def test_the_watch_follows_a_wal_that_is_removed_and_created_again(
    tmp_path: Path, wake: Wake
) -> None:
    """A watch belongs to an inode; the next generation's first write must still be told."""
    wake.watch("a", tmp_path / "a.db")
    for _ in range(3):
        app = application(tmp_path / "a.db")
        told = signals(wake)
        assert ("a", Signal.WAL_APPEARED) in told
        app.execute("insert into t values (1)")
        assert ("a", Signal.WRITTEN) in signals(wake)
        kept = os.open(tmp_path / "a.db-wal", os.O_RDONLY)
        app.close()
        assert ("a", Signal.WAL_VANISHED) in signals(wake)
        os.close(kept)
    assert ("a", Signal.UNWATCHED) not in signals(wake)


def test_a_database_that_is_created_replaced_and_deleted_is_told_each_time(
    tmp_path: Path, wake: Wake
) -> None:
    """Created later, another file renamed over it, unlinked: each is a reason to look."""
    path = tmp_path / "a.db"
    wake.watch("a", path)
    sqlite3.connect(path).execute("create table t(x)").connection.close()
    told = signals(wake)
    assert ("a", Signal.DATABASE_APPEARED) in told
    assert ("a", Signal.JOURNAL_VANISHED) in told
    (tmp_path / "other").write_bytes(b"x")
    wake.read_events()
    (tmp_path / "other").replace(path)
    assert signals(wake) == {("a", Signal.DATABASE_APPEARED)}
    path.unlink()
    assert signals(wake) == {("a", Signal.DATABASE_VANISHED)}


def test_one_directory_watch_serves_all_shards_in_it_and_goes_with_the_last(
    tmp_path: Path,
) -> None:
    """Watches are a scarce resource: directory 1, and 1 per -wal that exists."""
    wake = InotifyWake()
    for name in "abc":
        wake.watch(name, tmp_path / f"{name}.db")
    assert wake.watches == 1
    (tmp_path / "b.db-wal").touch()
    assert wake.read_events() == [("b", Signal.WAL_APPEARED)]
    assert wake.watches == 2
    for name in "abc":
        wake.unwatch(name)
        wake.unwatch(name)
    assert wake.watches == 0
    (tmp_path / "b.db").touch()
    assert wake.read_events() == []
    wake.close()


def test_a_paused_shard_is_silent_until_it_is_resumed(tmp_path: Path, wake: Wake) -> None:
    """Paused: no event at any write; after resume the next write is told."""
    app = application(tmp_path / "a.db")
    wake.watch("a", tmp_path / "a.db")
    wake.pause("a")
    wake.read_events()
    for number in range(20):
        app.execute("insert into t values (?)", (number,))
    assert wake.fd is not None
    assert select.select([wake.fd], [], [], 0)[0] == []
    wake.resume("a")
    assert wake.read_events() == []
    app.execute("insert into t values (1)")
    assert wake.read_events() == [("a", Signal.WRITTEN)]
    app.close()


def test_a_pause_survives_a_new_wal_and_events_read_before_it_are_not_lost(
    tmp_path: Path, wake: Wake
) -> None:
    """A -wal created during a pause is told, but its writes are not."""
    wake.watch("a", tmp_path / "a.db")
    wake.pause("a")
    app = application(tmp_path / "a.db")
    told = signals(wake)
    assert ("a", Signal.WAL_APPEARED) in told
    assert ("a", Signal.WRITTEN) not in told
    app.execute("insert into t values (1)")
    assert wake.read_events() == []
    app.close()


def test_opens_are_told_only_while_asked_for(tmp_path: Path, wake: Wake) -> None:
    """Our own open after `ignore_opens` wakes nobody, so attaching cannot loop."""
    path = tmp_path / "a.db"
    application(path).close()
    wake.watch("a", path)
    path.read_bytes()
    assert wake.read_events() == []
    wake.watch_opens("a")
    path.read_bytes()
    path.read_bytes()
    assert wake.read_events() == [("a", Signal.OPENED)]
    wake.ignore_opens("a")
    path.read_bytes()
    assert wake.read_events() == []


def test_opens_are_watched_on_the_file_that_the_name_means_now(tmp_path: Path, wake: Wake) -> None:
    """After a replacement it is the new inode whose opening counts."""
    path = tmp_path / "a.db"
    path.write_bytes(b"old")
    wake.watch("a", path)
    wake.watch_opens("a")
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "new").replace(path)
    wake.read_events()
    path.read_bytes()
    assert wake.read_events() == [("a", Signal.OPENED)]


def test_a_listener_hears_of_new_databases_but_not_of_a_shards_side_files(
    tmp_path: Path, wake: Wake
) -> None:
    """`dir/` shards: names that come and go; a known shard's -wal is that shard's business."""
    wake.watch_directory("dir", tmp_path)
    wake.watch("a", tmp_path / "a.db")
    app = application(tmp_path / "a.db")
    assert ("dir", Signal.LISTING_CHANGED) in signals(wake)
    app.close()
    assert ("dir", Signal.LISTING_CHANGED) not in signals(wake)
    (tmp_path / "b.db").touch()
    assert signals(wake) == {("dir", Signal.LISTING_CHANGED)}
    (tmp_path / "sub").mkdir()
    assert signals(wake) == {("dir", Signal.LISTING_CHANGED)}
    wake.unwatch_directory("dir")
    (tmp_path / "c.db").touch()
    assert wake.read_events() == []


def test_a_queue_overflow_wakes_everybody_and_sets_every_watch_anew(
    tmp_path: Path, wake: Wake
) -> None:
    """The lost event may be the creation of a -wal; writes to it are told afterwards."""
    wake.watch("a", tmp_path / "a.db")
    wake.watch("b", tmp_path / "b.db")
    wake.watch_directory("dir", tmp_path)
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for number in range(limit // 2 + 10):
        name = tmp_path / f"{number % 7}.tmp"
        name.touch()
        name.unlink()
    (tmp_path / "a.db-wal").touch()
    told = signals(wake)
    assert {("a", Signal.OVERFLOW), ("b", Signal.OVERFLOW), ("dir", Signal.OVERFLOW)} <= told
    assert ("a", Signal.WAL_APPEARED) not in told, "the event was to be lost"
    with (tmp_path / "a.db-wal").open("ab") as wal:
        wal.write(b"x")
    assert wake.read_events() == [("a", Signal.WRITTEN)]


@pytest.mark.parametrize("how", ["removed", "moved"])
def test_a_directory_that_goes_away_is_polled_until_it_is_back(
    tmp_path: Path, wake: Wake, how: str
) -> None:
    """Its watch is dead or follows the wrong directory; the path is what counts."""
    home = tmp_path / "home"
    home.mkdir()
    wake.watch("a", home / "a.db")
    wake.watch_directory("dir", home)
    if how == "removed":
        home.rmdir()
    else:
        home.rename(tmp_path / "elsewhere")
    assert {("a", Signal.UNWATCHED), ("dir", Signal.UNWATCHED)} <= signals(wake)
    assert "a" in wake.reasons
    assert wake.seconds_to_poll() is not None
    home.mkdir()
    (home / "a.db").touch()
    told: set[tuple[str, Signal]] = set()
    while {("a", Signal.DATABASE_APPEARED), ("dir", Signal.LISTING_CHANGED)} - told:
        select.select([], [], [], wake.seconds_to_poll())
        told |= signals(wake)
    assert wake.reasons == {}
    assert wake.seconds_to_poll() is None
    (home / "a.db-wal").touch()
    assert ("a", Signal.WAL_APPEARED) in signals(wake)


def test_a_database_in_a_directory_that_does_not_exist_yet_is_polled(
    tmp_path: Path, wake: Wake
) -> None:
    """The reason is kept for the log, and inotify takes over once there is something to watch."""
    wake.watch("a", tmp_path / "later" / "a.db")
    assert "does not exist" in wake.reasons["a"]
    (tmp_path / "later").mkdir()
    app = application(tmp_path / "later" / "a.db")
    while wake.reasons:
        select.select([], [], [], wake.seconds_to_poll())
        wake.read_events()
    app.execute("insert into t values (1)")
    assert ("a", Signal.WRITTEN) in signals(wake)
    app.close()


class Starved(inotify_simple.INotify):  # type: ignore[misc]
    """A kernel that has ``left`` watches to give."""

    left = 0

    def add_watch(self, path: str, mask: int) -> int:
        if not Starved.left:
            raise OSError(28, "No space left on device")
        Starved.left -= 1
        return int(super().add_watch(path, mask))


@pytest.mark.parametrize("left", [0, 1])
def test_a_shard_without_a_watch_is_polled_and_the_limit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """ENOSPC at any of its watches: no half-watched shard stays behind, and commits are told."""
    monkeypatch.setattr(inotify_simple, "INotify", Starved)
    app = application(tmp_path / "a.db")
    Starved.left = left
    bare = InotifyWake()
    with pytest.raises(UnavailableError, match=r"fs\.inotify\.max_user_watches"):
        bare.watch("a", tmp_path / "a.db")
    assert bare.watches == 0
    bare.close()

    Starved.left = left
    wake = open_wake()
    wake.watch("a", tmp_path / "a.db")
    assert "max_user_watches" in wake.reasons["a"]
    app.execute("insert into t values (1)")
    select.select([], [], [], wake.seconds_to_poll())
    assert ("a", Signal.WRITTEN) in signals(wake)
    wake.close()
    app.close()


def test_without_an_inotify_instance_everything_is_polled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """max_user_instances is exhausted by others: the daemon still starts, and says why it polls."""

    def refuse(**_options: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(inotify_simple, "INotify", refuse)
    wake = open_wake()
    assert wake.fd is None
    assert "max_user_instances" in wake.reasons[""]
    wake.watch("a", tmp_path / "a.db")
    assert wake.seconds_to_poll() is not None
    wake.close()


def test_one_file_as_two_shards_is_refused(tmp_path: Path, wake: Wake) -> None:
    """The message names both shards."""
    wake.watch("a", tmp_path / "a.db")
    with pytest.raises(ConflictError, match="shards a and b are the same file"):
        wake.watch("b", tmp_path / "a.db")
    wake.unwatch("b")
    (tmp_path / "a.db").touch()
    assert signals(wake) == {("a", Signal.DATABASE_APPEARED)}


def test_two_names_of_one_file_come_and_go_in_any_order(tmp_path: Path, wake: Wake) -> None:
    """Hard links share the kernel's watch of the file; only one of them can be attached."""
    app = application(tmp_path / "a.db")
    (tmp_path / "b.db").hardlink_to(tmp_path / "a.db")
    for first, second in (("a", "b"), ("b", "a")):
        for key in ("a", "b"):
            wake.watch(key, tmp_path / f"{key}.db")
            wake.watch_opens(key)
        wake.ignore_opens(first)
        wake.ignore_opens(second)
        wake.watch_opens(second)
        wake.unwatch(first)
        wake.unwatch(second)
    assert wake.read_events() == []
    app.close()


def test_what_was_asked_for_moves_along_from_inotify_to_polling_and_back(tmp_path: Path) -> None:
    """Paused and opens-wanted are wishes of the owner, not of the half that happens to serve."""
    home = tmp_path / "home"
    home.mkdir()
    wake = Wake(inotify=InotifyWake(), polling=PollingWake())
    wake.watch("a", home / "a.db")
    wake.watch_opens("a")
    home.rename(tmp_path / "elsewhere")
    assert ("a", Signal.UNWATCHED) in signals(wake)
    home.mkdir()
    app = application(home / "a.db")
    told: set[tuple[str, Signal]] = set()
    while wake.reasons:
        select.select([], [], [], wake.seconds_to_poll())
        told |= signals(wake)
    wake.read_events()
    (home / "a.db").read_bytes()
    assert wake.read_events() == [("a", Signal.OPENED)]
    app.close()
    wake.close()


def test_a_recheck_runs_from_half_a_millisecond_doubling_to_a_minute() -> None:
    """A commit whose sync takes long is found soon after it ends, by a bounded number of looks."""
    recheck = Recheck()
    recheck.after_wake("a", 0)
    looks = []
    now_ns = 0
    while (wait := recheck.seconds_to_next(now_ns)) is not None:
        now_ns += round(wait * 1e9)
        assert recheck.due(now_ns) == ["a"]
        looks.append(now_ns)
    assert looks[0] == RECHECK_NS_MIN
    assert all(later <= 2 * earlier + RECHECK_NS_MIN for earlier, later in pairwise(looks))
    assert RECHECK_NS_MAX <= looks[-1] <= 2 * RECHECK_NS_MAX
    assert len(looks) <= 20


def test_a_later_wake_starts_the_series_anew_and_forget_ends_it() -> None:
    """The commit that a look finds may not be the one whose write woke us."""
    recheck = Recheck()
    recheck.after_wake("a", 0)
    recheck.after_wake("b", 0)
    assert recheck.due(RECHECK_NS_MIN) == ["a", "b"]
    recheck.after_wake("a", RECHECK_NS_MIN)
    assert recheck.due(2 * RECHECK_NS_MIN) == ["a"]
    recheck.forget("a")
    recheck.forget("b")
    assert recheck.due(10 * RECHECK_NS_MAX) == []
    assert recheck.seconds_to_next(0) is None
