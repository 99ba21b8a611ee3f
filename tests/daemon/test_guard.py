"""The daemon's end of the guardian, against a guardian played by hand over a real socket pair."""

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from basenet.daemon.cluster.guard import Fence, Guard, inherited_connection
from basenet.engine.events import Instant
from basenet.errors import ConflictError, UnavailableError, UsageError
from basenet.guardian import protocol
from basenet.guardian.process import make_pair
from basenet.guardian.protocol import Close, Drop, Failed, Held, Ready, Renew, Replaced, Share
from basenet.sqlite import locks
from basenet.sqlite.attach import attach
from tests.sqlite.application import Application

WAIT_S = 20


class Guardian:
    """Says and hears messages; the test decides which."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.setblocking(False)

    async def hear(self) -> protocol.ToGuardian:
        await trio.lowlevel.wait_readable(self.connection)
        packet = self.connection.recv(protocol.PACKET_BYTES_MAX)
        return cast("protocol.ToGuardian", protocol.decode(packet))

    def hears_nothing(self) -> bool:
        try:
            self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False

    def say(self, message: protocol.ToDaemon, descriptors: tuple[int, ...] = ()) -> None:
        socket.send_fds(self.connection, [protocol.encode(message)], list(descriptors))


@pytest.fixture
def pair() -> Iterator[tuple[Guardian, Guard]]:
    ours, theirs = make_pair()
    yield Guardian(ours), Guard(theirs)
    ours.close()
    theirs.close()


def touch(path: Path) -> os.stat_result:
    """Make the two files whose locks make a fence, unless they are there."""
    path.touch()
    Path(f"{path}-shm").touch()
    return path.stat()


@asynccontextmanager
async def fenced(guardian: Guardian, guard: Guard, path: Path) -> AsyncIterator[Fence]:
    """A running guard with one fence, whose descriptors are those of two files at ``path``."""
    found = touch(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guard.run)
        made: list[Fence] = []

        async def make() -> None:
            made.append(await guard.fence(path, (found.st_dev, found.st_ino)))

        with trio.fail_after(WAIT_S):
            async with trio.open_nursery() as asking:
                asking.start_soon(make)
                asked = await guardian.hear()
                assert asked == protocol.Guard(
                    fence=1, device=found.st_dev, inode=found.st_ino, path=path
                )
                opened = tuple(os.open(each, os.O_RDWR) for each in (path, f"{path}-shm"))
                guardian.say(Held(fence=1, ticket=0), opened)
                for each in opened:
                    os.close(each)
            yield made[0]
        nursery.cancel_scope.cancel()


async def test_a_fence_is_held_when_it_is_handed_out(
    pair: tuple[Guardian, Guard], tmp_path: Path
) -> None:
    """GUARD is answered by HELD, with duplicates that no child of ours gets."""
    async with fenced(*pair, tmp_path / "app.db") as fence:
        assert fence.is_held
        assert fence.is_open_until is None
        await fence.held()
        assert pair[0].hears_nothing()


async def test_how_long_a_fence_was_waited_for_is_measured(
    pair: tuple[Guardian, Guard], tmp_path: Path
) -> None:
    """From asking to holding, each time that it was asked; a void answer is none."""
    guardian, guard = pair
    async with fenced(guardian, guard, tmp_path / "app.db") as fence:
        assert sum(guard.fence_wait.get_sample().counts) == 1
        fence.renew(Instant(1_000))
        guard.flush()
        await guardian.hear()
        guardian.say(Held(fence=1, ticket=0))  # late
        await trio.testing.wait_all_tasks_blocked()
        assert sum(guard.fence_wait.get_sample().counts) == 1
        before_s = guard.fence_wait.get_sample().total
        fence.close()
        await guardian.hear()
        await trio.sleep(0.02)
        guardian.say(Held(fence=1, ticket=1))
        await fence.held()
        sample = guard.fence_wait.get_sample()
        assert sum(sample.counts) == 2
        assert sample.total - before_s >= 0.02


async def test_renewals_of_a_flush_are_one_packet(
    pair: tuple[Guardian, Guard], tmp_path: Path
) -> None:
    """Only the newest lease of a fence is sent, and nothing before the flush."""
    guardian, guard = pair
    async with fenced(guardian, guard, tmp_path / "app.db") as fence:
        fence.renew(Instant(1_000))
        fence.renew(Instant(2_000))
        fence.renew(Instant(1_500))
        assert not fence.is_held
        assert fence.is_open_until == 2_000
        assert guardian.hears_nothing()
        guard.flush()
        assert await guardian.hear() == Renew(leases=((1, 2_000),))
        guard.flush()
        assert guardian.hears_nothing()


async def test_a_group_is_renewed_by_one_packet_for_all(
    pair: tuple[Guardian, Guard], tmp_path: Path
) -> None:
    """Who closes it leaves it and is told; by itself it is renewed as ever."""
    guardian, guard = pair
    group, left = guard.group(), []
    async with fenced(guardian, guard, tmp_path / "app.db") as fence:
        assert not fence.join(group, lambda: left.append("held"))
        fence.renew(Instant(1_000))
        guard.flush()
        assert await guardian.hear() == Renew(leases=((1, 1_000),))
        assert fence.join(group, lambda: left.append("closed"))
        assert not fence.join(group, lambda: left.append("twice"))
        group.renew(Instant(2_000))
        group.renew(Instant(1_500))
        assert fence.is_open_until == 2_000
        guard.flush()
        assert await guardian.hear() == Share(until=2_000, fences=protocol.pack_fences([1]))
        guard.flush()
        assert guardian.hears_nothing()
        fence.close()
        assert left == ["closed"]
        assert fence.is_open_until == 2_000  # until the guardian says that it is held
        assert await guardian.hear() == Close(fence=1, ticket=1)
        group.renew(Instant(3_000))
        await trio.sleep(0.02)
        guard.flush()
        assert guardian.hears_nothing()
        fence.renew(Instant(4_000))
        assert fence.join(group, lambda: left.append("parted"))
        fence.part()
        fence.part()
        assert left == ["closed"]
        group.disband()


async def test_a_large_group_is_cut_into_packets(
    pair: tuple[Guardian, Guard],
) -> None:
    """And begins anew where somebody leaves meanwhile."""
    guardian, guard = pair
    group = guard.group()
    for number in range(20_001):
        group.add(number)
    group.renew(Instant(5))
    packets = []
    while packet := group.next_packet():
        packets.append(protocol.decode(packet))
        if len(packets) == 2:
            group.remove(0)
    sizes = [len(packet.numbers()) for packet in packets if isinstance(packet, Share)]
    assert sizes == [8_000, 8_000, 8_000, 8_000, 4_000]
    last = [packet.numbers() for packet in packets[2:] if isinstance(packet, Share)]
    assert [number for numbers in last for number in numbers] == list(range(1, 20_001))
    guard.flush()
    assert guardian.hears_nothing()


async def test_held_is_what_answers_the_newest_question(
    pair: tuple[Guardian, Guard], tmp_path: Path
) -> None:
    """A HELD that crossed a renewal must not let the daemon write beside the application."""
    guardian, guard = pair
    async with fenced(guardian, guard, tmp_path / "app.db") as fence:
        fence.renew(Instant(1_000))
        guard.flush()
        assert await guardian.hear() == Renew(leases=((1, 1_000),))
        fence.close()
        fence.close()
        assert await guardian.hear() == Close(fence=1, ticket=1)
        guardian.say(Held(fence=1, ticket=1))  # on its way while we renew
        fence.renew(Instant(2_000))
        guard.flush()
        assert await guardian.hear() == Renew(leases=((1, 2_000),))
        await trio.testing.wait_all_tasks_blocked()
        assert not fence.is_held
        assert guardian.hears_nothing()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fence.held)
            assert await guardian.hear() == Close(fence=1, ticket=2)
            guardian.say(Held(fence=1, ticket=1))  # late
            await trio.testing.wait_all_tasks_blocked()
            assert not fence.is_held
            guardian.say(Held(fence=1, ticket=2))
        assert fence.is_held


async def test_nobody_opens_a_fence_that_somebody_waits_for(
    pair: tuple[Guardian, Guard], tmp_path: Path
) -> None:
    """Who waits to write wins over who renews; what was collected is taken back."""
    guardian, guard = pair
    async with fenced(guardian, guard, tmp_path / "app.db") as fence:
        fence.renew(Instant(1_000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fence.held)
            assert await guardian.hear() == Close(fence=1, ticket=1)
            fence.renew(Instant(3_000))
            guard.flush()
            assert guardian.hears_nothing()
            guardian.say(Held(fence=1, ticket=1))
        assert fence.is_held


async def test_flushes_that_follow_one_another_share_a_packet(
    pair: tuple[Guardian, Guard], tmp_path: Path
) -> None:
    """A thousand shards that renew one by one do not send a thousand packets."""
    guardian, guard = pair
    async with fenced(guardian, guard, tmp_path / "app.db") as fence:
        for until in range(1, 1_001):
            fence.renew(Instant(until))
            guard.flush()
        assert await guardian.hear() == Renew(leases=((1, 1),))
        assert await guardian.hear() == Renew(leases=((1, 1_000),))
        assert guardian.hears_nothing()


async def test_a_guardian_that_does_not_read_keeps_nobody_waiting(
    pair: tuple[Guardian, Guard], tmp_path: Path
) -> None:
    """What has no room waits in its order, and a lease is the newest one when it is sent."""
    guardian, guard = pair
    filling = 5_000
    async with fenced(guardian, guard, tmp_path / "app.db") as fence:
        for _ in range(filling):
            guard.ready()
        fence.renew(Instant(1_000))
        guard.flush()
        fence.renew(Instant(2_000))
        guard.flush()
        heard = [await guardian.hear() for _ in range(filling + 1)]
        assert heard == [*[Ready()] * filling, Renew(leases=((1, 2_000),))]
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert guardian.hears_nothing()


@pytest.mark.parametrize("is_conflict", [True, False])
async def test_a_fence_that_fails_says_why(
    pair: tuple[Guardian, Guard], tmp_path: Path, *, is_conflict: bool
) -> None:
    """Somebody else's database is a conflict; what may pass is worth another try."""
    guardian, guard = pair
    expected = ConflictError if is_conflict else UnavailableError

    async def ask() -> None:
        with pytest.raises(expected, match="the reason"):
            await guard.fence(tmp_path / "app.db", (1, 2))

    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guard.run)
            async with trio.open_nursery() as asking:
                asking.start_soon(ask)
                assert isinstance(await guardian.hear(), protocol.Guard)
                guardian.say(Failed(fence=1, is_conflict=is_conflict, reason="the reason"))
            assert await guardian.hear() == Drop(fence=1)
            nursery.cancel_scope.cancel()


async def test_a_fence_that_is_given_up_keeps_its_descriptors(
    pair: tuple[Guardian, Guard], tmp_path: Path
) -> None:
    """To close one would drop the locks of our SQLite connections to the file (POSIX)."""
    guardian, guard = pair
    with Application(tmp_path / "app.db") as app:
        app.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
        database = attach(tmp_path / "app.db", is_guarded=True)
        database.connections[0].execute("BEGIN; SELECT * FROM t").fetchall()
        found = app.path.stat()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guard.run)
            with trio.move_on_after(0) as scope:
                await guard.fence(app.path, (found.st_dev, found.st_ino))
            assert scope.cancelled_caught
            opened = os.open(app.path, os.O_RDWR)
            guardian.say(Held(fence=1, ticket=0), (opened,))
            await trio.testing.wait_all_tasks_blocked()
            seen = app.run(
                "import fcntl, struct\n"
                "with open(db, 'r+b') as file:\n"
                "    ask = struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0x40000002, 510, 0)\n"
                "    answer = fcntl.fcntl(file, fcntl.F_GETLK, ask)\n"
                "result = struct.unpack('hhqqi4x', answer)[4]"
            )
            assert seen == os.getpid()
            nursery.cancel_scope.cancel()
        database.close()
        os.close(opened)


async def test_a_replaced_file_is_told_once_and_never_opened(
    pair: tuple[Guardian, Guard], tmp_path: Path
) -> None:
    """Who waits is released with the reason."""
    guardian, guard = pair
    told: list[bool] = []
    async with fenced(guardian, guard, tmp_path / "app.db") as fence:
        fence.on_replaced = lambda: told.append(fence.is_replaced)
        fence.renew(Instant(1_000))

        async def wait() -> None:
            with pytest.raises(ConflictError, match="was replaced"):
                await fence.held()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            assert isinstance(await guardian.hear(), Close)
            guardian.say(Replaced(fence=1))
        assert told == [True]
        fence.renew(Instant(2_000))
        guard.flush()
        assert guardian.hears_nothing()


async def test_a_fence_is_dropped_after_its_database_was_closed(
    pair: tuple[Guardian, Guard], tmp_path: Path
) -> None:
    """The other way round would drop SQLite's locks, so it is refused."""
    guardian, guard = pair
    path = tmp_path / "app.db"
    with Application(path) as app:
        app.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
        async with fenced(guardian, guard, path) as fence:
            database = attach(path, is_guarded=True)
            with pytest.raises(AssertionError, match="before it is closed"):
                fence.drop()
            database.close()
            fence.drop()
            fence.drop()
            assert await guardian.hear() == Drop(fence=1)
            assert not fence.is_held
            with pytest.raises(UnavailableError):
                await fence.held()


async def test_the_end_of_the_guardian_locks_everything_and_ends_the_daemon(
    pair: tuple[Guardian, Guard], tmp_path: Path
) -> None:
    """An open transaction is waited for; the node is told at once."""
    guardian, guard = pair
    path = tmp_path / "app.db"
    told: list[bool] = []

    async def play() -> None:
        async with fenced(guardian, guard, path) as fence:
            guard.on_gone = lambda: told.append(fence.is_held)
            fence.renew(Instant(2**62))
            holder = os.open(f"{path}-shm", os.O_RDWR)
            assert locks.try_lock(holder, locks.WAL_WRITE_BYTE)
            guardian.connection.close()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert told == [False]
            os.close(holder)
            await fence.held()
            other = os.open(f"{path}-shm", os.O_RDWR)
            assert not locks.try_lock(other, locks.WAL_WRITE_BYTE)
            os.close(other)
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as raised:
        await play()
    assert raised.group_contains(
        UnavailableError, match="guardian, parent of this process, is gone"
    )


async def test_readiness_is_said(pair: tuple[Guardian, Guard]) -> None:
    """So that the application starts after us."""
    guardian, guard = pair
    guard.ready()
    assert await guardian.hear() == Ready()


def test_the_inherited_socket_is_found_and_not_passed_on() -> None:
    """It is the daemon's alone; anything else under that name is a mistake of the environment."""
    ours, theirs = make_pair()
    os.set_inheritable(theirs.fileno(), True)
    environment = {protocol.GUARDIAN_FD: str(theirs.fileno())}
    found = inherited_connection(environment)
    assert found is not None
    assert not os.get_inheritable(found.fileno())
    assert found.type == socket.SOCK_SEQPACKET
    found.detach()
    ours.close()
    theirs.close()
    assert inherited_connection({}) is None
    with open(os.devnull) as file:  # noqa: PTH123
        for wrong in ("x", "-1", str(file.fileno())):
            with pytest.raises(UsageError, match=protocol.GUARDIAN_FD):
                inherited_connection({protocol.GUARDIAN_FD: wrong})
