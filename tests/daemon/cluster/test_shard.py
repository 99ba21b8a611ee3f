"""Whole shards of several nodes: born, deposed, cut off, replaced, and at work again."""

import itertools
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio

from basenet.control.surface import ShardState
from basenet.daemon.cluster import leaving, pausing
from basenet.daemon.cluster import shard as shards
from basenet.daemon.cluster.placing import Placing
from basenet.daemon.cluster.settling import Place
from basenet.daemon.framer import instant
from basenet.engine.events import TransferWanted
from basenet.errors import ConflictError, UnavailableError, UsageError
from basenet.testing.tracecheck import check_together
from basenet.testing.traces import collect
from basenet.wire.message import Vote
from basenet.wire.payload import Voter
from tests.daemon.cluster.joined import Joined, Member, WatchedGates, joined, trace_of
from tests.daemon.cluster.nodes import SHARD, eventually
from tests.sqlite.application import Application, ApplicationError


async def born(here: Joined) -> Member:
    """Start everybody, and commit a table of one row; return the writer."""
    for one in here.others():
        one.start()
    writer = await here.writer()
    await here.commit(writer, "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
    await here.agree()
    return writer


def rows(member: Member) -> list[int]:
    """What an application reads at ``member``."""
    with Application(member.path) as application:
        return [row[0] for row in application.sql("SELECT x FROM t ORDER BY x")]


async def read(member: Member) -> list[int]:
    return await trio.to_thread.run_sync(rows, member)


def voter(here: Member, there: Member) -> Voter:
    """What ``here`` knows of ``there``."""
    voters = here.term.driver.replica.ballot.config.voters
    return next(one for one in voters if one.key == there.station.me.key)


async def test_an_empty_shard_is_born_and_one_writes_for_all(tmp_path: Path, socket: Path) -> None:
    """Three journals with one chain, three files with the same pages; the others are fenced."""
    async with joined(tmp_path, socket) as here:
        writer = await born(here)
        assert len({one.shard.lineage for one in here.others()}) == 1
        for one in here.others():
            assert await read(one) == [1]
            assert one.shard.state is ShardState.CAPTURING
            assert one.shard.error is None
            assert one.shard.has_settled()
            assert one.shard.progress.final_seq == one.seq() == 3
            assert one is writer or one.shard.applied_seq == 3
            assert one.shard.finalized == 2
            assert one.shard.submitted == (2 if one is writer else 0)
        other = here.others(writer)[0]
        with (
            Application(other.path, timeout_s=0) as application,
            pytest.raises(ApplicationError, match="locked"),
        ):
            await trio.to_thread.run_sync(application.sql, "INSERT INTO t VALUES (9)")
        with pytest.raises(ConflictError, match="not the writer"):
            await other.shard.capture_now()


async def test_a_shard_at_rest_is_renewed_until_it_is_handed_over(
    tmp_path: Path, socket: Path
) -> None:
    """Renewed without a look, again and again, and written to at once; then somebody else leads."""
    async with joined(tmp_path, socket) as here:
        first = await born(here)
        gates = first.room.gates
        assert isinstance(gates, WatchedGates)
        await eventually(lambda: gates.renewals >= 5)
        gate = first.term._gate
        assert gate is not None
        assert gate.rest is not None
        await here.commit(first, "INSERT INTO t VALUES (2)")
        await eventually(lambda: gate.rest is not None)
        target = here.others(first)[0]
        first.term.driver.step(TransferWanted(target=target.station.me.key))
        assert gate.rest is None
        second = await here.writer(but=first)
        await here.commit(second, "INSERT INTO t VALUES (3)")
        await here.agree()
        assert await read(first) == [1, 2, 3]


async def test_the_death_of_the_writer_and_its_return(tmp_path: Path, socket: Path) -> None:
    """Another one writes; what comes back goes on from its journal, and may write later."""
    async with joined(tmp_path, socket) as here:
        first = await born(here)
        await first.kill()
        second = await here.writer(but=first)
        await here.commit(second, "INSERT INTO t VALUES (2)")
        await here.agree(*here.others(first))
        first.start()
        seq = await here.agree()
        assert await read(first) == [1, 2]
        await second.kill()
        third = await here.writer(but=second)
        assert await here.commit(third, "INSERT INTO t VALUES (3)") == seq + 1
        second.start()
        await here.agree()
        assert await read(second) == [1, 2, 3]
        assert [one.shard.orphaned for one in here.others()] == [0, 0, 0]


async def test_who_ends_in_order_hands_over_what_is_committed(tmp_path: Path, socket: Path) -> None:
    """All that was committed is final first, and nobody waits for an election."""
    async with joined(tmp_path, socket) as here:
        first = await born(here)
        with Application(first.path) as application:
            for number in range(2, 6):
                statement = f"INSERT INTO t VALUES ({number})"
                await trio.to_thread.run_sync(application.sql, statement)
        view = first.term.driver.replica.ballot.view
        await first.stop()
        assert first.shard.term is None
        assert first.shard._file is None
        second = await here.writer(but=first)
        assert second.term.driver.replica.ballot.view > view
        await here.agree(*here.others(first))
        assert await read(second) == [1, 2, 3, 4, 5]
        with pytest.raises(UnavailableError, match="shutting down"):
            await first.shard.capture_now()
        assert first.shard.has_settled()


async def test_who_knows_nothing_of_the_others_asks_before_it_hands_over(
    tmp_path: Path, socket: Path
) -> None:
    """As after a restart: on an idle shard nothing tells how far its voters are."""
    async with joined(tmp_path, socket) as here:
        first = await born(here)
        await here.agree()
        replica = first.term.driver.replica
        for one in here.others(first):
            first.term.on_unreachable(one.station.hello)
        voters = replica.ballot.config.voters
        assert [replica.is_caught_up(voter, instant()) for voter in voters].count(True) == 1
        await first.stop()
        second = await here.writer(but=first)
        ballot = second.term.driver.replica.ballot
        assert second.shard.released_at(ballot.epoch, ballot.view) is not None


async def test_who_hands_over_loses_nothing_of_an_application_that_goes_on(
    tmp_path: Path, socket: Path
) -> None:
    """It is locked out first: nobody seals what it commits while its frames become final."""
    async with joined(tmp_path, socket) as here:
        first = await born(here)
        target = here.others(first)[0]
        numbers = itertools.count(3)
        with Application(first.path, timeout_s=0) as application:

            async def go_on() -> None:
                while True:
                    statement = f"INSERT INTO t VALUES ({next(numbers)})"
                    await trio.to_thread.run_sync(application.sql, statement)

            here.net.drops = lambda _from, to, what: to == first.name and isinstance(what, Vote)
            await trio.to_thread.run_sync(application.sql, "INSERT INTO t VALUES (2)")
            await eventually(lambda: first.record().local_last == 3)
            first.term.hand_over_soon(voter(first, target))
            with trio.fail_after(30), pytest.raises(ApplicationError, match="locked"):
                await go_on()
        here.net.drops = lambda _sender, _to, _what: False
        second = await here.writer(but=first)
        assert second is target
        await here.agree()
        assert await read(second) == list(range(1, next(numbers) - 1))
        assert first.journal.orphans(SHARD) == ()


async def test_a_transaction_that_goes_on_refuses_a_transfer(
    tmp_path: Path, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be lost; the application commits it, and goes on writing here."""
    monkeypatch.setattr(leaving, "_SEAL_S", 0.2)
    async with joined(tmp_path, socket) as here:
        first = await born(here)
        target = voter(first, here.others(first)[0])
        with Application(first.path) as application:
            await trio.to_thread.run_sync(application.sql, "BEGIN", "INSERT INTO t VALUES (2)")
            with pytest.raises(UnavailableError, match="in the middle of a transaction"):
                await leaving.yield_to(first.term, target)
            await leaving.try_to_yield(first.term, target)
            await trio.to_thread.run_sync(application.sql, "COMMIT")
        await eventually(lambda: first.is_writer)
        await here.commit(first, "INSERT INTO t VALUES (3)")
        await here.agree()
        assert await read(first) == [1, 2, 3]


async def test_what_a_deposed_writer_had_alone_is_an_orphan(tmp_path: Path, socket: Path) -> None:
    """Cut off, it is fenced; the others go on; it keeps what it lost, is mended, writes again."""
    async with joined(tmp_path, socket) as here:
        first = await born(here)
        with Application(first.path, timeout_s=0) as application:
            here.net.drops = lambda sender, _to, _what: sender == first.name
            statement = "INSERT INTO t VALUES (101), (102), (103)"
            await trio.to_thread.run_sync(application.sql, statement)
            await eventually(lambda: first.record().local_last == 3)
            here.cut(first)
            await eventually(lambda: not first.is_writer)
            with pytest.raises(ApplicationError, match="locked"):
                await trio.to_thread.run_sync(application.sql, "INSERT INTO t VALUES (104)")
            second = await here.writer(but=first)
            await here.commit(second, "INSERT INTO t VALUES (2)")
            here.net.drops = lambda _sender, _to, _what: False
            here.heal()
            await here.agree()
            assert await trio.to_thread.run_sync(application.sql, "SELECT x FROM t") == [[1], [2]]
        (row,) = first.journal.orphans(SHARD)
        assert (row.first_local, row.last_local, row.commits, row.kept_seq) == (3, 3, 1, 3)
        assert (first.shard.orphaned, first.shard.kept_seq) == (1, 3)
        assert [one.journal.orphans(SHARD) for one in here.others(first)] == [(), ()]
        second.term.driver.step(TransferWanted(target=first.station.me.key))
        again = await here.writer(but=second)
        assert again is first
        await here.commit(first, "INSERT INTO t VALUES (3)")
        assert first.record().local_last == 4
        await here.agree()
        assert await read(second) == [1, 2, 3]


async def test_frames_that_a_dead_writer_spread_are_not_lost(tmp_path: Path, socket: Path) -> None:
    """A quorum holds them, though nobody was told so: the next writer makes them final."""
    async with joined(tmp_path, socket) as here:
        first = await born(here)
        here.net.drops = lambda _from, to, what: to == first.name and isinstance(what, Vote)
        with Application(first.path) as application:
            await trio.to_thread.run_sync(application.sql, "INSERT INTO t VALUES (2)")
            others = here.others(first)
            await eventually(lambda: all(one.record().heads for one in others))
        assert first.seq() == 3
        await first.kill()
        here.net.drops = lambda _from, _to, _what: False
        second = await here.writer(but=first)
        await here.commit(second, "INSERT INTO t VALUES (3)")
        first.start()
        await here.agree()
        assert await read(first) == [1, 2, 3]
        assert first.journal.orphans(SHARD) == ()


async def test_who_was_away_too_long_gets_a_state(tmp_path: Path, socket: Path) -> None:
    """The frames are gone from the others: it adopts a certified state, and mends its file."""
    async with joined(tmp_path, socket) as here:
        writer = await born(here)
        late = here.others(writer)[0]
        await late.kill()
        for number in range(2, 5):
            await here.commit(writer, f"INSERT INTO t VALUES ({number})")
        seq = await here.agree(*here.others(late))
        for one in here.others(late):
            one.journal.set_archived(SHARD, seq, keep_bytes=0)
            assert one.journal.first_seq(SHARD) > 4
        late.start()
        assert await here.agree() == seq
        assert await read(late) == [1, 2, 3, 4]
        assert late.journal.first_seq(SHARD) == seq + 1  # nothing is in its log
        await here.commit(writer, "INSERT INTO t VALUES (5)")
        await here.agree()
        assert await read(late) == [1, 2, 3, 4, 5]


async def test_what_is_applied_while_a_state_is_adopted_is_not_believed(
    tmp_path: Path, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who catches up says where the file stands until the term is over; those frames are gone."""
    real, places = Placing.note_nowhere, list[Place]()

    async def note(self: Placing) -> None:
        await real(self)
        place = late.term.settler.place
        places.append(place)
        await self.node.journalist.perform(
            lambda journal: journal.set_place(
                SHARD, place, cursor=None, local_last=None, intent=None
            )
        )

    async with joined(tmp_path, socket) as here:
        writer = await born(here)
        late = here.others(writer)[0]
        await late.kill()
        for number in range(2, 5):
            await here.commit(writer, f"INSERT INTO t VALUES ({number})")
        seq = await here.agree(*here.others(late))
        for one in here.others(late):
            one.journal.set_archived(SHARD, seq, keep_bytes=0)
        monkeypatch.setattr(Placing, "note_nowhere", note)
        late.start()
        assert await here.agree() == seq
        assert [place[0] for place in places] == [3]
        assert await read(late) == [1, 2, 3, 4]


async def test_what_was_not_final_is_kept_when_a_state_is_adopted(
    tmp_path: Path, socket: Path
) -> None:
    """A writer dies with commits of its own, and the others drop their frames meanwhile."""
    async with joined(tmp_path, socket) as here:
        first = await born(here)
        here.net.drops = lambda sender, _to, _what: sender == first.name
        with Application(first.path) as application:
            await trio.to_thread.run_sync(application.sql, "INSERT INTO t VALUES (101)")
            await eventually(lambda: first.record().local_last == 3)
        await first.kill()
        here.net.drops = lambda _from, _to, _what: False
        second = await here.writer(but=first)
        await here.commit(second, "INSERT INTO t VALUES (2)", "INSERT INTO t VALUES (3)")
        seq = await here.agree(*here.others(first))
        for one in here.others(first):
            one.journal.set_archived(SHARD, seq, keep_bytes=0)
        first.start()
        await here.agree()
        assert await read(first) == [1, 2, 3]
        (row,) = first.journal.orphans(SHARD)
        assert (row.first_local, row.last_local, row.commits) == (3, 3, 1)
        assert first.shard.orphaned == 1
        await first.kill()
        first.start()
        await here.agree()
        assert len(first.journal.orphans(SHARD)) == 1


@pytest.mark.parametrize("is_strange", [False, True])
async def test_what_a_crash_left_unsettled_is_settled_first(
    tmp_path: Path, socket: Path, *, is_strange: bool
) -> None:
    """Known to be final, and neither in the log nor in the file; a stranger may have written."""
    async with joined(tmp_path, socket) as here:
        writer = await born(here)
        other = here.others(writer)[0]
        journalist, real = other.node.journalist, other.node.journalist.settle

        async def hang(*_: object) -> None:
            await trio.sleep_forever()

        journalist.settle = hang  # type: ignore[method-assign,assignment]
        seq = await here.commit(writer, "INSERT INTO t VALUES (2)")
        await eventually(lambda: other.record().ballot.final.height == seq)
        assert other.record().tip.seq == seq - 1
        await other.kill()
        journalist.settle = real  # type: ignore[method-assign]
        if is_strange:
            with Application(other.path) as application:
                await trio.to_thread.run_sync(application.sql, "INSERT INTO t VALUES (666)")
        other.start()
        await here.agree()
        assert await read(other) == [1, 2]
        bundles = [row.commits for row in other.journal.orphans(SHARD)]
        kept = list(other.path.parent.glob("app.db.before-*"))
        # Which of the two depends on whether the log tells what the stranger did.
        assert len(bundles) == int(is_strange)
        assert len(kept) <= len(bundles)
        await here.commit(writer, "INSERT INTO t VALUES (3)")
        await here.agree()


def another_database(path: Path) -> None:
    """A whole database of somebody else's, in WAL mode."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE mine (secret)")
        connection.execute("INSERT INTO mine VALUES ('theirs')")
        connection.commit()


async def test_a_file_put_in_place_of_ours_is_never_written_to(
    tmp_path: Path, socket: Path
) -> None:
    """Nothing is injected into it; once it is moved away the shard's own comes back."""
    async with joined(tmp_path, socket) as here:
        writer = await born(here)
        other = here.others(writer)[0]
        stranger = tmp_path / "stranger.db"
        another_database(stranger)
        before = stranger.read_bytes()
        stranger.replace(other.path)
        await here.commit(writer, "INSERT INTO t VALUES (2)")
        await eventually(lambda: other.shard.state is ShardState.STOPPED)
        assert other.shard.error is not None
        assert "was replaced by another file" in other.shard.error
        assert str(other.path) in other.shard.error
        assert other.path.read_bytes() == before
        other.path.replace(stranger)
        await here.agree()
        assert await read(other) == [1, 2]
        assert other.shard.error is None
        assert stranger.read_bytes() == before


async def test_a_file_put_in_place_while_nobody_looked_is_kept_aside(
    tmp_path: Path, socket: Path
) -> None:
    """The shard's own comes back from the journal; the stranger's lies beside it, whole."""
    async with joined(tmp_path, socket) as here:
        writer = await born(here)
        other = here.others(writer)[0]
        await other.kill()
        for file in other.path.parent.glob("app.db*"):
            file.unlink()
        another_database(other.path)
        other.start()
        await here.commit(writer, "INSERT INTO t VALUES (2)")
        await here.agree()
        assert await read(other) == [1, 2]
        (kept,) = other.path.parent.glob("app.db.before-*")
        with closing(sqlite3.connect(kept)) as connection:
            assert connection.execute("SELECT secret FROM mine").fetchall() == [("theirs",)]


async def test_what_a_stranger_commits_to_a_replica_is_an_orphan(
    tmp_path: Path, socket: Path
) -> None:
    """Both daemon and guardian were away. Its commits go into a bundle, and out of the file."""
    async with joined(tmp_path, socket) as here:
        writer = await born(here)
        other = here.others(writer)[0]
        await other.stop()
        with Application(other.path) as application:
            await trio.to_thread.run_sync(application.sql, "INSERT INTO t VALUES (666)")
            await here.commit(writer, "INSERT INTO t VALUES (2)")
            other.start()
            await here.agree()
            found = await trio.to_thread.run_sync(application.sql, "SELECT x FROM t ORDER BY x")
            assert found == [[1], [2]]
        (row,) = other.journal.orphans(SHARD)
        assert row.commits == 1
        assert other.shard.orphaned == 1


async def test_nobody_votes_before_others_compared_its_journal(
    tmp_path: Path, socket: Path
) -> None:
    """B50: the shard waits in front of its term, and begins as soon as they have."""
    async with joined(tmp_path, socket) as here:
        here["c"].station.is_greeted = False
        for one in here.others():
            one.start()
        writer = await here.writer()
        assert writer.name in "ab"
        await here.commit(writer, "CREATE TABLE t (x)")
        await eventually(lambda: here["c"].shard.record is not None)
        assert here["c"].shard.term is None
        here["c"].station.is_greeted = True
        await here.agree()


async def test_a_suspended_shard_begins_no_term_until_it_is_resumed(
    tmp_path: Path, socket: Path
) -> None:
    """It ends where it stands and hands over; then it takes part again."""
    async with joined(tmp_path, socket) as here:
        first = await born(here)
        with trio.fail_after(30):
            await first.shard.suspend()
        assert first.shard.term is None
        second = await here.writer(but=first)
        await here.commit(second, "INSERT INTO t VALUES (2)")
        assert first.shard.term is None
        first.shard.resume()
        await here.agree()
        assert await read(first) == [1, 2]


async def test_a_file_to_which_nobody_wrote_yet_is_no_strangers(
    tmp_path: Path, socket: Path
) -> None:
    """An empty shard's nodes end and come back, in order or not: nothing is put aside."""
    async with joined(tmp_path, socket) as here:
        for one in here.others():
            one.start()
        await here.writer()
        await here.agree()
        for end in (Member.stop, Member.kill):
            for one in here.others():
                await end(one)
                one.start()
                await here.agree()
                assert one.term.repair.rounds == 0
                assert list(one.path.parent.glob("app.db.before-*")) == []
        assert await here.commit(await here.writer(), "CREATE TABLE t (x)") == 2
        await here.agree()


async def test_the_steps_of_all_nodes_are_those_of_the_specification(
    tmp_path: Path, socket: Path
) -> None:
    """BASE_TRACE_FILE: births, handing over, a partition, restarts; all traces are one run."""
    async with joined(tmp_path, socket) as here:
        first = await born(here)
        here.cut(first)
        second = await here.writer(but=first)
        await here.commit(second, "INSERT INTO t VALUES (2)")
        here.heal()
        await here.agree()
        await second.stop()
        await here.commit(await here.writer(but=second), "INSERT INTO t VALUES (3)")
        second.start()
        await here.agree()
        for one in here.others():
            await one.stop()
    (traces,) = collect(trace_of(tmp_path, name) for name in here.members).values()
    assert len(traces) == 3
    assert check_together(traces) == sum(map(len, traces)) - 2
    kinds = [event["ev"] for events in traces for event in events]
    assert kinds.count("Genesis") == 3
    assert kinds.count("Restart") == 4
    assert kinds.count("Start") >= 3
    assert kinds.count("Final") >= 3 * 4


async def test_a_damaged_journal_stops_the_shard_and_says_what_to_do(
    tmp_path: Path, socket: Path
) -> None:
    """Page hashes that do not give the root of the last frame: no vote is built on them."""
    async with joined(tmp_path, socket) as here:
        writer = await born(here)
        other = here.others(writer)[0]
        await other.kill()
        with closing(sqlite3.connect(tmp_path / other.name / "data" / "journal.db")) as connection:
            connection.execute("UPDATE leaf SET hashes = zeroblob(length(hashes))")
            connection.commit()
        other.start()
        await eventually(lambda: other.shard.state is ShardState.STOPPED)
        assert "do not give the state root" in str(other.shard.error)
        await here.commit(writer, "INSERT INTO t VALUES (2)")
        await here.agree(*here.others(other))


async def test_a_term_that_fails_begins_again_and_its_sentence_is_shown(
    tmp_path: Path, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is unavailable is tried again soon, what is refused seldom; both are shown."""
    monkeypatch.setattr(shards, "RETRY_S", 0.01)
    monkeypatch.setattr(pausing, "REFUSED_RETRY_S", 0.02)
    async with joined(tmp_path, socket, "a") as here:
        alone = here["a"]
        errors = [UnavailableError("the disk is away"), UsageError("no such thing")]
        shown: list[tuple[ShardState, str | None]] = []
        real = shards.ClusterShard._greeted

        async def fail(self: shards.ClusterShard, record: object) -> None:
            if shown:
                assert self.state is shown[-1][0]
            if errors:
                error = errors.pop(0)
                is_soon = isinstance(error, UnavailableError)
                state = ShardState.STARTING if is_soon else ShardState.REFUSED
                shown.append((state, str(error)))
                raise error
            await real(self, record)  # type: ignore[arg-type]

        monkeypatch.setattr(shards.ClusterShard, "_greeted", fail)
        alone.start()
        writer = await here.writer()
        assert (writer, len(shown)) == (alone, 2)
        assert alone.shard.error is None
        assert alone.shard.state is ShardState.CAPTURING
