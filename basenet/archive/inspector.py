"""Everything of one lineage: its log objects in order, and its page sets where they stand.

Theory of operation
===================

Log objects are read in order and given to a `Walk`, cut where a page set stands::

    log       [1 ... 9][10 ........ 30][31 ...        gap        ... 80]
    page sets              ^17                              ^60
    walk       1 .. 9 | 10 .. 17 | 18 .. 30 | 31 .. |      lost | 60: found again | 61 .. 80

At a page set the walk's last frame must be the set's head, which makes the two states equal; where
the walk has lost the state, the set gives it back, once every block of it was verified. A part that
several sets share is verified once.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from basenet.archive.catalog import LineageItems, LogItem, SetItem
from basenet.archive.facts import (
    LogFacts,
    SetFacts,
    make_log_facts,
    naming,
    open_log,
    sign_of,
)
from basenet.archive.fetch import Request, Stream
from basenet.archive.finality import check_head
from basenet.archive.findings import Inspection
from basenet.archive.names import LOG_FOLDER_SEQS
from basenet.archive.port import StoreNotFound
from basenet.archive.setreader import SetReader
from basenet.archive.stretch import Span, Stretch, find_doubtful, resolve
from basenet.archive.trust import check_set_author, check_signer
from basenet.archive.walk import Walk
from basenet.errors import ChainBroken, ConflictError, CorruptionError
from basenet.units import HASH_BYTES, Seq
from basenet.wire.segment import Segment, TreeRecord

LocatedSet = tuple[SetItem, SetFacts]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageLimits:
    """Where a lineage begins and what of it need not be there.

    ``pruned_to``: frames at or below it may be gone, because a page set older than the retention
    stands above them. ``left_at``: the last seq at which another lineage goes on; frames above it
    are abandoned.
    """

    first_seq: Seq
    pruned_to: int
    left_at: int | None


class LineageInspector:
    """Goes through one lineage once."""

    def __init__(
        self,
        inspection: Inspection,
        items: LineageItems,
        walk: Walk,
        *,
        sets: Sequence[LocatedSet],
        limits: LineageLimits,
    ) -> None:
        """``walk`` has begun with the genesis, if there is one; ``sets``: by seq."""
        self._inspection = inspection
        self._names = inspection.names
        self._items = items
        self._walk = walk
        self._limits = limits
        self._due = limits.first_seq
        self._sets = deque(sets)
        self._orphans: tuple[Span, ...] = ()
        self._parts: set[str] = set()  # the names of parts that a manifest names
        self.gaps: list[tuple[Seq, Seq]] = []
        """The frames, from and to, that are missing and should not be."""

    @property
    def end(self) -> Seq:
        """The last seq that was found, after `run`."""
        return Seq(self._due - 1)

    async def run(self) -> None:
        """Read and judge everything."""
        stretch = await self._resolve()
        self._orphans = stretch.orphans
        await self._walk_spans(stretch.spans)
        while self._sets:
            await self._pass_set(*self._sets.popleft())
        self._walk.end()
        self._walk.stop_range()
        self._note_orphans()
        self._note_unreferenced()
        if not self._walk.ranges and self._limits.left_at is None:
            self._inspection.report(
                f"{self._names.lineage(self._items.lineage)}set/L9/*",
                f"nothing of lineage {self._items.lineage.hex()} can be restored: no page set, "
                "and no genesis without pages, lies before its log",
            )

    async def _resolve(self) -> Stretch:
        """Return who speaks for which frames; only when objects overlap they are read for it."""
        items = list(self._items.logs)
        facts: dict[str, LogFacts] = {}
        while doubtful := find_doubtful(items, facts, is_thorough=True):
            for item in doubtful:
                found = await self._read_facts(item)
                if found is None:
                    items.remove(item)
                else:
                    facts[item.name] = found
        try:
            return resolve(items, facts, is_thorough=True)
        except ConflictError as error:
            self._inspection.report(self._names.lineage(self._items.lineage), str(error))
            return Stretch(spans=())

    async def _read_facts(self, item: LogItem) -> LogFacts | None:
        data = await self._inspection.get(item.name)
        if data is None:
            return None
        try:
            with naming(item.name):
                segment = open_log(data, item.name, item.log, self._names)
                return make_log_facts(segment, item.name, item.log)
        except CorruptionError as error:
            self._inspection.report(item.name, str(error))
            return None

    # The log.

    async def _walk_spans(self, spans: Sequence[Span]) -> None:
        def opened(number: int, data: bytes) -> Segment:
            item = spans[number].item
            segment = open_log(data, item.name, item.log, self._names)
            with naming(item.name):
                _check_signatures(segment)
            return segment

        requests = [Request(name=span.item.name, size=span.item.size) for span in spans]
        async with self._inspection.fetcher.stream(requests, opened) as stream:
            for number, span in enumerate(spans):
                await self._pass_gap(span)
                segment = await self._next(stream, span.item)
                if segment is None:
                    self._walk.lose()
                else:
                    await self._walk_span(span, segment)
                self._due = Seq(span.last + 1)
                await stream.done(number)
                self._inspection.meter.add(span.item.size)

    async def _next(self, stream: Stream[Segment], item: LogItem) -> Segment | None:
        try:
            return (await anext(stream))[1]
        except CorruptionError as error:
            self._inspection.report(item.name, str(error))
        except StoreNotFound:
            self._inspection.report_lost(item.name)
        return None

    async def _pass_gap(self, span: Span) -> None:
        """Take the page sets that stand before ``span``, and report what is missing before it."""
        while self._sets and self._sets[0][0].set.to_seq < span.first:
            await self._pass_set(*self._sets.popleft())
        if span.first > self._due:
            self._report_gap(Seq(span.first - 1))
            self._walk.lose()

    async def _walk_span(self, span: Span, segment: Segment) -> None:
        frames = segment.frames[span.first - segment.start_seq :][: span.last - span.first + 1]
        name, before, proofs = span.item.name, self._walk.standing, segment.certificates
        while self._sets and self._sets[0][0].set.to_seq <= span.last:
            item, facts = self._sets.popleft()
            count = max(item.set.to_seq - frames[0].head.seq + 1, 0) if frames else 0
            await trio.to_thread.run_sync(self._walk.take, frames[:count], name, proofs)
            frames = frames[count:]
            await self._check_set(item, facts)
        await trio.to_thread.run_sync(self._walk.take, frames, name, proofs)
        later = [frame.head for frame in segment.frames[span.first - segment.start_seq :]]
        self._walk.prove(later, span.last, proofs, name)
        self._walk.check_object(sign_of(segment, name), before)
        for record in segment.records:
            if isinstance(record, TreeRecord) and span.last == segment.end_seq:
                self._walk.check_tree(record, name)

    def _report_gap(self, last: Seq) -> None:
        """Report that the frames from the one that is due to ``last`` are missing."""
        first, lineage = self._due, self._items.lineage
        if self._is_left_by_retention(first, last):
            self._inspection.notes.append(
                f"frames {first}..{last} of lineage {lineage.hex()} are gone, as retention leaves "
                "it: no moment that it keeps needs them"
            )
            return
        self.gaps.append((first, last))
        self._inspection.report(
            f"{self._names.lineage(lineage)}log/{first // LOG_FOLDER_SEQS:016d}/{first:020d}-*",
            f"frames {first}..{last} are missing: no log object holds them",
        )

    def _is_left_by_retention(self, first: Seq, last: Seq) -> bool:
        """Return whether retention may have deleted the frames ``first`` .. ``last``.

        A gap can reach from below the oldest page set to above the seq at which the lineage was
        left: an abandoned object with a CONFIG stays, and everything before it goes.
        """
        left_at, pruned_to = self._limits.left_at, self._limits.pruned_to
        needed_to = last if left_at is None else min(last, left_at)
        if needed_to >= first and needed_to > pruned_to:
            return False
        return needed_to == last or self._is_abandoned_for_long(Seq(max(first, needed_to + 1)))

    def _is_abandoned_for_long(self, first: Seq) -> bool:
        """Return whether nothing from ``first`` on is part of a line, and all of it is old."""
        left_at, head = self._limits.left_at, self._walk.head
        if left_at is None or first <= left_at:
            return False
        return head is None or self._inspection.may_have_expired(head.timestamp_ns)

    # Page sets.

    async def _pass_set(self, item: SetItem, facts: SetFacts) -> None:
        """Take a page set at a seq of which there is no frame in the log."""
        if item.set.to_seq >= self._due:
            self._report_gap(item.set.to_seq)
            self._walk.lose()
            self._due = Seq(item.set.to_seq + 1)
        await self._check_set(item, facts)

    async def _check_set(self, item: SetItem, facts: SetFacts) -> None:
        """Judge a page set where the walk has reached it, and let the walk adopt its state."""
        if self._is_orphan(facts):
            self._inspection.notes.append(f"{item.name} stands on orphaned frames")
            return
        is_sound = True
        try:
            check_signer(self._walk.standing, facts.signed)
            check_set_author(self._walk.standing, facts)
            check_head(self._walk.standing, facts.head, facts.proofs, item.name)
            self._check_place(facts)
        except CorruptionError as error:
            self._inspection.report(item.name, str(error))
            is_sound = False
        leaves = await self._read_set(item, facts)
        if leaves is not None and is_sound:
            await trio.to_thread.run_sync(self._walk.adopt, facts, bytes(leaves))
        else:
            # A restore of a later moment would begin here, and fail.
            self._walk.stop_range()

    def _check_place(self, facts: SetFacts) -> None:
        head = self._walk.head
        if head is None:
            return
        if head.seq == facts.head.seq and head.hash != facts.head.hash:
            raise ChainBroken(
                f"it stands at frame {head.seq}, {facts.head.hash.hex()}, and the log has "
                f"{head.hash.hex()} there"
            )
        if head.seq > facts.head.seq:
            raise ChainBroken(f"it stands at {facts.head.seq}, before its lineage begins")

    def _is_orphan(self, facts: SetFacts) -> bool:
        head = self._walk.head
        is_covered = any(span.first <= facts.head.seq <= span.last for span in self._orphans)
        return is_covered and (head is None or head.hash != facts.head.hash)

    async def _read_set(self, item: SetItem, facts: SetFacts) -> bytearray | None:
        """Verify every block; return the leaf hashes, or None if anything is wrong."""
        reader = await self._open_index(item, facts)
        if reader is None:
            return None
        leaves = bytearray(facts.pages.db_pages * HASH_BYTES)
        if facts.pages.inline is not None:
            return leaves if self._read_inline(item, reader, leaves) else None
        return leaves if await self._read_parts(reader, leaves) else None

    async def _open_index(self, item: SetItem, facts: SetFacts) -> SetReader | None:
        data, name = None, item.name
        if facts.pages.inline is None:
            name = f"{item.name.removesuffix('.lbn')}.idx"
            if item.index is None:
                self._inspection.report(name, f"the index of {item.name} is missing")
                return None
            data = await self._inspection.get(name)
            self._inspection.meter.add(item.index.size)
            if data is None:
                return None
        try:
            return await trio.to_thread.run_sync(SetReader, facts, data, name)
        except CorruptionError as error:
            self._inspection.report(name, str(error))
            return None

    def _read_inline(self, item: SetItem, reader: SetReader, leaves: bytearray) -> bool:
        try:
            for number in range(len(reader.pages.parts)):
                _fill(leaves, reader, number, reader.inline_part(number), item.name)
        except CorruptionError as error:
            self._inspection.report(item.name, str(error))
            return False
        return True

    async def _read_parts(self, reader: SetReader, leaves: bytearray) -> bool:
        """Verify the parts that are not verified yet, or all if the walk needs the leaves."""
        folder = f"{self._names.lineage(self._items.lineage)}part/"
        numbers, requests, is_whole = [], [], True
        for number, part in enumerate(reader.pages.parts):
            name = folder + part.file_name
            self._parts.add(name)
            entry = self._items.parts.get(part.name or part.node_hash)
            if entry is None:
                self._inspection.report(name, "it is missing, and a page set needs it")
                is_whole = False
            elif not self._walk.knows_state or not reader.list_blocks(
                number
            ) <= self._inspection.verified_blocks.get(name, frozenset()):
                numbers.append(number)
                requests.append(Request(name=name, size=entry.size))

        def decode(place: int, data: bytes) -> int:
            number = numbers[place]
            _fill(leaves, reader, number, data, requests[place].name)
            return number

        async with self._inspection.fetcher.stream(requests, decode) as stream:
            for place, request in enumerate(requests):
                if await self._verify_part(stream, request):
                    known = self._inspection.verified_blocks
                    blocks = reader.list_blocks(numbers[place])
                    known[request.name] = known.get(request.name, frozenset()) | blocks
                else:
                    is_whole = False
                await stream.done(place)
                self._inspection.meter.add(request.size)
        return is_whole

    async def _verify_part(self, stream: Stream[int], request: Request) -> bool:
        try:
            await anext(stream)
        except CorruptionError as error:
            self._inspection.report(request.name, str(error))
            return False
        except StoreNotFound:
            self._inspection.report_lost(request.name)
            return False
        return True

    # What nothing depends on.

    def _note_orphans(self) -> None:
        for span in self._orphans:
            self._inspection.notes.append(
                f"frames {span.first}..{span.last} in {span.item.name} are orphaned: a writer with "
                "a higher archive epoch took over"
            )

    def _note_unreferenced(self) -> None:
        held = {entry.name for entry in self._items.parts.values()}
        if lone := held - self._parts:
            self._inspection.notes.append(
                f"{len(lone)} parts of lineage {self._items.lineage.hex()} belong to no page set: "
                "a snapshot is being written, or they will be deleted by age"
            )


def _check_signatures(segment: Segment) -> None:
    for frame in segment.frames:
        if not frame.head.is_signed_by_author():
            raise ChainBroken(f"frame {frame.head.seq} is not signed by its author")


def _fill(
    leaves: bytearray, reader: SetReader, number: int, data: bytes | memoryview, name: str
) -> None:
    """Put the leaf hashes of part ``number`` where they belong."""
    for block in reader.read_part(number, data, name):
        start = (block.first_pgno - 1) * HASH_BYTES
        leaves[start : start + len(block.leaves)] = block.leaves
