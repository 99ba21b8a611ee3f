"""Fences against real applications: who may write, when, and what is left when somebody dies."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from basenet.guardian.fence import Fence, FenceState
from basenet.guardian.header import repair_header
from basenet.guardian.keeper import LOOKS_MIN, Keeper
from basenet.guardian.protocol import (
    Close,
    Drop,
    Failed,
    Guard,
    Held,
    Ready,
    Renew,
    Replaced,
    Share,
    ToDaemon,
    decode,
    encode,
    pack_fences,
    renewals,
)
from basenet.guardian.waiters import Waiters
from basenet.sqlite import locks
from tests.sqlite.application import Application, ApplicationError

FENCE = 7


class Desk:
    """A keeper, what it told the daemon, and the locks that waited for."""

    def __init__(self) -> None:
        self.told: list[ToDaemon] = []
        self.locked: list[Fence] = []
        self.news = threading.Event()
        self.waiters = Waiters(self._on_locked)
        self.keeper = Keeper(
            tell=lambda message, _: self.told.append(message), wait_for=self.waiters.wait_for
        )
        self.now = 1_000

    def _on_locked(self, fence: Fence) -> None:
        self.locked.append(fence)
        self.news.set()

    def guard(self, path: Path, number: int = FENCE) -> None:
        found = path.stat()
        self.keeper.handle(
            Guard(fence=number, device=found.st_dev, inode=found.st_ino, path=path), self.now
        )

    def renew(self, until: int) -> None:
        self.keeper.handle(Renew(leases=((FENCE, until),)), self.now)

    def settle(self) -> None:
        """Wait for a lock that a thread waits for, and hand it to the keeper."""
        assert self.news.wait(20)
        self.news.clear()
        while self.locked:
            self.keeper.on_locked(self.locked.pop(), self.now)

    def take(self) -> list[ToDaemon]:
        told, self.told = self.told, []
        return told


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture
def app(path: Path) -> Iterator[Application]:
    """An ordinary application that gives up at once when it may not write."""
    with Application(path, timeout_s=0) as app:
        app.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
        yield app


@pytest.fixture
def desk(path: Path, app: Application) -> Iterator[Desk]:
    del app
    desk = Desk()
    desk.guard(path)
    yield desk
    desk.keeper.handle(Drop(fence=FENCE), desk.now)


def can_write(app: Application) -> bool:
    try:
        app.sql("INSERT INTO t VALUES (2)")
    except ApplicationError as error:
        if "database is locked" not in str(error):
            raise
        return False
    return True


def test_a_guarded_database_is_read_and_not_written(desk: Desk, app: Application) -> None:
    """The fence closes at once; readers notice nothing."""
    assert desk.take() == [Held(fence=FENCE, ticket=0)]
    assert not can_write(app)
    assert app.sql("SELECT count(*) FROM t") == [[1]]


def test_a_lease_opens_the_fence_until_its_end(desk: Desk, app: Application) -> None:
    """Released until T means: open before T, closed from T, without a word from the daemon."""
    desk.take()
    desk.renew(until=2_000)
    assert can_write(app)
    assert desk.keeper.tick(1_999) == 2_000
    assert can_write(app)
    desk.renew(until=2_500)
    assert desk.keeper.tick(2_001) == 2_500
    assert can_write(app)
    assert desk.keeper.tick(2_500) is None
    assert not can_write(app)
    assert desk.take() == []


def test_a_release_that_comes_too_late_opens_nothing(desk: Desk, app: Application) -> None:
    """A daemon that was stopped and goes on sends old instants (P18)."""
    desk.now = 3_000
    desk.renew(until=2_999)
    assert not can_write(app)


def test_the_daemon_may_close_early(desk: Desk, app: Application) -> None:
    """CLOSE is answered by HELD once the lock is ours."""
    desk.renew(until=9_000)
    desk.take()
    desk.keeper.handle(Close(fence=FENCE, ticket=3), desk.now)
    assert desk.take() == [Held(fence=FENCE, ticket=3)]
    assert not can_write(app)


def test_an_open_transaction_is_waited_for(desk: Desk, app: Application) -> None:
    """It may commit; none begins after it; HELD is said only then."""
    desk.renew(until=2_000)
    desk.take()
    app.sql("BEGIN IMMEDIATE", "INSERT INTO t VALUES (3)")
    desk.keeper.handle(Close(fence=FENCE, ticket=3), desk.now)
    assert desk.take() == []
    app.sql("COMMIT")
    desk.settle()
    assert desk.take() == [Held(fence=FENCE, ticket=3)]
    assert not can_write(app)
    assert app.sql("SELECT max(x) FROM t") == [[3]]


def test_a_release_while_a_thread_waits_wins(desk: Desk, app: Application) -> None:
    """The thread gets the lock later all the same, and it is given back at once."""
    desk.renew(until=2_000)
    app.sql("BEGIN IMMEDIATE")
    desk.keeper.tick(2_000)
    desk.now = 2_100
    desk.renew(until=3_000)
    app.sql("COMMIT")
    desk.settle()
    assert can_write(app)
    desk.keeper.tick(3_000)
    assert not can_write(app)


def test_a_fence_dropped_while_a_thread_waits_lets_go_later(desk: Desk, app: Application) -> None:
    """Its descriptors are closed only when nobody waits on them."""
    desk.renew(until=2_000)
    app.sql("BEGIN IMMEDIATE")
    desk.keeper.tick(2_000)
    desk.keeper.handle(Drop(fence=FENCE), desk.now)
    app.sql("COMMIT")
    desk.settle()
    assert can_write(app)


def test_the_last_close_of_an_application_leaves_the_fence(path: Path) -> None:
    """Neither -wal nor -shm is removed under the fence, so a new connection is fenced, too (P2)."""
    desk = Desk()
    with Application(path, timeout_s=0) as app:
        app.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
        desk.guard(path)
    assert Path(f"{path}-shm").exists()
    with Application(path, timeout_s=0) as app:
        assert not can_write(app)
        assert app.sql("SELECT count(*) FROM t") == [[0]]
    desk.keeper.handle(Drop(fence=FENCE), desk.now)


def test_a_killed_application_leaves_a_database_that_can_be_read(path: Path) -> None:
    """With nobody else connected, the next one reads at once instead of after ten seconds (P3)."""
    desk = Desk()
    app = Application(path, timeout_s=0)
    app.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    desk.guard(path)
    app.kill()
    with Application(path, timeout_s=0) as app:
        assert app.sql("SELECT count(*) FROM t") == [[0]]
        assert not can_write(app)
    desk.keeper.handle(Drop(fence=FENCE), desk.now)


@pytest.mark.parametrize("torn", ["copy 1 is old", "copy 2 is half written"])
def test_a_torn_header_is_repaired_when_the_fence_closes(path: Path, torn: str) -> None:
    """Readers are served at once, with the newest state that is whole."""
    with Application(path, timeout_s=0) as app:
        app.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
        shm = os.open(f"{path}-shm", os.O_RDWR)
        old = os.pread(shm, 48, 0)
        app.sql("INSERT INTO t VALUES (1)")
        os.pwrite(shm, old, 0)
        if torn == "copy 2 is half written":
            os.pwrite(shm, os.urandom(20), 48)
        desk = Desk()
        desk.guard(path)
        assert app.sql("SELECT count(*) FROM t") == [[1 if torn == "copy 1 is old" else 0]]
        assert not repair_header(shm)
        os.close(shm)
        desk.keeper.handle(Drop(fence=FENCE), desk.now)


def test_a_header_that_the_daemon_died_over_is_repaired_at_once(path: Path) -> None:
    """The daemon applied under the closed fence; its readers do not wait for the next daemon."""
    with Application(path, timeout_s=0) as app:
        app.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
        desk = Desk()
        desk.guard(path)
        shm = os.open(f"{path}-shm", os.O_RDWR)
        os.pwrite(shm, os.urandom(20), 0)
        desk.keeper.forget_daemon()
        assert not repair_header(shm)
        os.close(shm)
        assert app.sql("SELECT count(*) FROM t") == [[1]]
        assert not can_write(app)


def test_a_header_of_which_nothing_is_right_is_left_to_sqlite(tmp_path: Path) -> None:
    """There is nothing to roll forward to."""
    shm = tmp_path / "shm"
    shm.write_bytes(os.urandom(200))
    descriptor = os.open(shm, os.O_RDWR)
    assert not repair_header(descriptor)
    os.close(descriptor)


def test_a_replaced_file_is_told_and_stays_fenced(desk: Desk, path: Path, app: Application) -> None:
    """The old file's locks stay, nothing opens it again, and the daemon hears of it once (Q11)."""
    desk.take()
    path.rename(path.with_name("moved.db"))
    path.write_bytes(b"")
    desk.keeper.look_around()
    desk.keeper.look_around()
    assert desk.take() == [Replaced(fence=FENCE)]
    desk.renew(until=9_000)
    assert not can_write(app)
    path.unlink()
    path.with_name("moved.db").rename(path)


def test_the_file_that_replaced_another_is_fenced_as_soon_as_it_is_in_use(
    desk: Desk, path: Path
) -> None:
    """The application that opens it finds it locked, and the next GUARD finds it held (Q11)."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").rename(f"{path}.old{suffix}")
    desk.keeper.look_around()
    desk.keeper.look_around()
    with Application(path, timeout_s=0) as second:
        second.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
        desk.keeper.look_around()
        desk.keeper.look_around()
        assert not can_write(second)
        desk.renew(until=9_000)
        assert not can_write(second)
        desk.take()
        desk.guard(path, number=8)
        assert desk.take() == [Held(fence=8, ticket=0)]
        assert not can_write(second)
        desk.keeper.handle(Renew(leases=((8, 9_000),)), desk.now)
        assert can_write(second)
        desk.keeper.handle(Drop(fence=8), desk.now)


def test_an_heir_that_is_replaced_itself_is_let_go(desk: Desk, path: Path) -> None:
    """Only what lies at the path is fenced besides what was meant."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").rename(f"{path}.old{suffix}")
    desk.keeper.look_around()
    with Application(path, timeout_s=0) as second:
        second.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
        for _ in range(3):
            desk.keeper.look_around()
        assert not can_write(second)
        path.rename(f"{path}.second")
        desk.keeper.look_around()
        assert can_write(second)
    Path(f"{path}.second").unlink()


def test_files_are_looked_at_in_turn(tmp_path: Path) -> None:
    """A look around with very many fences stays short, and each file has its turn."""
    desk = Desk()
    paths = [tmp_path / f"{number}.db" for number in range(150)]
    for number, path in enumerate(paths):
        path.touch()
        Path(f"{path}-shm").touch()
        desk.guard(path, number=number)
    desk.keeper.look_around()
    desk.take()
    for path in paths:
        path.unlink()
    desk.keeper.look_around()
    assert len(desk.take()) == LOOKS_MIN
    for _ in range(150 // LOOKS_MIN):
        desk.keeper.look_around()
    told = [each.fence for each in desk.take()]
    assert len(told) == len(set(told)) == len(paths) - LOOKS_MIN
    for number in range(len(paths)):
        desk.keeper.handle(Drop(fence=number), desk.now)


@pytest.mark.parametrize(("count", "looks"), [(3, 3), (600, 6), (10_000, 100)])
def test_every_file_is_looked_at_within_ten_seconds(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, count: int, looks: int
) -> None:
    """Whatever their number: a hundred looks around, ten a second, are one round."""
    seen: list[object] = []
    monkeypatch.setattr(desk.keeper, "_look", seen.append)
    monkeypatch.setattr(desk.keeper, "_entries", {number: number for number in range(count)})
    desk.keeper.look_around()
    assert len(set(seen)) == looks


def test_a_renewal_makes_the_next_look_at_the_fences_later(desk: Desk, app: Application) -> None:
    """It is due at the first instant that was named, and finds what holds by then."""
    desk.renew(until=2_000)
    assert desk.keeper.tick(1_000) == 2_000
    desk.renew(until=3_000)
    assert desk.keeper.tick(1_999) == 2_000
    assert desk.keeper.tick(2_000) == 3_000
    assert can_write(app)
    assert desk.keeper.tick(3_000) is None
    assert not can_write(app)


def test_a_second_owner_is_refused(desk: Desk, path: Path) -> None:
    """Two data directories, or two containers, cannot look after one database."""
    del desk
    other = Desk()
    other.guard(path)
    (told,) = other.take()
    assert isinstance(told, Failed)
    assert "looked after by another basenet" in told.reason


def test_another_file_than_the_daemon_means_is_refused(path: Path, app: Application) -> None:
    """The inode is compared, so a rename between the two opens is found."""
    del app
    desk = Desk()
    desk.keeper.handle(Guard(fence=FENCE, device=1, inode=2, path=path), desk.now)
    (told,) = desk.take()
    assert isinstance(told, Failed)
    assert "was replaced" in told.reason


def test_a_new_daemon_finds_the_fence_closed_all_the_time(
    desk: Desk, path: Path, app: Application
) -> None:
    """The daemon dies and another comes: the lock does not open in between."""
    desk.renew(until=9_000)
    desk.take()
    desk.keeper.forget_daemon()
    assert not can_write(app)
    desk.renew(until=9_000)
    assert not can_write(app)
    desk.guard(path)
    assert desk.take() == [Held(fence=FENCE, ticket=0)]
    assert not can_write(app)


def test_a_database_that_is_held_exclusively_makes_the_fence_fail(tmp_path: Path) -> None:
    """It cannot be fenced, and the sentence says why."""
    path = tmp_path / "app.db"
    path.write_bytes(b"")
    Path(f"{path}-shm").write_bytes(b"")
    holder = os.open(path, os.O_RDWR)
    assert locks.try_lock(holder, locks.SHARED_FIRST_BYTE, length=locks.SHARED_BYTES)
    desk = Desk()
    desk.guard(path)
    (told,) = desk.take()
    assert isinstance(told, Failed)
    assert "locking_mode=EXCLUSIVE" in told.reason
    os.close(holder)


def test_a_database_without_a_log_makes_the_fence_fail(tmp_path: Path) -> None:
    """Somebody must have opened it before."""
    path = tmp_path / "app.db"
    path.write_bytes(b"")
    desk = Desk()
    desk.guard(path)
    (told,) = desk.take()
    assert isinstance(told, Failed)
    assert "No such file" in told.reason


@pytest.mark.parametrize(
    "message",
    [
        Guard(fence=1, device=2**40, inode=2**50, path=Path("/data/ü \udcff.db")),
        Drop(fence=2**32 - 1),
        Close(fence=0, ticket=2**32 - 1),
        Renew(leases=((1, 2), (3, 2**63))),
        Renew(leases=()),
        Share(until=2**63, fences=pack_fences([1, 2**32 - 1])),
        Share(until=0, fences=b""),
        Ready(),
        Held(fence=4, ticket=9),
        Failed(fence=5, is_conflict=True, reason="the fence of /x cannot be set up; do something"),
        Replaced(fence=6),
    ],
)
def test_messages_survive_the_socket(message: ToDaemon) -> None:
    """What is encoded is decoded, any path included."""
    assert decode(encode(message)) == message


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x00",
        b"\xff" * 9,
        b"\x01",
        b"\x03\0\0\0\1",
        b"\x04\0",
        b"\x11\0\0\0\1",
        b"\x05\0\0\0\1",
        b"\x06\0\0",
        b"\x06" + bytes(8) + b"\0\0\1",
    ],
)
def test_a_packet_that_is_no_message_is_told(packet: bytes) -> None:
    """A bug at the other end, and no reason to end."""
    with pytest.raises(ValueError, match="is no message"):
        decode(packet)


def test_many_renewals_are_cut_into_packets() -> None:
    """A packet has a bound; nothing is lost at the seams."""
    leases = [(number, number + 1) for number in range(20_001)]
    packets = list(renewals(leases))
    assert [len(packet.leases) for packet in packets] == [8_000, 8_000, 4_001]
    assert [lease for packet in packets for lease in packet.leases] == leases


def test_fences_that_share_a_lease_are_opened_and_kept_open_like_others(
    desk: Desk, app: Application
) -> None:
    """Those that nobody knows, or knows no more, are passed over."""
    desk.take()

    def share(until: int) -> None:
        fences = pack_fences([FENCE + 1, FENCE])
        desk.keeper.handle(Share(until=until, fences=fences), desk.now)

    share(until=2_000)
    assert can_write(app)
    share(until=2_500)
    share(until=1_900)
    assert desk.keeper.tick(2_001) == 2_500
    assert can_write(app)
    assert desk.keeper.tick(2_500) is None
    assert not can_write(app)
    desk.now = 3_000
    share(until=2_999)
    assert not can_write(app)
    share(until=4_000)
    assert can_write(app)
    desk.keeper.handle(Close(fence=FENCE, ticket=7), desk.now)
    assert not can_write(app)
    assert desk.take() == [Held(fence=FENCE, ticket=7)]


def test_the_guardian_has_no_room_for_large_libraries() -> None:
    """It imports none of trio, apsw, numpy, so that it stays small and hardly ever fails."""
    code = (
        "import sys, basenet.guardian.process; "
        "bad = {'trio', 'apsw', 'numpy', 'cryptography'} & set(sys.modules); "
        "print(sorted(bad)); "
        "print(next(l for l in open('/proc/self/status') if l.startswith('VmRSS')).split()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    bad, rss_kib = done.stdout.splitlines()
    assert bad == "[]"
    assert int(rss_kib) <= 15 * 1024


def test_the_state_of_a_fence_is_a_word() -> None:
    """`status` shows it."""
    assert [str(state) for state in FenceState] == ["closed", "closing", "open", "replaced"]
