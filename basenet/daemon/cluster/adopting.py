"""A node that was away too long takes over a state, because the frames between are gone.

Theory of operation
===================

Journals keep frames for a while only. A peer that no longer has what this node lacks says so
(`WHY_GONE`); then a certified state above ours is fetched, leaf hashes first, while the term goes
on. If frames have meanwhile come from somebody else, it is thrown away. Else the term ends and
`engine.adoption` says what follows::

    fence, capture ── bundle of what is undecided ── journal jumps ── new term ── file is mended

What the application here committed above its last known final frame is *undecided*: the frames that
would tell are gone, so it may be in the state already, or lost. It is kept in a bundle either way.
"""

from typing import Final

from basenet.daemon.cluster.transfer import FetchedState
from basenet.engine.adoption import NOWHERE, undecided
from basenet.engine.ballot import Ballot
from basenet.errors import CorruptionError
from basenet.journal.journal import Journal
from basenet.journal.records import ReplicaRecord
from basenet.units import FrameHash, Seq, ShardId
from basenet.wire.finality import Electors
from basenet.wire.frame import Frame, Head, decode_frame
from basenet.wire.payload import decode_config
from basenet.wire.transfer import StateRefused, TransferMessage, Why
from basenet.wire.tuples import Scope

UNASKED: Final = 0
"""The number of an answer that nobody asked for: no `Asker` gives it to a question."""
WHY_GONE: Final = StateRefused(number=UNASKED, why=Why.GONE)
"""What a node says that was asked for frames which it has not any more."""


class StateWanted(Exception):  # noqa: N818  (no error: it ends a term on purpose)
    """The term ends, and the next one begins at ``state``."""

    def __init__(self, state: FetchedState) -> None:
        super().__init__(state.head.seq)
        self.state = state


def is_gone(message: TransferMessage) -> bool:
    """Return whether a peer says that it has not the frames any more that it was asked for."""
    return message == WHY_GONE


def read_electors(journal: Journal, record: ReplicaRecord) -> Electors:
    """Return who decides in the epoch of ``record``."""
    encoded, _ = journal.config_chain(record.shard)[-1]
    frame = decode_frame(encoded)
    assert isinstance(frame, Frame), "the journal holds no frame of version 1"
    return Electors(
        scope=Scope(record.lineage, record.shard),
        epoch=record.ballot.epoch,
        config=decode_config(frame.payload),
        head=frame.head,
    )


def find_undecided(
    journal: Journal, shard: ShardId, ballot: Ballot, place: tuple[Seq, FrameHash]
) -> tuple[Head, ...]:
    """Return the heads above the final frame that the file at ``place`` holds, ascending."""
    if place == NOWHERE:
        return ()
    return undecided(ballot, place, lambda digest: read_head(journal, shard, digest))


def read_head(journal: Journal, shard: ShardId, digest: FrameHash) -> Head:
    """Return the head of a frame above the final one."""
    record = journal.branch_frame(shard, digest)
    frame = decode_frame(record) if record is not None else None
    if not isinstance(frame, Frame):
        raise CorruptionError(
            f"the journal lacks a frame of shard {shard} that its file holds: move journal.db and "
            "what begins with its name out of the data directory"
        )
    return frame.head
