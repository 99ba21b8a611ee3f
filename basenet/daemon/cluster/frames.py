"""One shard's frames at hand: by hash, from memory while they are young, else from the journal."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from basenet.daemon.journalist import Journalist
from basenet.errors import CorruptionError
from basenet.journal.journal import Journal
from basenet.units import KIB, MIB, FrameHash, ShardId
from basenet.wire.frame import Frame, Head, decode_frame, encode_frame
from basenet.wire.payload import CommitPayload, decode_commit

_HELD_BYTES_MAX: Final = 16 * MIB
_DECODED_BYTES_MAX: Final = 32 * KIB
_DECODED_MAX: Final = 64
_PAGES_BYTES_MAX: Final = 64 * KIB


class Payloads:
    """Decodes payloads, and remembers small ones: each is judged, and applied soon after.

    Any thread may ask.
    """

    def __init__(self) -> None:
        self._known: dict[FrameHash, CommitPayload] = {}

    def __call__(self, frame: Frame) -> CommitPayload:
        """Return what a COMMIT carries; raises `FrameCorrupt`."""
        known = self._known.get(frame.head.hash)
        if known is None:
            known = decode_commit(frame.payload)
            if len(known.pages) <= _PAGES_BYTES_MAX:
                if len(self._known) >= _DECODED_MAX:
                    self._known.clear()
                self._known[frame.head.hash] = known
        return known


class Frames:
    """The encoded frames of one shard above the final one, and a few below."""

    def __init__(self, shard: ShardId, journalist: Journalist) -> None:
        self._shard = shard
        self._journalist = journalist
        self._held: OrderedDict[FrameHash, bytes] = OrderedDict()
        self._bytes = 0
        # On their way into the journal: nobody else has them yet.
        self._undurable: dict[FrameHash, bytes] = {}
        # Small ones, decoded: each is asked for twice soon, to be judged and to be applied.
        self._decoded: OrderedDict[FrameHash, Frame] = OrderedDict()
        self.payloads = Payloads()
        """What they carry, of the small ones."""

    def add(self, frame: Frame) -> bytes:
        """Hold ``frame`` for a while; return its encoding."""
        held = self._held.get(frame.head.hash)
        if held is not None:
            return held
        record = encode_frame(frame)
        self.add_record(frame.head.hash, record)
        return record

    def add_record(self, digest: FrameHash, record: bytes) -> None:
        """Hold an encoded frame for a while."""
        if digest in self._held:
            return
        self._held[digest] = record
        self._bytes += len(record)
        while self._bytes > _HELD_BYTES_MAX and len(self._held) > 1:
            _, gone = self._held.popitem(last=False)
            self._bytes -= len(gone)

    def hold(self, frame: Frame) -> None:
        """Hold ``frame`` until `release`, since the journal has it only then."""
        digest = frame.head.hash
        self._undurable[digest] = self.add(frame)
        if frame.head.payload_len <= _DECODED_BYTES_MAX:
            self._decoded[digest] = frame
            if len(self._decoded) > _DECODED_MAX:
                self._decoded.popitem(last=False)

    def release(self, digest: FrameHash) -> None:
        """Hold a frame no longer than others: it is durable."""
        self._undurable.pop(digest, None)

    def holds(self, heads: Iterable[Head]) -> bool:
        """Return whether all of ``heads`` are in memory."""
        return all(head.hash in self._held or head.hash in self._undurable for head in heads)

    async def records(self, heads: Sequence[Head]) -> list[bytes]:
        """Return the encoded frames of ``heads``; raises `CorruptionError` if one is not held."""
        found = self._recall(heads)
        missing = [head for head in heads if head.hash not in found]
        if missing:
            found |= await self._journalist.read(lambda journal: self._read_all(journal, missing))
        return [found[head.hash] for head in heads]

    def decode(self, head: Head, record: bytes) -> Frame:
        """Return the frame of ``head``, whose encoding is ``record``."""
        known = self._decoded.get(head.hash)
        if known is not None:
            return known
        frame = decode_frame(record)
        assert isinstance(frame, Frame), "a frame of version 1 among peers"
        return frame

    def getter(self, journal: Journal, heads: Iterable[Head] = ()) -> "Getter":
        """Return a function for a thread that returns frames by hash; ``heads``: what it may ask.

        ``journal`` is read with its reading connection.
        """
        decoded = {
            head.hash: self._decoded[head.hash] for head in heads if head.hash in self._decoded
        }
        return Getter(self._shard, journal, self._recall(heads), self._undurable, decoded)

    def _recall(self, heads: Iterable[Head]) -> dict[FrameHash, bytes]:
        found = {}
        for head in heads:
            record = self._held.get(head.hash) or self._undurable.get(head.hash)
            if record is not None:
                found[head.hash] = record
        return found

    def _read_all(self, journal: Journal, heads: Sequence[Head]) -> dict[FrameHash, bytes]:
        return {head.hash: _read(journal, self._shard, head) for head in heads}


class Getter:
    """Returns frames by hash, in a thread."""

    def __init__(
        self,
        shard: ShardId,
        journal: Journal,
        held: dict[FrameHash, bytes],
        undurable: dict[FrameHash, bytes],
        decoded: dict[FrameHash, Frame],
    ) -> None:
        self._shard = shard
        self._journal = journal
        self._held = held
        # It changes meanwhile: what leaves it is in the journal.
        self._undurable = undurable
        self._decoded = decoded

    def __call__(self, digest: FrameHash) -> Frame:
        """Return the frame; raises `CorruptionError` if it is not held."""
        known = self._decoded.get(digest)
        if known is not None:
            return known
        record = self._held.get(digest) or self._undurable.get(digest)
        if record is None:
            record = read_frame(self._journal, self._shard, digest)
        frame = decode_frame(record)
        assert isinstance(frame, Frame), "the journal holds no frame of version 1"
        return frame


def _read(journal: Journal, shard: ShardId, head: Head) -> bytes:
    """Return an encoded frame, above the final one or in the log already."""
    for _, record in journal.frames(shard, head.seq, head.seq, 1):
        frame = decode_frame(record)
        if isinstance(frame, Frame) and frame.head.hash == head.hash:
            return record
    return read_frame(journal, shard, head.hash)


def read_frame(journal: Journal, shard: ShardId, digest: FrameHash) -> bytes:
    """Return an encoded frame above the final one; raises `CorruptionError` if it is not there."""
    record = journal.branch_frame(shard, digest)
    if record is None:
        raise CorruptionError(
            f"the journal lacks a frame of shard {shard} that it has promised ({digest.hex()}): "
            "move journal.db and what begins with its name out of the data directory; basenet "
            "then comes back as a new member of this shard."
        )
    return record
