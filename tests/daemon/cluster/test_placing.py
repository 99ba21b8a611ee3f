"""Where a file stands when a term begins: at its place, ahead, elsewhere, or nowhere."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from basenet.daemon.cluster.branch import Branch
from basenet.daemon.cluster.file import ReplicaFile
from basenet.daemon.cluster.frames import Frames
from basenet.daemon.cluster.placing import Found, Placing, capture_all, unsettled_of
from basenet.daemon.cluster.settling import changes_of
from basenet.engine.adoption import NOWHERE
from basenet.journal.records import ReplicaRecord
from basenet.sqlite.captured import Captured
from basenet.units import FrameHash, Seq
from basenet.wire.merkle import StateTree
from basenet.wire.payload import decode_config
from tests.daemon.cluster.lines import PAGE_SIZE, Line, a_line, at_bench
from tests.daemon.cluster.test_settling import settle
from tests.daemon.node import running_node
from tests.fakes.branching import SHARD, ballot_of
from tests.sqlite.application import Application

MORE = "INSERT INTO t (v) VALUES ('more')"


@dataclass
class Seen:
    """What was found, what the journal says then, and what a capture from there yields."""

    found: Found
    record: ReplicaRecord
    captured: list[Captured]


async def history(folder: Path, line: Line, *, commits: int = 1) -> ReplicaRecord:
    """Let the journal begin, and the file come to the end of a few commits; all is closed then."""
    async with at_bench(folder, line) as bench:
        for rows in (line.create(), *(line.commit() for _ in range(commits))):
            await settle(bench, line.keep(bench.journal, rows))
        await bench.settler._rest()
        return bench.now()


async def find(folder: Path, record: ReplicaRecord | None = None, *, voters: int = 1) -> Seen:
    """Open the file as a term does; ``voters``: how many the CONFIG has."""
    async with running_node(folder, shards=f"app={folder / 'app.db'}") as node:
        journal = node.journalist.journal
        loaded = journal.load_replica(SHARD)
        assert loaded is not None
        record = record or loaded
        config = record.ballot.config
        more = tuple(replace(config.voters[0], node_id=f"more{n}") for n in range(1, voters))
        ballot = replace(record.ballot, config=replace(config, voters=config.voters + more))
        file = ReplicaFile(
            shard=SHARD, path=folder / "app.db", guard=None, limiter=trio.CapacityLimiter(4)
        )
        is_new = await file.open(page_size=PAGE_SIZE)
        try:
            tree = StateTree(record.page_size, journal.leaves(SHARD))
            placing = Placing(
                node=node,
                shard=SHARD,
                file=file,
                branch=Branch(tree, (record.tip.seq, record.tip.hash)),
                frames=Frames(SHARD, node.journalist),
            )
            found = await placing.find(replace(record, ballot=ballot), is_file_new=is_new)
            captured: list[Captured] = []
            if found.cursor is not None:
                captured = await trio.to_thread.run_sync(capture_all, file.database, found.cursor)
            after = journal.load_replica(SHARD)
            assert after is not None
            return Seen(found, after, captured)
        finally:
            await file.close()


def application(folder: Path, *statements: str) -> None:
    """Run statements in a process of its own, which closes the file as its last user."""
    with Application(folder / "app.db") as app:
        app.sql(*statements)


def copies(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("app.db.before-*"))


def remove(folder: Path) -> None:
    for path in folder.glob("app.db*"):
        path.unlink()


@pytest.mark.parametrize("voters", [1, 3])
async def test_a_file_that_nobody_touched_is_at_its_place(tmp_path: Path, voters: int) -> None:
    """Also after its last user closed it, which empties the log: the pages tell."""
    async with a_line(tmp_path) as line:
        record = await history(tmp_path, line)
        for statements in ((), ("PRAGMA wal_checkpoint(TRUNCATE)",)):
            if statements:
                await trio.to_thread.run_sync(application, tmp_path, *statements)
            seen = await find(tmp_path, voters=voters)
            assert seen.found.place == record.place == (record.tip.seq, record.tip.hash)
            assert seen.found.items in ((), [])
            assert seen.captured == []
        assert list(copies(tmp_path)) == []


async def test_what_is_committed_behind_its_place_waits_for_a_frame(tmp_path: Path) -> None:
    """Capture goes on where the journal says, and yields just that."""
    async with a_line(tmp_path) as line:
        record = await history(tmp_path, line)
        with Application(tmp_path / "app.db") as app:
            await trio.to_thread.run_sync(app.sql, MORE, MORE)
            seen = await find(tmp_path, voters=3)
        assert seen.found.place == record.place
        assert seen.found.items == ()
        assert sum(piece.commits for piece in seen.captured) == 2
        assert seen.record.place == record.place


@pytest.mark.parametrize("is_closed", [False, True])
async def test_changes_beside_another_log_are_a_lone_voters_own(
    tmp_path: Path, *, is_closed: bool
) -> None:
    """Told by pages, in front of the cursor; what comes behind it is captured."""
    async with a_line(tmp_path) as line:
        record = await history(tmp_path, line)
        await trio.to_thread.run_sync(
            application, tmp_path, MORE, "PRAGMA wal_checkpoint(TRUNCATE)"
        )
        if is_closed:
            seen = await find(tmp_path)
        else:
            with Application(tmp_path / "app.db") as app:
                await trio.to_thread.run_sync(app.sql, MORE)
                seen = await find(tmp_path)
        assert seen.found.place == record.place
        pgnos = {int(pgno) for piece in seen.found.items for pgno in piece.pgnos}
        assert pgnos
        assert len(pgnos) < record.db_pages
        assert seen.captured == []
        assert list(copies(tmp_path)) == []


async def test_changes_beside_another_log_are_a_strangers_among_peers(tmp_path: Path) -> None:
    """Kept aside as a whole file, and ours is mended: that is durable before anything is done."""
    async with a_line(tmp_path) as line:
        record = await history(tmp_path, line)
        await trio.to_thread.run_sync(
            application, tmp_path, MORE, "PRAGMA wal_checkpoint(TRUNCATE)"
        )
        content = (tmp_path / "app.db").read_bytes()
        seen = await find(tmp_path, voters=3)
        assert seen.found == Found(NOWHERE)
        assert seen.record.place == NOWHERE
        (kept,) = copies(tmp_path)
        assert kept.read_bytes()[100:] == content[100:]
        assert (tmp_path / "app.db").read_bytes() == content
        again = await find(tmp_path, voters=3)
        assert again.found == Found(NOWHERE)
        assert list(copies(tmp_path)) == [kept]
        assert record.place != NOWHERE


async def test_a_file_of_another_page_size_is_another_file(tmp_path: Path) -> None:
    """Whatever its pages hold."""
    async with a_line(tmp_path) as line:
        record = await history(tmp_path, line)
        remove(tmp_path)
        await trio.to_thread.run_sync(
            application,
            tmp_path,
            "PRAGMA page_size=512",
            "PRAGMA journal_mode=WAL",
            "CREATE TABLE other (x)",
        )
        seen = await find(tmp_path)
        assert seen.found.place == record.place
        assert {piece.page_size for piece in seen.found.items} == {512}
        seen = await find(tmp_path, voters=3)
        assert seen.found == Found(NOWHERE)


@pytest.mark.parametrize("voters", [1, 3])
async def test_a_file_that_is_gone_is_made_anew_at_no_frame(tmp_path: Path, voters: int) -> None:
    """It is mended, from frames or peers."""
    async with a_line(tmp_path) as line:
        await history(tmp_path, line)
        remove(tmp_path)
        seen = await find(tmp_path, voters=voters)
        assert seen.found == Found(NOWHERE)
        assert seen.record.place == NOWHERE


@pytest.mark.parametrize("voters", [1, 3])
async def test_a_file_to_which_nobody_wrote_yet_is_at_the_genesis(
    tmp_path: Path, voters: int
) -> None:
    """When it was made just now, and when it was closed since: nothing is kept, nothing mended."""
    async with a_line(tmp_path) as line:
        async with running_node(tmp_path, shards=f"app={tmp_path / 'app.db'}") as node:
            line.begin(node.journalist.journal)
        genesis = line.chain.tip.head
        for _ in range(3):
            seen = await find(tmp_path, voters=voters)
            assert seen.found == Found((genesis.seq, genesis.hash))
            assert seen.record.cursor is not None
        assert list(copies(tmp_path)) == []


@pytest.mark.parametrize(
    "statement", ["CREATE VIEW v AS SELECT 1", "PRAGMA user_version=3", "PRAGMA application_id=3"]
)
async def test_a_single_page_may_be_somebodys_work(tmp_path: Path, statement: str) -> None:
    """Of a lone voter it is framed; among peers it is kept aside."""
    async with a_line(tmp_path) as line:
        async with running_node(tmp_path, shards=f"app={tmp_path / 'app.db'}") as node:
            line.begin(node.journalist.journal)
        await find(tmp_path)
        await trio.to_thread.run_sync(application, tmp_path, statement)
        seen = await find(tmp_path)
        assert [piece.db_pages for piece in seen.found.items] == [1]
        seen = await find(tmp_path, voters=3)
        assert seen.found == Found(NOWHERE)
        assert len(list(copies(tmp_path))) == 1


async def test_a_file_behind_the_log_is_not_told_by_pages(tmp_path: Path) -> None:
    """No tree tells the state below the end of the log: it is kept aside, by whomever it is."""
    async with a_line(tmp_path) as line:
        record = await history(tmp_path, line, commits=2)
        first = line.chain.frame(record.tip.seq - 1).head
        await trio.to_thread.run_sync(application, tmp_path, "PRAGMA wal_checkpoint(TRUNCATE)")
        seen = await find(tmp_path, replace(record, place=(first.seq, first.hash)))
        assert seen.found == Found(NOWHERE)
        assert len(list(copies(tmp_path))) == 1


async def test_a_place_that_no_frame_has_is_none(tmp_path: Path) -> None:
    """Nor one inside a run: nothing is compared, nothing kept, all of it is mended."""
    async with a_line(tmp_path) as line:
        record = await history(tmp_path, line)
        await trio.to_thread.run_sync(application, tmp_path, "PRAGMA wal_checkpoint(TRUNCATE)")
        lost = (Seq(record.tip.seq + 1), FrameHash(b"l" * 32))
        seen = await find(tmp_path, replace(record, place=lost))
        assert seen.found == Found(NOWHERE)
        rows = line.commit(pieces=2)
        piece = rows[0].head
        inside = replace(record, place=(piece.seq, piece.hash), heads=(piece,))
        seen = await find(tmp_path, inside)
        assert seen.found == Found(NOWHERE)
        assert list(copies(tmp_path)) == []


@pytest.mark.parametrize("voters", [1, 3])
async def test_what_was_voted_for_above_the_log_is_part_of_the_place(
    tmp_path: Path, voters: int
) -> None:
    """A writer's file is ahead of the final frame: its pages are compared with that state."""
    async with a_line(tmp_path) as line:
        async with at_bench(tmp_path, line) as bench:
            await settle(bench, line.keep(bench.journal, line.create()))
            await bench.settler._rest()
            rows = line.commit()
            bench.journal.keep([line.branching.step(rows)])
            prepared = await bench.file.prepare(changes_of([row.record for row in rows]))
            assert prepared is not None
            await bench.file.inject(prepared)
            cursor = (await bench.file.cursor()).encode()
            place = (rows[-1].head.seq, rows[-1].head.hash)
            bench.journal.set_place(SHARD, place, cursor=cursor, local_last=None, intent=None)
        await trio.to_thread.run_sync(application, tmp_path, "PRAGMA wal_checkpoint(TRUNCATE)")
        seen = await find(tmp_path, voters=voters)
        assert seen.found.place == place
        assert seen.found.items in ((), [])
        assert list(copies(tmp_path)) == []


async def test_a_batch_that_only_its_intent_tells_of_is_found_by_pages(tmp_path: Path) -> None:
    """A crash left the place behind, and an application that closed last left no log."""
    async with a_line(tmp_path) as line:
        async with at_bench(tmp_path, line) as bench:
            await settle(bench, line.keep(bench.journal, line.create()))
            await bench.settler._rest()
            before = bench.now().place
            await settle(bench, line.keep(bench.journal, line.commit()))
            assert bench.now().place == before
            assert bench.now().intent is not None
            tip = bench.now().tip
        await trio.to_thread.run_sync(application, tmp_path, "PRAGMA wal_checkpoint(TRUNCATE)")
        seen = await find(tmp_path, voters=3)
        assert seen.found.place == seen.record.place == (tip.seq, tip.hash)
        assert seen.record.intent is None
        assert seen.captured == []
        assert list(copies(tmp_path)) == []


async def test_what_a_crash_left_unsettled_is_the_way_to_the_final_frame(tmp_path: Path) -> None:
    """From the end of the log upwards; nothing where the way has a gap."""
    async with a_line(tmp_path) as line:
        record = await history(tmp_path, line)
        rows = [row.head for _ in range(3) for row in line.commit()]
        config = decode_config(line.chain.frames[0].payload)
        final = replace(record, ballot=ballot_of(config, rows[1]), heads=tuple(rows))
        assert unsettled_of(final) == rows[:2]
        assert unsettled_of(replace(record, heads=tuple(rows))) == []
        unknown = replace(record, ballot=ballot_of(config, rows[2]), heads=tuple(rows[:2]))
        assert unsettled_of(unknown) == []
