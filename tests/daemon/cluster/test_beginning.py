"""A lineage begins in a journal: with the file's state, a fetched one, or not at all."""

from pathlib import Path

import pytest
import trio

from basenet.control.members import MembersCommand, MembersVerb
from basenet.control.surface import ShardState
from basenet.daemon.cluster.beginning import Beginning
from basenet.daemon.cluster.transfer import FetchedState
from basenet.errors import UnavailableError
from basenet.journal.records import ReplicaRecord
from tests.daemon.cluster.joined import Joined, Member, joined
from tests.daemon.cluster.nodes import SHARD, eventually
from tests.sqlite.application import Application

FIRST, LATE = ("b", "c"), "a"
"""Who votes for the shard ``app`` where two do, and who does not."""
TABLE = ("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")


async def run(path: Path, *statements: str) -> list[list[object]]:
    """Let an application run statements in a process of its own."""

    def inside() -> list[list[object]]:
        with Application(path) as application:
            return application.sql(*statements)

    return await trio.to_thread.run_sync(inside)


async def read(member: Member) -> list[list[object]]:
    return await run(member.path, "SELECT x FROM t ORDER BY x")


def start(here: Joined, *names: str) -> None:
    for name in names or here.members:
        here[name].start()


def kept(member: Member) -> list[Path]:
    """What was kept of the file that lay there."""
    return list(member.path.parent.glob("app.db.before-*"))


async def test_what_one_node_has_is_the_genesis_and_the_others_fetch_it(
    tmp_path: Path, socket: Path
) -> None:
    """The file is adopted as it is; the others' journals begin with its state, and files follow."""
    async with joined(tmp_path, socket) as here:
        owner = here["b"]
        await run(owner.path, *TABLE, "INSERT INTO t VALUES (1), (printf('%.50000c', 'y'))")
        start(here)
        await here.agree()
        for one in here.others():
            assert (await read(one))[0] == [1]
            assert one.record().tip.seq == 1
            assert kept(one) == []
        await here.commit(
            await here.writer(), "DELETE FROM t WHERE x > 1", "INSERT INTO t VALUES (2)"
        )
        await here.agree()
        assert await read(here["a"]) == [[1], [2]]


async def test_who_comes_later_begins_with_the_state_of_that_time(
    tmp_path: Path, socket: Path
) -> None:
    """No frame from before it came is in its journal, and all that follow are."""
    async with joined(tmp_path, socket, replication=2) as here:
        await run(here["b"].path, *TABLE)
        start(here, *FIRST)
        writer = await here.writer()
        await here.commit(writer, "INSERT INTO t VALUES (1)")
        seq = await here.agree(*(here[name] for name in FIRST))
        late = here[LATE]
        late.start()
        assert await here.agree() == seq
        assert await read(late) == [[1]]
        assert late.journal.first_seq(SHARD) == seq + 1
        await here.commit(writer, "INSERT INTO t VALUES (2)")
        await here.agree()
        assert await read(late) == [[1], [2]]
        assert late.journal.first_seq(SHARD) == seq + 1


@pytest.mark.parametrize("is_before", [True, False])
async def test_a_crash_between_genesis_and_state_is_noticed(
    tmp_path: Path, socket: Path, monkeypatch: pytest.MonkeyPatch, *, is_before: bool
) -> None:
    """A journal that has the genesis and not the state behind it fetches that again."""
    jumps: list[ReplicaRecord] = []
    real = Beginning.jump

    async def jump(self: Beginning, record: ReplicaRecord, state: FetchedState) -> None:
        jumps.append(record)
        if len(jumps) > 1 or not is_before:
            await real(self, record, state)
        if len(jumps) == 1:
            raise UnavailableError("the machine stops here")

    async with joined(tmp_path, socket, replication=2) as here:
        await run(here["b"].path, *TABLE, "INSERT INTO t VALUES (1)")
        start(here, *FIRST)
        writer = await here.writer()
        await here.commit(writer, "INSERT INTO t VALUES (2)")
        await here.agree(*(here[name] for name in FIRST))
        monkeypatch.setattr(Beginning, "jump", jump)
        late = here[LATE]
        late.start()
        await here.agree()
        assert await read(late) == [[1], [2]]
        assert len(jumps) == (2 if is_before else 1)


async def test_rows_that_nobody_decided_against_are_not_touched(
    tmp_path: Path, socket: Path
) -> None:
    """The node says so and takes no part; once the file is away it gets the shard's data."""
    async with joined(tmp_path, socket, replication=2) as here:
        start(here, *FIRST)
        writer = await here.writer()
        await here.commit(writer, *TABLE[1:], "INSERT INTO t VALUES (1)")
        other, elsewhere = here[LATE], tmp_path / "moved.db"
        await run(other.path, *TABLE, "INSERT INTO t VALUES (666)")
        before = other.path.read_bytes()
        other.start()
        await eventually(lambda: other.shard.error is not None and "rows" in other.shard.error)
        assert other.shard.term is None
        assert other.shard.state in (ShardState.REFUSED, ShardState.STARTING)
        assert str(other.path) in str(other.shard.error)
        await other.kill()
        assert other.path.read_bytes() == before
        assert kept(other) == []
        for file in other.path.parent.glob("app.db-*"):
            file.unlink()
        other.path.replace(elsewhere)
        other.start()
        await here.agree()
        assert await read(other) == [[1]]
        assert await run(elsewhere, "SELECT x FROM t") == [[666]]


async def test_a_file_without_rows_is_kept_aside_and_replaced(tmp_path: Path, socket: Path) -> None:
    """A schema is nobody's data; still nothing is thrown away."""
    async with joined(tmp_path, socket, replication=2) as here:
        start(here, *FIRST)
        writer = await here.writer()
        await here.commit(writer, *TABLE[1:], "INSERT INTO t VALUES (1)")
        other = here[LATE]
        await run(other.path, *TABLE, "CREATE TABLE mine (y)")
        other.start()
        await here.agree()
        assert await read(other) == [[1]]
        (copy,) = kept(other)
        assert await run(copy, "SELECT name FROM sqlite_schema ORDER BY name") == [["mine"], ["t"]]


async def test_an_equal_file_is_adopted_and_not_fetched(tmp_path: Path, socket: Path) -> None:
    """A copy of the database of which the shard is born, brought there by hand."""
    async with joined(tmp_path, socket) as here:
        owner = here["a"]
        await run(owner.path, *TABLE, "INSERT INTO t VALUES (1)")
        for name in "bc":
            here[name].path.write_bytes(owner.path.read_bytes())
        start(here)
        await here.agree()
        for one in here.others():
            assert kept(one) == []
            assert one.term.repair.rounds == 0
            assert await read(one) == [[1]]


async def test_the_operator_decides_between_two_databases(tmp_path: Path, socket: Path) -> None:
    """`members init`: one counts, and what the other had lies beside it."""
    async with joined(tmp_path, socket) as here:
        for name, row in (("a", 1), ("c", 3)):
            await run(here[name].path, *TABLE, f"INSERT INTO t VALUES ({row})")
        start(here)
        await eventually(lambda: all("differ" in str(here[name].shard.error) for name in "ac"))
        assert here["a"].shard.lineage is None
        with trio.fail_after(30):
            await here["c"].shard.command(MembersCommand(verb=MembersVerb.INIT, nodes=("c",)))
        await here.agree()
        for one in here.others():
            assert await read(one) == [[3]]
        (copy,) = kept(here["a"])
        assert await run(copy, "SELECT x FROM t") == [[1]]
        assert kept(here["b"]) == kept(here["c"]) == []
