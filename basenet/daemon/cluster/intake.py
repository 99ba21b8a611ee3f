"""What peers sent of one shard's frames, and what became of it: counted, by what it was.

Theory of operation
===================

The replica keeps what may be part of the chain and is silent about the rest, so that a flood costs
it little. What the rest was is found out here, behind the replica's back and without a say in
anything but one thing: a frame of another shard than its envelope's never reaches the replica::

    another shard's                     refused          rejected_shard_mismatch
    final already, or kept before       of no use        duplicate
    too far above what is final         of no use now    rejected_seq_gap
    kept by the replica                                  ingested
    not kept, and of nobody who votes,
    or its signature is wrong           refused          invalid
    not kept for another reason         of another epoch or view, or there is no room: not counted

Final history comes in pieces that are taken whole or not at all. What is kept of it and was a frame
of the branch before is a duplicate.
"""

from collections.abc import Collection, Iterable, Sequence

from basenet.engine.effects import Effect, Persist
from basenet.engine.limits import HEADS_MAX
from basenet.engine.replica import Replica
from basenet.errors import FrameCorrupt, PeerError
from basenet.units import FrameHash, PublicKeyBytes, Seq, ShardId
from basenet.wire.frame import Frame, decode_frame
from basenet.wire.signature import is_signed


class Intake:
    """Counts of one shard since this process began."""

    def __init__(self, shard: ShardId) -> None:
        self.ingested = self.duplicate = self.invalid = 0
        self.shard_mismatch = self.seq_gap = self.forged = self.unapplied = 0
        self._shard = shard
        # Frames that were kept, in order, and are not final as far as anybody looked.
        self._kept: dict[FrameHash, Seq] = {}

    def verify(self, key: PublicKeyBytes, signature: bytes, message: bytes) -> bool:
        """Return whether ``key`` signed ``message``; count what it did not sign.

        For the replica, so of frames, votes, certificates and all else that peers sent.
        """
        is_good = is_signed(key, signature, message)
        self.forged += not is_good
        return is_good

    def decode(self, records: Sequence[bytes]) -> tuple[Frame, ...]:
        """Return the frames of this shard; raises `PeerError` if one cannot be read."""
        try:
            frames = decode_all(records)
        except PeerError:
            self.invalid += 1
            raise
        own = tuple(frame for frame in frames if frame.head.shard == self._shard)
        self.shard_mismatch += len(frames) - len(own)
        return own

    def on_frames(
        self, frames: Sequence[Frame], replica: Replica, final: Seq, effects: Iterable[Effect]
    ) -> None:
        """Count frames of the branch; ``final``: before them; ``effects``: what followed."""
        kept = {
            frame.head.hash
            for effect in effects
            if isinstance(effect, Persist)
            for frame in effect.frames
        }
        self._forget(final)
        voters: Collection[bytes] | None = None
        for frame in frames:
            head = frame.head
            if head.seq <= final or head.hash in self._kept:
                self.duplicate += 1
            elif head.hash in kept:
                self.ingested += 1
                self._kept[head.hash] = head.seq
            elif head.seq > final + HEADS_MAX:
                self.seq_gap += 1
            else:
                if voters is None:
                    voters = {voter.key for voter in replica.ballot.config.voters}
                is_of_voter = head.author in voters
                if not is_of_voter or not is_signed(
                    head.author, head.signature, head.signed_message
                ):
                    self.invalid += 1

    def _forget(self, final: Seq) -> None:
        """Let go of what is final: its seq tells."""
        while self._kept:
            digest, seq = next(iter(self._kept.items()))
            if seq > final:
                break
            del self._kept[digest]

    def on_final(self, frames: Sequence[Frame], replica: Replica, before: Seq) -> None:
        """Count a piece of final history; ``before``: what was final before it."""
        new = [frame.head for frame in frames if frame.head.seq > before]
        self.duplicate += len(frames) - len(new)
        if not new:
            return
        after = replica.final.height
        if after > before:
            known = sum(head.hash in self._kept for head in new)
            self.duplicate += known
            self.ingested += len(new) - known
            self._forget(after)
        elif new[0].seq > before + 1:
            self.seq_gap += len(new)
        elif new[-1].epoch == replica.ballot.epoch and not new[-1].is_partial:
            self.invalid += len(new)

    def on_unapplied(self) -> None:
        """Count final frames, a batch of them, that the file could not take in."""
        self.unapplied += 1


def decode_all(records: Sequence[bytes]) -> tuple[Frame, ...]:
    """Return the frames that a peer sent; raises `PeerError` if one cannot be read."""
    frames: list[Frame] = []
    for record in records:
        try:
            frame = decode_frame(record)
        except FrameCorrupt as error:
            raise PeerError(f"a frame of the peer cannot be read: {error}") from error
        if not isinstance(frame, Frame):
            raise PeerError("a peer sent a frame of version 1")
        frames.append(frame)
    return tuple(frames)
