"""What must always be true of a shard with peers, whatever its journal went through."""

from itertools import pairwise
from pathlib import Path

import apsw

from basenet.journal.journal import Journal
from basenet.journal.records import ReplicaRecord
from basenet.units import ShardId
from basenet.wire.frame import Frame, check_link, decode_frame
from basenet.wire.merkle import StateTree
from basenet.wire.payload import decode_config
from tests.fakes.branching import SHARD, Branching

BIG = 1 << 40


def begin(folder: Path, story: Branching) -> Journal:
    """Open the journal in ``folder`` and give birth to ``story``."""
    journal = Journal(folder)
    journal.begin_replica(**story.birth())
    return journal


def load(journal: Journal, shard: ShardId = SHARD) -> ReplicaRecord:
    record = journal.load_replica(shard)
    assert record is not None
    return record


def check_replica(journal: Journal, shard: ShardId = SHARD) -> ReplicaRecord:
    """Assert that what ``journal`` holds of ``shard`` fits together; return its record."""
    record = load(journal, shard)
    tip = record.tip
    tree = StateTree(record.page_size, journal.leaves(shard))
    assert (tree.db_pages, tree.root()) == (record.db_pages, tip.state_root)
    frames = [decode_frame(encoded) for _, encoded in _log(journal, shard)]
    heads = [frame.head for frame in frames if isinstance(frame, Frame)]
    assert len(heads) == len(frames)
    for before, after in pairwise(heads):
        check_link(before, after)
    assert not heads or heads[-1] == tip
    assert not tip.is_partial
    for head in record.heads:
        assert head.seq > tip.seq
        encoded = journal.branch_frame(shard, head.hash)
        assert encoded is not None
        frame = decode_frame(encoded)
        assert isinstance(frame, Frame)
        assert frame.head == head
    known = {head.hash for head in (*heads, *record.heads)}
    assert record.place[1] in known | {tip.hash} or record.place[0] < tip.seq
    chain = [decode_frame(encoded) for encoded, _ in journal.config_chain(shard)]
    assert isinstance(chain[-1], Frame)
    assert decode_config(record.config) == decode_config(chain[-1].payload)
    check_local_numbers(journal, record)
    return record


def check_ballot(record: ReplicaRecord) -> None:
    """Assert that the ballot is not behind the log: a replica persists before it lets settle."""
    final, tip = record.ballot.final, record.tip
    assert final.height >= tip.seq
    assert final.hash in {head.hash for head in (tip, *record.heads)}


def _log(journal: Journal, shard: ShardId) -> list[tuple[int, bytes]]:
    sizes = journal.frame_sizes(shard, 0)
    if not sizes:
        return []
    rows = journal.final_frames(shard, sizes[0][0], BIG, BIG)
    assert [(seq, len(encoded)) for seq, encoded in rows] == sizes
    return [(int(seq), encoded) for seq, encoded in rows]


def check_local_numbers(journal: Journal, record: ReplicaRecord) -> None:
    """Each is in one frame, or in an orphan bundle; none above the last that is accounted for."""
    number = journal._logs[record.shard].number
    with journal._file.reading() as connection:
        final = _ranges(
            connection, "frame WHERE id BETWEEN ? AND ?", (number << 44, (number + 1 << 44) - 1)
        )
        waiting = _ranges(connection, "branch WHERE number = ?", (number,))
    orphans = [(row.first_local, row.last_local) for row in journal.orphans(record.shard)]
    lost = {local for first, last in orphans for local in range(first, last + 1)}
    framed = [local for first, last in final for local in range(first, last + 1)]
    assert framed == sorted(set(framed)), "a commit is final twice, or out of order"
    assert not lost & set(framed), "a commit is final and an orphan"
    # An orphan's frame lies in the branch until something at its height is final.
    framed += [
        local for first, last in waiting for local in range(first, last + 1) if local not in lost
    ]
    assert len(framed) == len(set(framed)), "a commit is in two frames"
    every = set(framed) | lost
    if every:
        assert every == set(range(min(every), record.local_last + 1)), "a commit is nowhere"


def _ranges(
    connection: apsw.Connection, where: str, values: tuple[int, ...]
) -> list[tuple[int, int]]:
    rows = connection.execute(
        f"SELECT local_first, local_last FROM {where} AND local_last >= local_first ORDER BY 1",
        values,
    )
    return [(first, last) for first, last in rows]
