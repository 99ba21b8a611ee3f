# ruff: noqa: ASYNC240  (nothing else runs in these event loops)
"""A term over a real journal, file and guardian: strangers, states, and what a crash left."""

from pathlib import Path

import pytest
import trio

from basenet.daemon.cluster.adopting import (
    WHY_GONE,
    find_undecided,
    is_gone,
    read_electors,
    read_head,
)
from basenet.daemon.cluster.historian import Historian
from basenet.daemon.cluster.placing import REPLACED, find_head
from basenet.engine.adoption import NOWHERE
from basenet.engine.effects import Orphan, ServeFinal
from basenet.errors import CorruptionError
from basenet.units import FrameHash, PublicKeyBytes, Seq
from tests.daemon.cluster.alone import NoPeers, alone
from tests.daemon.cluster.lines import a_line, at_bench
from tests.daemon.cluster.nodes import eventually
from tests.daemon.cluster.test_settling import settle
from tests.daemon.cluster.test_writing import check, in_thread
from tests.daemon.node import running_node
from tests.fakes.branching import SHARD
from tests.sqlite.application import Application

PEER = PublicKeyBytes(b"p" * 32)


async def test_an_orphan_is_kept_and_the_file_goes_back(tmp_path: Path, socket: Path) -> None:
    """What was captured and is in no frame is in the bundle; the application may write again."""
    async with alone(tmp_path, socket) as here:
        await here.writable()
        with Application(tmp_path / "app.db") as app:
            await in_thread(app, "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
            seq = await here.captured()
            writer = here.term.writer
            assert writer is not None
            sealed = here.term.sealed_frames
            assert sealed > 0
            writer._is_finishing = True  # nothing is sealed any more
            await in_thread(app, "INSERT INTO t VALUES (2)", "INSERT INTO t VALUES (3)")
            assert await writer.follower.look()
            await here.term.orphan(Orphan(heads=(), kept_height=Seq(seq), certificate=None))
            await here.writable()
            assert here.term.writer is not writer
            assert here.term.sealed_frames == sealed
            assert await trio.to_thread.run_sync(app.sql, "SELECT x FROM t") == [[1]]
            (row,) = here.node.journalist.journal.orphans(SHARD)
            assert (row.first_local, row.last_local, row.commits) == (3, 4, 2)
        assert [name for name, _ in here.told].count("orphaned") == 1
    async with alone(tmp_path, socket) as here:
        await here.writable()
        with Application(tmp_path / "app.db") as app:
            await in_thread(app, "INSERT INTO t VALUES (4)")
            await here.captured()
        assert here.record().local_last == 5


async def test_a_file_at_no_frame_is_mended_from_the_journal(tmp_path: Path, socket: Path) -> None:
    """A crash came while it was: the next term begins it anew."""
    path = tmp_path / "app.db"
    async with alone(tmp_path, socket) as here:
        await here.writable()
        with Application(path) as app:
            await in_thread(app, "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
            await here.captured()
        await here.term._placing.note_nowhere()
    for file in tmp_path.glob("app.db*"):
        file.unlink()
    async with alone(tmp_path, socket) as here:
        await here.writable()
        check(here, 2)
        assert here.term.repair.rounds == 1
        assert here.record().place[1] == here.record().tip.hash
        with Application(path) as app:
            assert await trio.to_thread.run_sync(app.sql, "SELECT x FROM t") == [[1]]


async def test_commits_on_a_file_that_was_behind_are_kept_as_a_whole_file(
    tmp_path: Path, socket: Path
) -> None:
    """No tree tells on what they stand: they are no bundle, and the file is mended."""
    path = tmp_path / "app.db"
    with Application(path) as app:
        async with alone(tmp_path, socket) as here:
            await here.writable()
            await in_thread(app, "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
            await here.captured()
            early = here.record()
            await in_thread(app, "INSERT INTO t VALUES (2)")
            await here.captured()
        # As a crash between the log and the file leaves it, and an application without a fence.
        async with running_node(tmp_path, shards=f"app={path}") as node:
            node.journalist.journal.set_place(
                SHARD, early.place, cursor=early.cursor, local_last=None, intent=None
            )
        async with alone(tmp_path, socket) as here:
            await here.writable()
            (row,) = here.node.journalist.journal.orphans(SHARD)
            assert row.reason == REPLACED
            assert Path(row.path).name.startswith("app.db.before-")
            assert here.record().place[1] == here.record().tip.hash
            await in_thread(app, "INSERT INTO t VALUES (3)")
            await here.captured()
            assert await trio.to_thread.run_sync(app.sql, "SELECT x FROM t") == [[1], [2], [3]]


async def test_who_is_behind_is_told_or_sent_to_a_state(tmp_path: Path) -> None:
    """By the pieces of `history`, one stretch at a time to each."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        await settle(bench, line.keep(bench.journal, line.create()))
        peers = NoPeers()
        historian = Historian(
            journalist=bench.node.journalist,
            peers=peers,  # type: ignore[arg-type]
            shard=SHARD,
            lineage=line.chain.lineage,
            settler=bench.settler,
        )
        peers.is_coming = lambda *_: False
        peers.send_final = lambda *args, **_: peers.sent.append(("final", args)) or True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(historian.run)
            historian.put(ServeFinal(to=PEER, above_height=Seq(1)))
            await eventually(lambda: bool(peers.sent))
            bench.journal.set_archived(SHARD, 2)
            await eventually(lambda: not historian._serving)
            historian.put(ServeFinal(to=PEER, above_height=Seq(1)))
            await eventually(lambda: len(peers.sent) == 2)
            nursery.cancel_scope.cancel()
        (first, told), (second, gone) = peers.sent
        assert (first, len(told[3]), told[4].height) == ("final", 1, 2)
        assert second == "send_transfer"
        assert is_gone(gone[3])
        assert not is_gone(replace_number(7))


def replace_number(number: int) -> object:
    return type(WHY_GONE)(number=number, why=WHY_GONE.why)


async def test_what_the_file_holds_above_the_final_frame_is_undecided(tmp_path: Path) -> None:
    """None of it where the file is at no frame."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        await settle(bench, line.keep(bench.journal, line.create()))
        ballot = bench.now().ballot
        rows = [*line.commit(), *line.commit()]
        bench.journal.keep([line.branching.step(rows)])
        place = (rows[-1].head.seq, rows[-1].head.hash)
        heads = find_undecided(bench.journal, SHARD, ballot, place)
        assert [head.seq for head in heads] == [3, 4]
        assert find_undecided(bench.journal, SHARD, ballot, NOWHERE) == ()
        assert read_electors(bench.journal, bench.now()).head == line.chain.frames[0].head
        assert find_head(bench.journal, SHARD, place) == rows[-1].head
        tip = bench.now().tip
        assert find_head(bench.journal, SHARD, (tip.seq, tip.hash)) == tip
        stranger = (Seq(9), FrameHash(b"s" * 32))
        with pytest.raises(CorruptionError, match="lacks"):
            find_head(bench.journal, SHARD, stranger)
        with pytest.raises(CorruptionError, match="lacks"):
            read_head(bench.journal, SHARD, stranger[1])
