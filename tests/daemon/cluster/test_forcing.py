"""From which frame a forced lineage goes on, and that the file is brought there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from basenet.daemon.cluster.file import ReplicaFile
from basenet.daemon.cluster.forcing import Forcing, climb, plan_forced
from basenet.daemon.journalist import Journalist
from basenet.engine.adoption import NOWHERE
from basenet.engine.genesis import write_genesis
from basenet.errors import ConflictError
from basenet.journal.journal import Journal
from basenet.journal.records import BranchRow, FrameRow, ReplicaRecord, Step
from basenet.units import (
    ZERO_HASH,
    JournalId,
    Lineage,
    LocalNumber,
    Seq,
    TimestampNs,
)
from basenet.wire.frame import Flag, Frame, Head, Kind, seal
from basenet.wire.merkle import state_root
from basenet.wire.payload import ConfigPayload, Voter, encode_commit
from tests.daemon.cluster.files import Opened, opened, payload_of, root_of, whole_of
from tests.daemon.cluster.guarding import guardian
from tests.fakes.branching import SHARD, Branching, ballot_of, row_of
from tests.fakes.chain import signer
from tests.journal.replicas import begin, load
from tests.sqlite.replica import Source


def stage(folder: Path) -> tuple[ReplicaRecord, list[BranchRow], list[BranchRow]]:
    """Return a record whose log ends at the genesis, with two branches of three frames above."""
    story = Branching()
    journal = begin(folder, story)
    other = story.fork()
    other.chain.page()  # its commits are other ones
    own, foreign = story.own(3), other.others(3)
    assert own[0].head.hash != foreign[0].head.hash
    journal.keep([story.step(own), other.step(foreign)])
    return load(journal), own, foreign


def voted(record: ReplicaRecord, head: Head) -> ReplicaRecord:
    config = record.ballot.config
    return replace(record, ballot=ballot_of(config, record.tip, head))


def test_it_goes_on_from_the_highest_vote_with_the_path_to_it(tmp_path: Path) -> None:
    record, own, foreign = stage(tmp_path)
    for branch in (own, foreign):
        heads = [row.head for row in branch]
        at_log = replace(record, place=(record.tip.seq, record.tip.hash))
        plan = plan_forced(voted(at_log, heads[1]))
        assert plan.parent == heads[1]
        assert plan.path == tuple(heads[:2])


def test_without_a_vote_above_it_goes_on_from_what_is_final(tmp_path: Path) -> None:
    record, own, _ = stage(tmp_path)
    plan = plan_forced(replace(record, ballot=ballot_of(record.ballot.config, record.tip)))
    assert (plan.parent, plan.path) == (record.tip, ())
    assert own


def test_what_the_file_holds_beyond_is_no_hindrance(tmp_path: Path) -> None:
    """The writer's own frames above its vote are captured again."""
    record, own, _ = stage(tmp_path)
    heads = [row.head for row in own]
    beyond = replace(record, place=(heads[2].seq, heads[2].hash))
    assert plan_forced(voted(beyond, heads[0])).parent == heads[0]


@pytest.mark.parametrize("where", ["nowhere", "another branch"])
def test_a_file_that_is_no_state_of_that_history_is_refused(tmp_path: Path, where: str) -> None:
    """It cannot be brought there from this journal alone."""
    record, own, foreign = stage(tmp_path)
    place = NOWHERE if where == "nowhere" else (foreign[1].head.seq, foreign[1].head.hash)
    with pytest.raises(ConflictError, match="another survivor"):
        plan_forced(voted(replace(record, place=place), own[2].head))


def test_a_path_leads_to_the_log_or_is_none(tmp_path: Path) -> None:
    record, own, foreign = stage(tmp_path)
    heads = [row.head for row in own]
    known = {head.hash: head for head in (*heads[1:], record.tip)}
    assert climb(record, known, heads[2].hash) == ()
    assert climb(record, known, foreign[0].head.hash) == ()


# The file.

_WRITER = signer(1)


def _frames(source: Source, genesis: Head) -> list[Frame]:
    """Return three frames above ``genesis``, the first with all pages of ``source``."""
    frames: list[Frame] = []
    before = genesis
    for number in range(3):
        source.run("INSERT INTO t (v) VALUES (?)", b"x" * 3_000 * (number + 1))
        payload = payload_of(source) if frames else whole_of(source)
        source.run("PRAGMA wal_checkpoint(TRUNCATE)")
        frame = seal(
            shard=SHARD,
            seq=Seq(before.seq + 1),
            timestamp_ns=TimestampNs(before.timestamp_ns + 1),
            salt=bytes(16),
            payload=encode_commit(payload),
            kind=Kind.COMMIT,
            flags=Flag.NONE,
            epoch=before.epoch,
            view=before.view,
            prev_hash=before.hash,
            state_root=root_of(source.path.read_bytes(), source.page_size),
            signer=_WRITER,
        )
        frames.append(frame)
        before = frame.head
    return frames


@asynccontextmanager
async def survivor(folder: Path) -> AsyncIterator[tuple[Opened, Journal, Forcing, list[Head]]]:
    """A replica that voted for three frames of another node, of which its file has none."""
    journal = Journal(folder / "data")
    config = ConfigPayload(
        lineage=Lineage(b"l" * 16),
        parent=None,
        voters=(Voter(node_id="a", key=_WRITER.public, journal_id=JournalId(b"a" * 16)),),
        page_size=0,
        members_hash=b"m" * 32,
    )
    genesis = write_genesis(
        config,
        shard=SHARD,
        state_root=state_root(0, 0, ZERO_HASH),
        timestamp_ns=TimestampNs(1),
        salt=bytes(16),
        signer=_WRITER,
    )
    source = Source(folder / "source.db")
    frames = _frames(source, genesis.head)
    source.close()
    heads = [frame.head for frame in frames]
    row = FrameRow(
        head=genesis.head,
        record=genesis.record,
        local_first=LocalNumber(1),
        local_last=LocalNumber(0),
    )
    with guardian(folder) as socket:
        async with opened(folder / "app.db", socket) as here, trio.open_nursery() as nursery:
            journal.begin_replica(
                shard=SHARD,
                path="app.db",
                genesis=row,
                certificate=None,
                ballot=ballot_of(config, genesis.head),
                page_size=0,
                db_pages=0,
                groups={},
                place=(genesis.head.seq, genesis.hash),
                cursor=(await here.file.cursor()).encode(),
                local_last=LocalNumber(0),
            )
            ballot = ballot_of(config, genesis.head, heads[1])
            rows = tuple(row_of(frame) for frame in frames)
            journal.keep([Step(shard=SHARD, frames=rows, ballot=ballot)])
            journalist = Journalist(journal)
            nursery.start_soon(journalist.run)
            yield here, journal, Forcing(journalist, here.file, trio.CapacityLimiter(2)), heads
            nursery.cancel_scope.cancel()


async def test_a_replicas_file_is_brought_to_the_frame_that_it_voted_for(tmp_path: Path) -> None:
    """Two of three frames: not the one above the vote."""
    async with survivor(tmp_path) as (here, journal, forcing, heads):
        record = load(journal)
        parent = plan_forced(record).parent
        assert parent == heads[1]
        state = await forcing.come_to(record, (parent.seq, parent.hash))
        assert state.tree.root() == parent.state_root
        assert (await here.file.facts()).state_root == parent.state_root
        assert state.cursor == (await here.file.cursor()).encode()


class Crash(Exception):  # noqa: N818
    """The process ended."""


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_crash_while_it_is_brought_there_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The journal's intent tells whether the file has the frames (Q13)."""
    inject = ReplicaFile.inject

    async def crash(file: ReplicaFile, prepared: object) -> None:
        if when == "after":
            await inject(file, prepared)  # type: ignore[arg-type]
        raise Crash

    async with survivor(tmp_path) as (here, journal, forcing, heads):
        parent = heads[1]
        with monkeypatch.context() as patch:
            patch.setattr(ReplicaFile, "inject", crash)
            with pytest.raises(Crash):
                await forcing.come_to(load(journal), (parent.seq, parent.hash))
        state = await forcing.come_to(load(journal), (parent.seq, parent.hash))
        assert (await here.file.facts()).state_root == state.tree.root() == parent.state_root
        assert state.cursor == (await here.file.cursor()).encode()
