"""One shard's replica: takes events, returns effects.

Theory of operation
===================

A frame is *captured* when SQLite committed it, *stored* by a voter once it is durable in that
voter's journal, and *final* once a quorum has stored it. Only a final frame may be archived.
With one voter the quorum is this node, so a frame is final when its own journal holds it; the
path is the same for every number of voters.

The chain is kept by three rules:

1. seq grows by exactly 1, and prev_hash is the hash of the frame before; the first frame of a
   lineage is its genesis, a CONFIG, whose prev_hash binds it to its own content.
2. A PARTIAL run is one unit: nothing becomes final inside it, and only frames of the same run
   may follow a PARTIAL: COMMITs whose other flags are the same.
3. Every captured commit has a local number; the ranges of successive frames are contiguous, so
   a commit is in exactly one frame (Q14). A PARTIAL has none, its run's last frame has them all;
   otherwise a frame without a commit says by a flag what it is.

Readers of the chain check the same and more (`wire.chain`). Here a broken rule is our own bug and
fails an assertion, before anything has changed.
"""

from typing import assert_never

from basenet.engine import quorum
from basenet.engine.effects import Effect, Finalize, Persist
from basenet.engine.events import Event, FrameCaptured, LineageBorn, Stored
from basenet.engine.state import ShardState
from basenet.units import FrameHash, LocalNumber, Seq
from basenet.wire.frame import Flag, Kind, genesis_prev_hash, seal
from basenet.wire.payload import encode_config
from basenet.wire.signature import Signer


class Replica:
    """Steps one shard's state by events."""

    def __init__(self, state: ShardState, signer: Signer) -> None:
        self.state = state
        self._signer = signer

    def step(self, event: Event) -> list[Effect]:
        """Take in one event and return what must now be done, in order."""
        match event:
            case LineageBorn():
                return self._on_lineage_born(event)
            case FrameCaptured():
                return self._on_frame_captured(event)
            case Stored():
                return self._on_stored(event)
            case _:
                assert_never(event)

    def _on_lineage_born(self, event: LineageBorn) -> list[Effect]:
        """Begin a lineage with its genesis, by which the parent's seq counts as final."""
        state = self.state
        parent_seq = event.config.parent[1] if event.config.parent else 0
        keys = [voter.key for voter in event.config.voters]
        assert self._signer.public in keys, "the author of a genesis is one of its voters"
        assert not state.unfinal, "a lineage is born only over a settled one"
        payload = encode_config(event.config)
        frame = seal(
            shard=state.shard,
            seq=Seq(parent_seq + 1),
            timestamp_ns=state.clamp(event.timestamp_ns),
            salt=event.salt,
            payload=payload,
            kind=Kind.CONFIG,
            flags=Flag.NONE,
            epoch=state.epoch,
            view=state.view,
            prev_hash=genesis_prev_hash(payload),
            state_root=event.state_root,
            signer=self._signer,
        )
        state.config = event.config
        state.stored = dict.fromkeys(keys, Seq(parent_seq))
        state.final_seq = Seq(parent_seq)
        state.tip = frame.head
        state.unfinal.append(frame.head)
        first = LocalNumber(state.local_last + 1)
        return [Persist(frame=frame, local_first=first, local_last=state.local_last)]

    def _on_frame_captured(self, event: FrameCaptured) -> list[Effect]:
        """Seal what was captured onto the tip."""
        state = self.state
        assert state.tip is not None, "a frame before the genesis"
        _check_numbers(event, state.local_last)
        _check_run(event.flags, state.tip.flags)
        frame = seal(
            shard=state.shard,
            seq=Seq(state.tip.seq + 1),
            timestamp_ns=state.clamp(event.timestamp_ns),
            salt=event.salt,
            payload=event.payload,
            kind=Kind.COMMIT,
            flags=event.flags,
            epoch=state.epoch,
            view=state.view,
            prev_hash=FrameHash(state.tip.hash),
            state_root=event.state_root,
            signer=self._signer,
        )
        state.tip = frame.head
        state.local_last = event.local_last
        state.unfinal.append(frame.head)
        return [Persist(frame=frame, local_first=event.local_first, local_last=event.local_last)]

    def _on_stored(self, event: Stored) -> list[Effect]:
        """Count this node's vote for everything up to ``event.seq``."""
        state, me = self.state, self._signer.public
        assert me in state.stored, "a vote of a node that is no voter"
        assert event.seq <= state.tip_seq, "stored what was never sealed"
        assert state.final_seq + len(state.unfinal) == state.tip_seq, "finality skipped a frame"
        # Reports may overtake one another, so an older one is no news.
        if event.seq <= state.stored[me]:
            return []
        state.stored[me] = event.seq
        return self._finalize(quorum.finalized_seq(state.stored))

    def _finalize(self, held_seq: Seq) -> list[Effect]:
        """Finalise up to ``held_seq``, but never up to the inside of a PARTIAL run."""
        state = self.state
        held = [head for head in state.unfinal if head.seq <= held_seq]
        while held and held[-1].flags & Flag.PARTIAL:
            held.pop()
        if not held:
            return []
        for _ in held:
            state.unfinal.popleft()
        state.final_seq = held[-1].seq
        return [Finalize(head=head) for head in held]


def _check_numbers(event: FrameCaptured, local_last: LocalNumber) -> None:
    """Assert that the frame's commits are the next ones, and where they must be."""
    count = event.local_last - event.local_first + 1
    assert event.local_first == local_last + 1, "a commit captured twice or not at all"
    assert count >= 0, "local numbers moved backwards"
    if event.flags & Flag.PARTIAL:
        assert count == 0, "a commit that ends inside its own run"
    else:
        assert count > 0 or event.flags, "a frame without a commit, and no flag says why"


def _check_run(flags: Flag, before: Flag) -> None:
    """Assert that a frame with ``flags`` may follow one with the flags ``before``."""
    if before & Flag.PARTIAL:
        assert flags | Flag.PARTIAL == before, "a frame of something else inside a PARTIAL run"
