"""Which objects a restore reads, decided from a listing before anything is written.

Theory of operation
===================

`make_plan` is a pure function of a catalog, of what is known about single objects, and of the
operator's wish. When it must know more of an object than its name says, it answers with `Needs`,
the caller reads those objects into the `Book`, and asks again. As a rule that is three objects: the
genesis of the lineage, the TIP and the last log object.

1. *The line*: from the root of the lineage tree to its leaf, or to the lineage that was chosen.
2. *The target*: the newest commit, or a seq, or the last commit at or before a moment. Never a
   frame inside a PARTIAL run: such a frame is half a transaction.
3. *The base*: the newest page set at or below the target, else a genesis without pages.
4. *The spans*: log objects from there to the target. Their names must leave no gap.
5. *The standing*: whose signatures count at the base. Along the spans the replay follows it itself.

"Latest" must reach the TIP, which the writer signs while it archives: objects that were deleted
from the end, or a listing that is stale, show up here (P25). Who deletes the TIP as well cannot be
seen from the archive alone; ``expect_seq`` is for that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from basenet.archive.catalog import Catalog, LogItem, SetItem
from basenet.archive.facts import LogFacts, SetFacts, TipFacts
from basenet.archive.finality import check_head
from basenet.archive.lineage import Reach, find_leaf, make_line
from basenet.archive.names import ShardNames
from basenet.archive.port import Entry
from basenet.archive.stretch import Span, Stretch, find_doubtful, find_gap, resolve
from basenet.archive.trust import (
    Genesis,
    Standing,
    begin,
    change,
    check_author,
    check_set_author,
    check_signer,
    enter,
    read_genesis,
)
from basenet.errors import (
    ConflictError,
    CorruptionError,
    NotFoundError,
    PageSetCorrupt,
    UntrustedKey,
    UsageError,
)
from basenet.keys.trust import get_fingerprint
from basenet.units import ZERO_HASH, FrameHash, Lineage, PublicKeyBytes, Seq, TimestampNs
from basenet.wire.frame import Head, genesis_prev_hash
from basenet.wire.frame import Kind as FrameKind
from basenet.wire.merkle import state_root

_SEQ_BEYOND_ALL = Seq(2**64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The frame that a reader has come to: what it needs begins behind it, without a page set.

    ``standing``: who counts there; None: to be found in the archive.
    """

    lineage: Lineage
    head: Head
    standing: Standing | None = None


class StartLeft(ConflictError):  # noqa: N818  (states a fact; the kind is in the base)
    """The history that is followed does not go through the frame that a reader has come to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the operator wants: the newest state, or that of a seq, or that of a moment.

    ``lineage`` chooses a history; ``expect_seq`` is a seq that must not be missed; ``start``: where
    a reader stands who goes on.
    """

    to_seq: Seq | None = None
    to_time_ns: TimestampNs | None = None
    lineage: Lineage | None = None
    expect_seq: Seq | None = None
    start: Start | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The frame whose state is restored."""

    lineage: Lineage
    seq: Seq
    timestamp_ns: TimestampNs
    hash: FrameHash


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The page set that the restore begins with, and its entries; both empty when it is inline."""

    item: SetItem
    facts: SetFacts
    index: Entry | None
    parts: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to read, in order, and what must come out.

    ``standing``: who counts after the base, or before the root's genesis when ``base`` is None.
    ``tip``: the TIP if the restore had to reach it. ``notes``: sentences for people.
    """

    names: ShardNames
    wish: Wish
    line: tuple[Reach, ...]
    target: Target
    base: Base | None
    spans: tuple[Span, ...]
    standing: Standing
    tip: TipFacts | None
    notes: tuple[str, ...]

    @property
    def object_count(self) -> int:
        """How many objects are fetched."""
        fixed = 0 if self.base is None else 1 + (self.base.index is not None)
        return fixed + (len(self.base.parts) if self.base else 0) + len(self.spans)

    @property
    def stored_bytes(self) -> int:
        """How many bytes are fetched."""
        total = sum(span.item.size for span in self.spans)
        if self.base is not None:
            total += self.base.item.size + sum(part.size for part in self.base.parts)
            total += self.base.index.size if self.base.index else 0
        return total


@dataclass(slots=True)
class Book:
    """What is known of single objects, by name."""

    logs: dict[str, LogFacts] = field(default_factory=dict)
    sets: dict[str, SetFacts] = field(default_factory=dict)
    tip: TipFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What has to be read into the book before the plan can be made."""

    logs: tuple[LogItem, ...] = ()
    sets: tuple[SetItem, ...] = ()
    tip: bool = False


class _Unknown(Exception):  # noqa: N818  (no error: it ends one attempt and carries the answer)
    def __init__(self, needs: Needs) -> None:
        super().__init__()
        self.needs = needs


def make_plan(
    catalog: Catalog, book: Book, wish: Wish, trusted: frozenset[PublicKeyBytes]
) -> Plan | Needs:
    """Return the plan, or what must be known first.

    Raises `CorruptionError` for what is missing or not as signed, `ConflictError` for two
    histories, `NotFoundError` for a moment that the archive does not reach, `UsageError` for a
    wish that has no answer.
    """
    try:
        return _Planner(catalog, book, wish, trusted).plan()
    except _Unknown as unknown:
        return unknown.needs


def list_lineages(catalog: Catalog) -> list[Lineage]:
    """Return the lineages that can hold history; a lone part is not one yet."""
    return [lineage for lineage, items in catalog.lineages.items() if items.logs or items.sets]


def find_genesis(facts: LogFacts) -> Genesis | None:
    """Return the genesis that a lineage's first log object begins with, None if it begins later."""
    if not facts.configs:
        return None
    first = facts.configs[0]
    if first.head.seq != facts.log.start:
        return None
    if first.head.prev_hash != genesis_prev_hash(first.payload):
        return None
    return read_genesis(first, facts.log.lineage, facts.signed.name, facts.proofs)


def is_born_empty(genesis: Genesis) -> bool:
    """Return whether the lineage began with a database of no pages, so that it needs no base."""
    return genesis.head.state_root == state_root(genesis.config.page_size, 0, ZERO_HASH)


class _Planner:
    """One attempt at a plan; raises `_Unknown` where the book says too little."""

    def __init__(
        self, catalog: Catalog, book: Book, wish: Wish, trusted: frozenset[PublicKeyBytes]
    ) -> None:
        self._catalog = catalog
        self._book = book
        self._wish = wish
        self._trusted = trusted
        self._notes: list[str] = []
        self._stretches: dict[Lineage, Stretch] = {}

    def plan(self) -> Plan:
        line = self._choose_line()
        end = self._find_end(line)
        tip = self._read_tip_if_due(line)
        bound = self._find_bound(line, end, tip)
        item, spans = self._find_path(line, bound)
        target, spans = self._settle(line, bound, item, spans)
        self._check_reach(line, target, tip)
        base = None if item is None else self._open_base(item)
        self._note_abandoned(line)
        self._note_orphans(line)
        return Plan(
            names=self._catalog.names,
            wish=self._wish,
            line=line,
            target=target,
            base=base,
            spans=spans,
            standing=self._find_standing(line, base),
            tip=tip,
            notes=tuple(self._notes),
        )

    # What single objects say.

    def _facts_of(self, items: Sequence[LogItem]) -> list[LogFacts]:
        missing = tuple(item for item in items if item.name not in self._book.logs)
        if missing:
            raise _Unknown(Needs(logs=missing))
        return [self._book.logs[item.name] for item in items]

    def _set_of(self, item: SetItem) -> SetFacts:
        if item.name not in self._book.sets:
            raise _Unknown(Needs(sets=(item,)))
        return self._book.sets[item.name]

    def _find_genesis(self, lineage: Lineage) -> Genesis | None:
        items = self._catalog.items(lineage)
        if not items.logs:
            if not items.sets:
                raise NotFoundError(
                    f"{self._catalog.names.prefix} holds no lineage {lineage.hex()}"
                )
            return None
        return find_genesis(self._facts_of(items.logs[:1])[0])

    # The line.

    def _choose_line(self) -> tuple[Reach, ...]:
        lineages = list_lineages(self._catalog)
        if self._wish.lineage is not None:
            return make_line(self._wish.lineage, self._find_genesis)
        if not lineages:
            raise NotFoundError(
                f"{self._catalog.names.prefix} holds nothing to restore: no log object, no page set"
            )
        firsts = [self._catalog.items(lineage).logs[:1] for lineage in lineages]
        self._facts_of([item for first in firsts for item in first])  # all in one round
        geneses = {lineage: self._find_genesis(lineage) for lineage in lineages}
        return make_line(find_leaf(geneses, self._catalog.shard), self._find_genesis)

    # Log objects and page sets along it.

    def _resolve(self, reach: Reach, first: int, last: int) -> Stretch:
        """Return who speaks for the frames ``first`` .. ``last`` of ``reach``."""
        whole = self._resolve_all(reach.lineage)
        first = max(first, reach.first)
        last = last if reach.last is None else min(last, reach.last)
        spans = [
            replace(span, first=Seq(max(span.first, first)), last=Seq(min(span.last, last)))
            for span in whole.spans
            if span.last >= first and span.first <= last
        ]
        return Stretch(spans=tuple(spans), orphans=whole.orphans)

    def _resolve_all(self, lineage: Lineage) -> Stretch:
        if lineage not in self._stretches:
            items = self._catalog.items(lineage).logs
            self._facts_of(find_doubtful(items, self._book.logs))
            self._stretches[lineage] = resolve(items, self._book.logs)
        return self._stretches[lineage]

    def _sets_at_or_below(self, line: Sequence[Reach], seq: int) -> Iterator[tuple[int, SetItem]]:
        """Yield the page sets of the line, the newest first, each with its place in the line."""
        for place in reversed(range(len(line))):
            for item in reversed(self._catalog.items(line[place].lineage).sets):
                if item.set.to_seq <= seq and line[place].holds(item.set.to_seq):
                    yield place, item

    def _is_orphan(self, item: SetItem, stretch: Stretch) -> bool:
        """Return whether a page set stands on frames that a higher archive epoch replaced."""
        if not stretch.orphans:
            return False
        seq, digest = item.set.to_seq, self._set_of(item).head.hash
        for span in stretch.spans:
            if span.first <= seq <= span.last:
                return self._facts_of([span.item])[0].hash(seq) != digest
        return any(
            span.first <= seq <= span.last and self._facts_of([span.item])[0].hash(seq) == digest
            for span in stretch.orphans
        )

    def _find_end(self, line: Sequence[Reach]) -> Seq:
        """Return the last seq of the line that the archive holds, inside a run or not."""
        leaf = line[-1]
        for place, item in self._sets_at_or_below(line, _SEQ_BEYOND_ALL):
            if place < len(line) - 1:
                break
            stretch = self._resolve(leaf, item.set.to_seq, _SEQ_BEYOND_ALL)
            if not self._is_orphan(item, stretch):
                return Seq(max([item.set.to_seq, *(span.last for span in stretch.spans)]))
        stretch = self._resolve(leaf, leaf.first, _SEQ_BEYOND_ALL)
        assert stretch.spans, "a lineage without page sets has log objects"
        return stretch.spans[-1].last

    def _find_path(
        self, line: Sequence[Reach], target: Seq
    ) -> tuple[SetItem | None, tuple[Span, ...]]:
        """Return the newest base at or below ``target`` and the spans from there, without a gap."""
        if self._wish.start is not None:
            return None, self._find_spans_behind(self._wish.start, line, target)
        for place, item in self._sets_at_or_below(line, target):
            stretch = self._resolve(line[place], item.set.to_seq, target)
            if self._is_orphan(item, stretch):
                self._notes.append(f"{item.name} stands on orphaned frames and is not used")
                continue
            return item, self._find_spans(line[place:], item.set.to_seq, target)
        genesis = line[0].genesis
        if genesis is None or not is_born_empty(genesis):
            raise self._explain_no_base(line, target)
        return None, self._find_spans(line, Seq(line[0].first - 1), target)

    def _find_spans(self, line: Sequence[Reach], after: Seq, target: Seq) -> tuple[Span, ...]:
        spans: list[Span] = []
        for reach in line:
            first = max(reach.first, after + 1)
            last = target if reach.last is None else min(target, reach.last)
            if first > last:
                continue
            stretch = self._resolve(reach, first, last)
            if gap := find_gap(stretch.spans, first, last):
                raise CorruptionError(
                    f"frames {gap[0]}..{gap[1]} of shard {self._catalog.shard!r}, lineage "
                    f"{reach.lineage.hex()}, are missing: no log object in "
                    f"{self._catalog.names.lineage(reach.lineage)}log/ holds them; choose an "
                    f"earlier moment with --to-seq {gap[0] - 1}, or bring the objects back"
                )
            spans += stretch.spans
        return tuple(spans)

    def _find_spans_behind(
        self, start: Start, line: Sequence[Reach], target: Seq
    ) -> tuple[Span, ...]:
        seq = start.head.seq
        for place, reach in enumerate(line):
            if reach.lineage == start.lineage and reach.holds(seq):
                return self._find_spans(line[place:], seq, target)
        raise StartLeft(
            f"{self._catalog.names.prefix} goes on without frame {seq} of lineage "
            f"{start.lineage.hex()}: another lineage continues from an earlier frame"
        )

    def _explain_no_base(
        self, line: Sequence[Reach], target: Seq
    ) -> CorruptionError | NotFoundError:
        seqs = [item.set.to_seq for _, item in self._sets_at_or_below(line, _SEQ_BEYOND_ALL)]
        where = self._catalog.names.prefix
        if seqs:
            return NotFoundError(
                f"{where} reaches back to seq {min(seqs)}, and seq {target} lies before that: "
                "choose a later moment"
            )
        strays = [
            entry.name.removesuffix(".idx")
            for reach in line
            for entry in self._catalog.items(reach.lineage).stray_indexes
        ]
        # Somebody deleted it, or the snapshot was broken off.
        hint = f" ({strays[-1]}.lbn is missing, and its index is there)" if strays else ""
        return CorruptionError(
            f"{where} has no page set, and its database existed before its first frame: nothing "
            f"says what it held{hint}; wait for the first snapshot, or bring the page set back"
        )

    # The target.

    def _find_bound(self, line: Sequence[Reach], end: Seq, tip: TipFacts | None) -> Seq:
        """Return the seq to restore, before it is moved out of a run."""
        if self._wish.to_time_ns is not None:
            return self._find_moment(line, self._wish.to_time_ns)
        if self._wish.to_seq is None:
            return end
        if self._wish.to_seq > end:
            reached = f"{self._catalog.names.prefix} ends at seq {end}"
            tip = self._read_tip()
            if tip is not None and tip.head.seq >= self._wish.to_seq:
                raise CorruptionError(f"{reached}, but its TIP proves that it held {tip.head.seq}")
            raise NotFoundError(f"{reached}, and seq {self._wish.to_seq} was asked for")
        if self._wish.to_seq < 1:
            raise UsageError("--to-seq counts from 1")
        return self._wish.to_seq

    def _find_moment(self, line: Sequence[Reach], moment_ns: TimestampNs) -> Seq:
        """Return the last commit of the line at or before ``moment_ns``."""
        for reach in reversed(line):
            seq = self._find_moment_in(reach, moment_ns)
            if seq is not None:
                return seq
        raise NotFoundError(
            f"{self._catalog.names.prefix} holds nothing that was captured at or before the moment "
            "asked for with --to-time: choose a later one"
        )

    def _find_moment_in(self, reach: Reach, moment_ns: TimestampNs) -> Seq | None:
        spans = self._resolve(reach, reach.first, _SEQ_BEYOND_ALL).spans
        found = None
        for span in reversed(spans):
            if span.item.log.nanos <= moment_ns:
                found = _last_commit(self._facts_of([span.item])[0], span, moment_ns)
                if found is not None:
                    break
        # Below a page set the log may be gone: then its own frame can be the one.
        for item in reversed(self._catalog.items(reach.lineage).sets):
            seq = item.set.to_seq
            if seq <= (found or 0) or not reach.holds(seq):
                continue
            if any(span.first <= seq <= span.last for span in spans):
                continue
            if self._set_of(item).head.timestamp_ns <= moment_ns:
                return seq
        return found

    def _settle(
        self, line: Sequence[Reach], bound: Seq, item: SetItem | None, spans: tuple[Span, ...]
    ) -> tuple[Target, tuple[Span, ...]]:
        """Return the target at or below ``bound`` that is no half transaction, and its spans."""
        seq = bound
        while spans and seq >= spans[0].first:
            span = next(span for span in spans if span.first <= seq <= span.last)
            facts = self._facts_of([span.item])[0]
            if not facts.is_partial(seq):
                kept = [replace(s, last=Seq(min(s.last, seq))) for s in spans if s.first <= seq]
                return _target_in(facts, seq), tuple(kept)
            if self._wish.to_seq is not None:
                raise self._explain_run(line, seq)
            seq = Seq(seq - 1)
        if self._wish.start is not None:
            return _target_of(self._wish.start.head, self._wish.start.lineage), ()
        assert item is not None, "the genesis of a line is no PARTIAL frame"
        head = self._set_of(item).head
        return _target_of(head, item.set.lineage), ()

    def _explain_run(self, line: Sequence[Reach], seq: Seq) -> UsageError:
        """Return the refusal of a seq inside a run; it names the seq where the run ends."""
        reach = next(reach for reach in line if reach.holds(seq))
        for span in self._resolve(reach, seq, _SEQ_BEYOND_ALL).spans:
            facts = self._facts_of([span.item])[0]
            for later in range(max(span.first, seq), span.last + 1):
                if not facts.is_partial(later):
                    return UsageError(
                        f"seq {seq} lies inside a transaction that ends at seq {later}: "
                        f"choose --to-seq {later}"
                    )
        return UsageError(
            f"seq {seq} lies inside a transaction whose end is not archived yet: choose an "
            "earlier seq"
        )

    # How far the archive must reach.

    def _read_tip(self) -> TipFacts | None:
        if self._catalog.tip is None:
            return None
        if self._book.tip is None:
            raise _Unknown(Needs(tip=True))
        return self._book.tip

    def _read_tip_if_due(self, line: Sequence[Reach]) -> TipFacts | None:
        """Return the TIP if the wish has to reach it."""
        if self._wish.to_seq is not None:
            return None
        tip = self._read_tip()
        if tip is None:
            self._notes.append(
                "there is no TIP, so objects deleted from the end would not be missed; "
                "--expect-seq N makes sure"
            )
            return None
        if self._wish.to_time_ns is not None and self._wish.to_time_ns < tip.head.timestamp_ns:
            return None
        if tip.lineage in {reach.lineage for reach in line}:
            return tip
        if self._wish.lineage is None:
            raise CorruptionError(
                f"the TIP names lineage {tip.lineage.hex()}, of which {self._catalog.names.prefix} "
                "holds nothing: its objects were deleted, or the listing is stale"
            )
        return None

    def _check_reach(self, line: Sequence[Reach], target: Target, tip: TipFacts | None) -> None:
        expected = self._wish.expect_seq
        if expected is not None and target.seq < expected:
            raise CorruptionError(
                f"{self._catalog.names.prefix} gives seq {target.seq}, below the seq {expected} "
                "that --expect-seq demands: newer objects are missing, or not archived yet"
            )
        if tip is None:
            return
        reach = next(reach for reach in line if reach.lineage == tip.lineage)
        if reach.holds(tip.head.seq) and target.seq < tip.head.seq:
            raise CorruptionError(
                f"{self._catalog.names.tip} proves that seq {tip.head.seq} was archived, and only "
                f"{target.seq} can be restored: the newest objects were deleted, or the listing is "
                f"stale; --to-seq {target.seq} restores what is left"
            )

    # The base and who counts there.

    def _open_base(self, item: SetItem) -> Base:
        facts = self._set_of(item)
        if facts.pages.inline is not None:
            return Base(item=item, facts=facts, index=None, parts=())
        if item.index is None:
            raise PageSetCorrupt(f"{item.name[:-4]}.idx, the index of {item.name}, is missing")
        held = self._catalog.items(item.set.lineage).parts
        prefix = self._catalog.names.lineage(item.set.lineage)
        parts = []
        for part in facts.pages.parts:
            entry = held.get(part.name or part.node_hash)
            if entry is None:
                raise PageSetCorrupt(f"{prefix}part/{part.file_name}, of {item.name}, is missing")
            if entry.size != part.stored_len:
                raise PageSetCorrupt(
                    f"{entry.name} has {entry.size} bytes, and {item.name} says {part.stored_len}"
                )
            parts.append(entry)
        return Base(item=item, facts=facts, index=item.index, parts=tuple(parts))

    def _find_standing(self, line: Sequence[Reach], base: Base | None) -> Standing:
        """Return who counts after the base or the start; the reaches below are entered first."""
        start = self._wish.start
        if start is not None and start.standing is not None:
            return start.standing
        standing = begin(self._trusted)
        if base is not None:
            at, head = base.item.set.lineage, base.facts.head
        elif start is not None:
            at, head = start.lineage, start.head
        else:
            return standing
        for reach in line:
            standing = self._enter(standing, reach)
            if reach.lineage == at:
                # A CONFIG is of the epoch that it ends.
                epoch = None if head.kind is FrameKind.CONFIG else head.epoch
                standing = self._find_change(standing, reach, head.seq, epoch)
                break
            if reach.last is not None:
                standing = self._find_change(standing, reach, reach.last, None)
        if base is None:
            return standing
        check_signer(standing, base.facts.signed)
        check_set_author(standing, base.facts)
        check_head(standing, base.facts.head, base.facts.proofs, base.item.name)
        return standing

    def _enter(self, standing: Standing, reach: Reach) -> Standing:
        if reach.genesis is None:
            return standing
        name = self._catalog.items(reach.lineage).logs[0].name
        return enter_lineage(standing, reach.genesis, name, self._wish.lineage)

    def _find_change(
        self, standing: Standing, reach: Reach, seq: Seq, epoch: int | None
    ) -> Standing:
        """Return the standing at ``seq`` when the base lies above it, so that no replay finds it.

        ``epoch`` is that of the frame ``seq``, if it is known: equal to that of the genesis, there
        was no CONFIG since. Otherwise what is left of the log is read for CONFIGs.
        """
        if reach.genesis is None or seq == reach.genesis.head.seq:
            return standing
        if epoch is None:
            covering = self._resolve(reach, seq, seq).spans
            if not covering:
                return standing
            found = self._facts_of([covering[0].item])[0]
            is_config = any(frame.head.seq == seq for frame in found.configs)
            epoch = None if is_config else found.epoch(seq)
        if epoch == reach.genesis.head.epoch:
            return standing
        spans = self._resolve(reach, reach.first, seq).spans
        for span, facts in zip(spans, self._facts_of([s.item for s in spans]), strict=True):
            for frame in facts.configs:
                if span.first <= frame.head.seq <= span.last and frame.head.seq != reach.first:
                    name = span.item.name
                    standing = change(standing, frame, reach.lineage, name, facts.proofs)
        if find_gap(spans, reach.first, seq) is None:
            return standing
        # A CONFIG may have been among what retention deleted: then only belief decides. Where
        # certificates do, they tell of which epoch they are.
        return standing if standing.is_certified else replace(standing, voters=None)

    # What people should know.

    def _note_abandoned(self, line: Sequence[Reach]) -> None:
        for reach in line:
            ends = [item.log.end for item in self._catalog.items(reach.lineage).logs]
            if reach.last is not None and ends and max(ends) > reach.last:
                self._notes.append(
                    f"frames {reach.last + 1}..{max(ends)} of lineage {reach.lineage.hex()} are "
                    "abandoned: another lineage went on from there"
                )

    def _note_orphans(self, line: Sequence[Reach]) -> None:
        for reach in line:
            for span in self._resolve_all(reach.lineage).orphans:
                self._notes.append(
                    f"frames {span.first}..{span.last} in {span.item.name} are orphaned: "
                    "a writer with a higher archive epoch took over"
                )


def enter_lineage(
    standing: Standing, genesis: Genesis, name: str, chosen: Lineage | None
) -> Standing:
    """Return the standing after ``genesis``, who must be believed: nothing is read on trust."""
    after = enter(standing, genesis, name, chosen=chosen)
    if genesis.config.is_forced and not after.accepts(genesis.head.author):
        raise UntrustedKey(
            f"{name}: lineage {genesis.config.lineage.hex()} was FORCED by the key "
            f"{get_fingerprint(genesis.head.author)}, which is not trusted by itself; add it to "
            "the trusted keys, or choose a lineage with --lineage HEX"
        )
    check_author(after, genesis.head, name)
    return after


def _last_commit(facts: LogFacts, span: Span, moment_ns: TimestampNs) -> Seq | None:
    for seq in range(span.last, span.first - 1, -1):
        if facts.timestamp_ns(seq) <= moment_ns and not facts.is_partial(seq):
            return Seq(seq)
    return None


def _target_in(facts: LogFacts, seq: Seq) -> Target:
    return Target(
        lineage=facts.log.lineage,
        seq=seq,
        timestamp_ns=facts.timestamp_ns(seq),
        hash=facts.hash(seq),
    )


def _target_of(head: Head, lineage: Lineage) -> Target:
    return Target(lineage=lineage, seq=head.seq, timestamp_ns=head.timestamp_ns, hash=head.hash)
