"""Merging the log objects of one shard, beside the uploader and under the same lease.

Theory of operation
===================

`basenet.archive.compaction` says what to merge; here it is done. One step is one object::

    pieces -> frames from the journal, else from the sources -> seal -> read as a reader -> put

The journal still has what was shipped a moment ago, so as a rule nothing is fetched. What it has
not any more (after an outage, for another node's objects) is read back, a few objects at a time.
With several voters the certificates come along: those that the journal knows for exactly these
frames, or all of those in the sources.

*Safe at every moment.* The object is put if absent, whole or not at all, beside its sources, and a
reader takes whichever it listed: equal frames are one history (`basenet.archive.stretch`). A crash
before the put leaves nothing; behind it the next start finds the object in the listing. Two that
merge at once write equal frames: under one name the second finds the first one's, under two names
that overlap across one another readers open both. Nothing is deleted here: the sources stay until
`basenet.archive.retention` has seen the merged object for `MERGE_GRACE_NS`, so that a restore that
listed them can finish.

*What it must never do* is lose a frame or change one. So the sealed bytes are decoded and compared,
frame by frame, before they are stored.

The merged object carries the archive epoch of its last source, not the present one: it claims what
its sources claim, no more (see `stretch`).
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Final

import trio

from basenet.archive.backlog import Batch, FrameSource
from basenet.archive.catalog import LogItem
from basenet.archive.clock import SECOND_NS, SYSTEM_CLOCK, Clock
from basenet.archive.compaction import FAN_IN, Piece, merged_level, plan_merge
from basenet.archive.facts import open_log, sign_of
from basenet.archive.fetch import Fetcher, Request
from basenet.archive.lease import Lease
from basenet.archive.names import LogName
from basenet.archive.patience import LEASE_SECONDS, in_time, seconds_for
from basenet.archive.port import Store, StoreConflict, StoreNotFound
from basenet.archive.seal import Seal, SealedLog, check_same_frames, seal_log
from basenet.archive.stretch import find_covered
from basenet.errors import CorruptionError
from basenet.units import FRAME_PAYLOAD_BYTES_MAX, MIB, SEGMENT_TARGET_BYTES, Seq
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Head, Kind, check_link, decode_head_of, encode_frame

# So many new objects are worth a look at what lies there from before.
_NEW_PIECES_MIN: Final = 8
_IN_FLIGHT_BYTES_MAX: Final = 8 * MIB
_REMEMBERED_NS: Final = 24 * 3600 * SECOND_NS

Prove = Callable[[Batch], Awaitable[Batch]]
"""Returns a batch with what proves it final; another batch if its end is not proven."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionFacts:
    """What was merged since the start of the process: ``sources`` became ``puts`` objects.

    ``fetched``: how many sources had to be read back.
    """

    puts: int
    put_bytes: int
    sources: int
    fetched: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gathered:
    """The frames of some pieces, the pieces as they are known now, and the proofs in them."""

    pieces: tuple[Piece, ...]
    frames: tuple[bytes, ...]
    proofs: tuple[Certificate, ...]


class Compactor:
    """Merges the log objects of one shard in one lineage, one at a time."""

    def __init__(
        self,
        *,
        store: Store,
        seal: Seal,
        lease: Lease,
        source: FrameSource,
        trusted: AbstractSet[bytes],
        after: Callable[[], Seq],
        prove: Prove | None = None,
        fan_in: int = FAN_IN,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Begin with the objects that end above ``after()``; ``trusted``: whose are merged.

        What lies before that, the newest snapshot as a rule, goes by age.
        ``prove``: for a lineage in which several voters may decide.
        """
        self._store = store
        self._seal = seal
        self._lease = lease
        self._source = source
        self._trusted = trusted
        self._after = after
        self._prove = prove
        self._fan_in = fan_in
        self._clock = clock
        self._fetcher = Fetcher(store, in_flight_bytes_max=_IN_FLIGHT_BYTES_MAX)
        self._pieces: list[Piece] = []
        self._is_loaded = False
        self._written_ns: dict[str, int] = {}
        self._puts = self._put_bytes = self._sources = self._fetched = 0

    @property
    def facts(self) -> CompactionFacts:
        """What was done so far."""
        return CompactionFacts(
            puts=self._puts,
            put_bytes=self._put_bytes,
            sources=self._sources,
            fetched=self._fetched,
        )

    @property
    def is_due(self) -> bool:
        """Whether `step` has something to do."""
        if not self._is_loaded:
            return len(self._pieces) >= _NEW_PIECES_MIN
        return self._plan() is not None

    def on_stored(self, sealed: SealedLog, raw_bytes: int) -> None:
        """Take in the next log object, which was just shipped; its frames have ``raw_bytes``."""
        self._pieces.append(
            Piece(log=sealed.log, raw_bytes=raw_bytes, archive_epoch=sealed.archive_epoch)
        )

    def list_ages_ns(self) -> Mapping[str, int]:
        """Return how long ago this process stored which merged objects, by name."""
        now_ns = self._clock.boot_ns()
        for name, written_ns in list(self._written_ns.items()):
            if now_ns - written_ns > _REMEMBERED_NS:
                del self._written_ns[name]
        return {name: now_ns - written_ns for name, written_ns in self._written_ns.items()}

    async def step(self) -> bool:
        """Store the next merged object; return whether there was one.

        Raises `ConflictError` when the lease is another's or the archive holds other frames than
        ours, `CorruptionError` for a source that is damaged, and what the store raises.
        """
        if not self._is_loaded:
            await self._load()
        chosen = self._plan()
        if chosen is None:
            return False
        sources = self._pieces[chosen.start : chosen.stop]
        gathered = await self._gather(sources)
        count = len(gathered.pieces)
        self._pieces[chosen.start : chosen.start + count] = gathered.pieces
        cut = await self._cut(gathered)
        whole = await self._with_proofs(cut) if cut is not None else None
        if whole is None:
            return True  # the pieces are known better now, which the next plan uses
        merged = await self._store_merged(whole)
        # Objects that were shipped meanwhile stand behind them.
        self._pieces[chosen.start : chosen.start + len(whole.pieces)] = [merged]
        return True

    # What there is.

    async def _load(self) -> None:
        """Take in what lies in the archive from before."""
        known = {piece.log: piece for piece in self._pieces}
        items, after = [item async for item in self._list()], self._after()
        covered = find_covered(items)
        found: list[Piece] = []
        for number, item in enumerate(items):
            if item in covered or (item.log.end <= after and number):
                continue
            # The first object of a lineage holds its genesis.
            piece = known.pop(item.log, None) or Piece(log=item.log, raw_bytes=item.size)
            found.append(replace(piece, is_fixed=number == 0))
        _fix_overlaps(found)
        # What came while we listed stands at the end.
        ends = max((piece.log.end for piece in found), default=0)
        later = [piece for piece in self._pieces if piece.log.start > ends]
        self._pieces = found + later
        self._is_loaded = True

    async def _list(self) -> AsyncIterator[LogItem]:
        folder = f"{self._seal.names.lineage(self._seal.lineage)}log/"
        async for entry in self._store.list(folder):
            parsed = self._seal.names.parse(entry.name)
            if isinstance(parsed, LogName) and parsed.start <= parsed.end:
                yield LogItem(name=entry.name, size=entry.size, log=parsed)

    def _plan(self) -> range | None:
        chosen = plan_merge(self._pieces, fan_in=self._fan_in)
        if chosen is None:
            self._forget()
        return chosen

    def _forget(self) -> None:
        """Let go of what will never be merged: everything before the last piece that is not."""
        last = max(
            (number for number, piece in enumerate(self._pieces[:-1]) if not piece.is_small),
            default=0,
        )
        del self._pieces[:last]

    # One merge.

    async def _gather(self, sources: Sequence[Piece]) -> _Gathered:
        """Return the frames of the first of ``sources``, as many as one object may hold."""
        found = await self._gather_held(sources)
        return found or await self._gather_stored(sources)

    async def _gather_held(self, sources: Sequence[Piece]) -> _Gathered | None:
        """Return what the journal has; None if anything of it is missing there."""
        start, end = sources[0].log.start, sources[-1].log.end
        frames: list[bytes] = []
        size, limit = 0, SEGMENT_TARGET_BYTES + FRAME_PAYLOAD_BYTES_MAX
        while start + len(frames) <= end and size <= limit:
            rows = await self._source.frames(Seq(start + len(frames)), end, limit)
            if not rows:
                return None
            frames += rows
            size += sum(map(len, rows))
        pieces: list[Piece] = []
        for piece in sources:
            if piece.log.end >= start + len(frames):
                break
            held = frames[piece.log.start - start : piece.log.end - start + 1]
            pieces.append(replace(piece, raw_bytes=sum(map(len, held))))
        if not pieces:
            return None
        return _Gathered(
            pieces=tuple(pieces),
            frames=tuple(frames[: pieces[-1].log.end - start + 1]),
            proofs=(),
        )

    async def _with_epoch(self, piece: Piece) -> Piece:
        if piece.archive_epoch is not None:
            return piece
        name = self._seal.names.log(piece.log)
        segment = open_log(await self._fetcher.get(name), name, piece.log, self._seal.names)
        self._fetched += 1
        return replace(piece, archive_epoch=sign_of(segment, name).archive_epoch)

    async def _gather_stored(self, sources: Sequence[Piece]) -> _Gathered:
        names = [self._seal.names.log(piece.log) for piece in sources]
        pieces: list[Piece] = []
        frames: list[bytes] = []
        proofs: list[Certificate] = []
        size = 0

        def opened(number: int, data: bytes) -> tuple[Piece, list[bytes], list[Certificate]]:
            piece = sources[number]
            segment = open_log(data, names[number], piece.log, self._seal.names)
            signed = sign_of(segment, names[number])
            encoded = [encode_frame(frame) for frame in segment.frames]
            known = replace(
                piece,
                raw_bytes=sum(map(len, encoded)),
                archive_epoch=signed.archive_epoch,
                is_fixed=signed.signer not in self._trusted,
            )
            return known, encoded, segment.certificates

        requests = [
            Request(name=name, size=piece.raw_bytes)
            for name, piece in zip(names, sources, strict=True)
        ]
        async with self._fetcher.stream(requests, opened) as stream:
            async for number, (piece, encoded, found) in stream:
                self._fetched += 1
                pieces.append(piece)
                frames += encoded
                proofs += found
                size += piece.raw_bytes
                await stream.done(number)
                if size > SEGMENT_TARGET_BYTES or not piece.is_small:
                    break
        return _Gathered(pieces=tuple(pieces), frames=tuple(frames), proofs=tuple(proofs))

    async def _cut(self, gathered: _Gathered) -> _Gathered | None:
        """Return what of ``gathered`` may be one object; None, and what is fixed, if too little."""
        fixed = await trio.to_thread.run_sync(self._find_fixed, gathered)
        place = {piece.log: number for number, piece in enumerate(self._pieces)}
        kept: list[Piece] = []
        size = 0
        for piece in gathered.pieces:
            if piece.log in fixed or not piece.is_small:
                self._pieces[place[piece.log]] = replace(piece, is_fixed=piece.log in fixed)
                break
            if size + piece.raw_bytes > SEGMENT_TARGET_BYTES:
                break
            kept.append(piece)
            size += piece.raw_bytes
        if len(kept) < 2:  # noqa: PLR2004  (one object is no merge)
            return None
        count = kept[-1].log.end - kept[0].log.start + 1
        return replace(gathered, pieces=tuple(kept), frames=gathered.frames[:count])

    def _find_fixed(self, gathered: _Gathered) -> set[LogName]:
        """Return which pieces must stay as they are: see `basenet.archive.compaction`."""
        fixed: set[LogName] = set()
        start = gathered.pieces[0].log.start
        before = None
        for piece in gathered.pieces:
            for encoded in gathered.frames[piece.log.start - start : piece.log.end - start + 1]:
                head = decode_head_of(encoded)
                if before is not None:
                    check_link(before, head)
                before = head
                if head.kind is Kind.CONFIG or (self._prove is None and self._is_foreign(head)):
                    fixed.add(piece.log)
        return fixed

    def _is_foreign(self, head: Head) -> bool:
        """Return whether our signature does not count for the object of an uncertified frame."""
        return head.author != self._seal.signer.public

    async def _with_proofs(self, whole: _Gathered) -> _Gathered | None:
        """Return ``whole`` with what proves it: by the journal, or else by its sources.

        None, and its pieces are fixed, if nothing proves frames of another author.
        """
        if self._prove is None:
            return replace(whole, proofs=())
        start, end = whole.pieces[0].log.start, whole.pieces[-1].log.end
        if not whole.proofs:
            proved = await self._prove(Batch(start=start, frames=whole.frames))
            if proved.end == end and proved.proofs:
                return replace(whole, proofs=proved.proofs)
            stored = await self._gather_stored(whole.pieces)
            whole = replace(whole, proofs=stored.proofs)
        proofs = tuple(proof for proof in whole.proofs if start <= proof.height <= end)
        if not proofs and self._is_foreign(decode_head_of(whole.frames[-1])):
            logs = {piece.log for piece in whole.pieces}
            self._pieces = [
                replace(piece, is_fixed=True) if piece.log in logs else piece
                for piece in self._pieces
            ]
            return None
        return replace(whole, proofs=proofs)

    async def _store_merged(self, whole: _Gathered) -> Piece:
        level = merged_level(whole.pieces)
        epoch = (await self._with_epoch(whole.pieces[-1])).archive_epoch
        assert epoch is not None, "it was asked for"
        batch = Batch(
            start=whole.pieces[0].log.start, frames=whole.frames, proofs=_distinct(whole.proofs)
        )
        sealed = await trio.to_thread.run_sync(self._seal_and_check, batch, epoch, level)
        await self._put(batch, sealed)
        self._written_ns[sealed.name] = self._clock.boot_ns()
        self._puts += 1
        self._put_bytes += len(sealed.data)
        self._sources += len(whole.pieces)
        return Piece(log=sealed.log, raw_bytes=batch.size, archive_epoch=epoch)

    def _seal_and_check(self, batch: Batch, archive_epoch: int, level: int) -> SealedLog:
        """Return the merged object, which gives the very frames back that it was made from."""
        sealed = seal_log(batch, self._seal, archive_epoch, level=level)
        segment = open_log(sealed.data, sealed.name, sealed.log, self._seal.names)
        if tuple(encode_frame(frame) for frame in segment.frames) != batch.frames:
            raise CorruptionError(
                f"{sealed.name} would not give back the frames that it was made from: nothing was "
                "stored, and its sources stay"
            )
        return sealed

    async def _put(self, batch: Batch, sealed: SealedLog) -> None:
        async def put() -> None:
            await self._lease.ensure()
            await self._store.put_if_absent(sealed.name, sealed.data)

        async def call(act: Callable[[], Awaitable[None]]) -> None:
            seconds = seconds_for(len(sealed.data)) + LEASE_SECONDS
            await in_time(act, seconds=seconds, url=self._store.url)

        try:
            await call(put)
        except StoreConflict:
            if not await self._is_same(batch, sealed):
                await call(lambda: self._store.delete(sealed.name))
                await call(put)

    async def _is_same(self, batch: Batch, sealed: SealedLog) -> bool:
        """Return whether our frames lie under our name; False: it is no sound object of ours.

        Raises `TwoHistories` for other frames that a trusted key signed.
        """
        try:
            stored = await self._fetcher.get(sealed.name)
            segment = open_log(stored, sealed.name, sealed.log, self._seal.names)
        except (CorruptionError, StoreNotFound):
            return False
        if segment.public not in self._trusted:
            return False
        check_same_frames(batch, sealed, stored, self._trusted)
        return True


def _fix_overlaps(pieces: list[Piece]) -> None:
    """Fix those of ``pieces``, which ascend by start, that share a frame with another one."""
    furthest = 0
    for place in range(1, len(pieces)):
        if pieces[place].log.start <= pieces[furthest].log.end:
            pieces[furthest] = replace(pieces[furthest], is_fixed=True)
            pieces[place] = replace(pieces[place], is_fixed=True)
        if pieces[place].log.end > pieces[furthest].log.end:
            furthest = place


def _distinct(proofs: Sequence[Certificate]) -> tuple[Certificate, ...]:
    """Return ``proofs`` without those that are there twice, by height."""
    return tuple({(proof.height, proof.phase): proof for proof in proofs}.values())
