"""Which frames of one shard wait for the archive.

Theory of operation
===================

The journal holds every frame until it is archived; the backlog only knows *which* those are, and
keeps the bytes of the first of them in memory so that the usual case reads nothing back::

        next_seq                                              tip_seq
           | cached: seq, time, bytes |  spans: seqs, sum of bytes |
           |<----- to be shipped first, in memory ----->|<- only in the journal ->|

The cache is always a prefix, bounded in bytes and in entries. When it is full, or frames before
already lie only in the journal, a new frame is added to the last *span*: a run of about one
segment of frames of which only the numbers and the sum of sizes are known. So an outage of days
costs a few hundred bytes per 4 MiB of log. When the cache is used up, frames of the first span are
read back through a `FrameSource`.

Frames that are on their way to the archive stay in the backlog, and in its sums, until they are
archived. Nothing is dropped here: at the journal's own limit the daemon drops frames, and then
tells us by `skip`.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from basenet.errors import CorruptionError
from basenet.units import MIB, SEGMENT_TARGET_BYTES, Seq, TimestampNs
from basenet.wire.certificate import Certificate

CACHE_BYTES_MAX: Final = MIB
CACHE_ENTRIES_MAX: Final = 100_000


class FrameSource(Protocol):
    """Gives encoded frames back from the journal."""

    async def frames(self, start: Seq, end: Seq, bytes_max: int) -> Sequence[bytes]:
        """Return the encoded frames ``start``, ``start`` + 1 ... in order, at most up to ``end``.

        Stops before the frame that would exceed ``bytes_max``, but returns at least one.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingFrame:
    """A frame whose bytes are in memory."""

    seq: Seq
    timestamp_ns: TimestampNs
    encoded: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Frames ``start`` .. ``end`` that lie only in the journal: ``size`` bytes in all.

    ``oldest_ns``: the timestamp of ``start``, or a lower bound of it.
    """

    start: Seq
    end: Seq
    size: int
    oldest_ns: TimestampNs

    @property
    def count(self) -> int:
        """How many frames these are."""
        return self.end - self.start + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Consecutive encoded frames, the first of which has number ``start``; never empty.

    ``proofs``: what proves them final, of frames among them; none where one voter decides.
    """

    start: Seq
    frames: tuple[bytes, ...]
    proofs: tuple[Certificate, ...] = ()

    @property
    def end(self) -> Seq:
        """The number of the last frame."""
        return Seq(self.start + len(self.frames) - 1)

    @property
    def size(self) -> int:
        """The sum of the frames' bytes."""
        return sum(map(len, self.frames))


class Backlog:
    """The frames of one shard that are captured (and final) but not archived."""

    def __init__(
        self,
        *,
        archived_seq: Seq,
        bytes_max: int = CACHE_BYTES_MAX,
        entries_max: int = CACHE_ENTRIES_MAX,
    ) -> None:
        """Start with nothing waiting after ``archived_seq``."""
        self.next_seq = Seq(archived_seq + 1)
        self.tip_seq = archived_seq
        self.size = 0  # bytes of all waiting frames
        self._bytes_max = bytes_max
        self._entries_max = entries_max
        self._cached: deque[WaitingFrame] = deque()
        self._cached_bytes = 0
        self._spans: deque[Span] = deque()

    @property
    def count(self) -> int:
        """How many frames wait."""
        return self.tip_seq - self.next_seq + 1

    @property
    def cached_bytes(self) -> int:
        """How many bytes of frames are in memory."""
        return self._cached_bytes

    @property
    def oldest_ns(self) -> TimestampNs | None:
        """The timestamp of the first waiting frame, or a lower bound; None when none waits."""
        if self._cached:
            return self._cached[0].timestamp_ns
        return self._spans[0].oldest_ns if self._spans else None

    def append(self, *, seq: Seq, timestamp_ns: TimestampNs, encoded: bytes) -> None:
        """Add the frame after the last one."""
        assert seq == self.tip_seq + 1, f"frame {seq} does not follow {self.tip_seq}"
        self.tip_seq = seq
        size = len(encoded)
        self.size += size
        is_room = (
            self._cached_bytes + size <= self._bytes_max and len(self._cached) < self._entries_max
        )
        if is_room and not self._spans:
            waiting = WaitingFrame(seq=seq, timestamp_ns=timestamp_ns, encoded=encoded)
            self._cached.append(waiting)
            self._cached_bytes += size
        else:
            self._spill(seq, size, timestamp_ns)

    def adopt(self, *, end: Seq, size: int, oldest_ns: TimestampNs) -> None:
        """Add the frames up to ``end`` that a start finds in the journal, ``size`` bytes in all."""
        assert end > self.tip_seq, f"frames up to {end} are known already"
        start = Seq(self.tip_seq + 1)
        self._spans.append(Span(start=start, end=end, size=size, oldest_ns=oldest_ns))
        self.tip_seq = end
        self.size += size

    def _spill(self, seq: Seq, size: int, timestamp_ns: TimestampNs) -> None:
        last = self._spans[-1] if self._spans else None
        if last is None or last.size + size > SEGMENT_TARGET_BYTES:
            self._spans.append(Span(start=seq, end=seq, size=size, oldest_ns=timestamp_ns))
            return
        self._spans[-1] = Span(
            start=last.start, end=seq, size=last.size + size, oldest_ns=last.oldest_ns
        )

    async def read_batch(
        self, source: FrameSource, *, bytes_max: int, end_max: Seq | None = None
    ) -> Batch | None:
        """Return the first waiting frames, up to ``bytes_max`` and ``end_max``, but at least one.

        None: no frame waits. Raises `CorruptionError` if the source has not what it should have.
        """
        while self.count:
            if self._cached:
                return self._cached_batch(bytes_max, end_max)
            span = self._spans[0]
            end = span.end if end_max is None else min(span.end, max(end_max, span.start))
            frames = await source.frames(span.start, end, bytes_max)
            if self.next_seq != span.start:
                continue  # the daemon dropped frames meanwhile
            if not frames:
                raise CorruptionError(
                    f"the journal has no frame {span.start}, which is not archived yet: "
                    "restart basenet, which takes a new snapshot"
                )
            return Batch(start=span.start, frames=tuple(frames))
        return None

    def _cached_batch(self, bytes_max: int, end_max: Seq | None) -> Batch:
        frames: list[bytes] = []
        size = 0
        for waiting in self._cached:
            is_beyond = end_max is not None and waiting.seq > end_max
            if frames and (is_beyond or size + len(waiting.encoded) > bytes_max):
                break
            frames.append(waiting.encoded)
            size += len(waiting.encoded)
        return Batch(start=self.next_seq, frames=tuple(frames))

    def remove(self, batch: Batch, *, last_ns: TimestampNs) -> None:
        """Take out an archived batch, whose last frame has the timestamp ``last_ns``."""
        if batch.end < self.next_seq:
            return  # dropped by `skip` while it was on its way
        skipped = self.next_seq - batch.start
        self._remove_to(batch.end, sum(map(len, batch.frames[skipped:])), last_ns)

    def skip(self, to_seq: Seq) -> int:
        """Forget frames up to ``to_seq``, which the journal has dropped; return how many.

        The archive has a gap then, which only a snapshot at or above ``to_seq`` ends (P27).
        """
        end = min(to_seq, self.tip_seq)
        count = end - self.next_seq + 1
        if count <= 0:
            return 0
        self._remove_to(Seq(end), None, self.oldest_ns or TimestampNs(0))
        return count

    def _remove_to(self, end: Seq, spanned_bytes: int | None, last_ns: TimestampNs) -> None:
        """Remove the frames up to ``end``; ``spanned_bytes`` None: their size is estimated."""
        while self._cached and self._cached[0].seq <= end:
            size = len(self._cached.popleft().encoded)
            self._cached_bytes -= size
            self.size -= size
            spanned_bytes = spanned_bytes and max(spanned_bytes - size, 0)
        while self._spans and self._spans[0].start <= end:
            span = self._spans.popleft()
            if span.end <= end:
                self.size -= span.size
                spanned_bytes = spanned_bytes and max(spanned_bytes - span.size, 0)
                continue
            share = span.size * (end - span.start + 1) // span.count
            gone = min(share if spanned_bytes is None else spanned_bytes, span.size)
            rest = Span(start=Seq(end + 1), end=span.end, size=span.size - gone, oldest_ns=last_ns)
            self._spans.appendleft(rest)
            self.size -= gone
        self.next_seq = Seq(end + 1)
