"""How a journal continues an archive, decided once at each start (P9, Q4).

Theory of operation
===================

A node starts with a journal, or without one, and finds an archive, or none. Two histories must
never have the same lineage, whatever was lost, copied or put back in between. So:

=============================  =================================================================
the archive holds nothing      `Birth`, or the journal's own lineage goes on (`Resume`)
our lineage, a leaf, and the   `Resume`: the same lineage, from the archive's end on
journal stands at or above
its end with the same frame
anything else                  `Child`: a new lineage that names the archive's last commit as its
                               parent, and brings what the file at hand holds beyond
not to be believed, or not     `Refuse`, with the sentence that says how to go on
to be told
=============================  =================================================================

An archive that was broken off or damaged must not stop its database from being archived. When its
newest state cannot be told (its first snapshot never finished, a part or a frame is missing), the
child begins with all pages *unknown*: it brings every page itself, and needs a snapshot. Likewise
our own lineage is not continued when its genesis is gone. What is refused is what would make
history of somebody else's: a key that is not trusted, two leaves, a TIP that proves more than is
there.

"Anything else" is a journal that is empty, older (a restored backup), another's, or a copy with an
identity of its own; and an archive that somebody else has continued. None of these may go on with
the lineage, because frames that they do not know may be final elsewhere. A child costs nothing: no
new snapshot, a restore walks up to the parent.

A child's author must have been a voter at the parent's frame, or the child is FORCED: then only an
operator who names its key believes it.

The lease comes first (`Lease.observe`), the decision second, capture third. If the lease has
changed by the time of the first write, nothing is written, and the decision is made again.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from basenet.archive.catalog import Catalog, LineageItems, LogItem, read_catalog
from basenet.archive.facts import (
    LogFacts,
    TipFacts,
    make_log_facts,
    open_log,
    open_set,
    open_tip,
    sign_of,
)
from basenet.archive.fetch import Fetcher
from basenet.archive.lineage import find_leaves
from basenet.archive.names import ShardNames
from basenet.archive.parentstate import ParentState, read_tip_state
from basenet.archive.plan import Wish, find_genesis, list_lineages
from basenet.archive.port import Store, StoreNotFound, StoreRefused
from basenet.archive.stretch import Stretch, find_doubtful, find_gap, resolve
from basenet.archive.survey import Survey
from basenet.archive.trust import Genesis
from basenet.errors import BasenetError, CorruptionError, UnavailableError, UntrustedKey
from basenet.units import ZERO_HASH, FrameHash, JournalId, Lineage, PublicKeyBytes, Seq
from basenet.wire.frame import Flag, Head
from basenet.wire.payload import ConfigPayload


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalFacts:
    """What a shard's journal says of itself.

    ``journal_id``: the journal's own. ``config``: in force at its tip. ``first_seq``: the oldest
    frame that it still holds (tip + 1 when none), ``archived_seq``: its own record of what is
    archived. ``hash_at`` returns the hash of a frame, or None if it is not held any more.
    """

    journal_id: JournalId
    lineage: Lineage
    config: ConfigPayload
    genesis_seq: Seq
    first_seq: Seq
    tip_seq: Seq
    tip_hash: FrameHash
    archived_seq: Seq
    hash_at: Callable[[Seq], Awaitable[FrameHash | None]]

    def is_written_by(self, key: bytes) -> bool:
        """Return whether this very journal, with this key, is the voter of its lineage."""
        return any(
            voter.key == key and voter.journal_id == self.journal_id for voter in self.config.voters
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """Nothing is archived and nothing journalled: begin with a genesis."""

    archive_epoch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Go on in the journal's lineage; frames above ``archived_seq`` are to be shipped.

    ``needs_snapshot``: the log has a gap that the journal cannot fill, so that only a new snapshot
    ends it; shipping then begins at the journal's first frame. ``has_tip``: there is a TIP that is
    ours; otherwise one is to be written, also if no frame follows.
    """

    archived_seq: Seq
    needs_snapshot: bool
    archive_epoch: int
    notes: tuple[str, ...] = ()
    has_tip: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """Begin a child lineage of the frame ``seq``, ``hash`` of ``parent``.

    ``state``: the database there; None when the parent is the journal's own history, which is not
    in the archive: then the journal's leaves are that state. ``needs_snapshot``: nothing of the
    child can be restored before it has one. ``has_regressed``: the archive is ahead of a journal
    that is its own, which was put back to an older state.
    """

    parent: Lineage
    seq: Seq
    hash: FrameHash
    state: ParentState | None
    is_forced: bool
    archive_epoch: int
    notes: tuple[str, ...] = ()
    needs_snapshot: bool = False
    has_regressed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Do not archive this shard: ``error`` says in one sentence why, and how to go on."""

    error: BasenetError


Continuation = Birth | Resume | Child | Refuse


async def decide_continuation(
    store: Store,
    names: ShardNames,
    *,
    journal: JournalFacts | None,
    key: PublicKeyBytes,
    trusted: frozenset[PublicKeyBytes],
    fetcher: Fetcher | None = None,
) -> Continuation:
    """Return how the node with the signing key ``key`` continues the shard's archive.

    ``archive_epoch`` in the answer is the highest that was met: the lease must rise above it.
    Raises `UnavailableError` and `StoreRefused` when the archive cannot be read now.
    """
    decision = _Decision(
        names,
        await read_catalog(store, names),
        fetcher or Fetcher(store),
        journal=journal,
        key=key,
        trusted=trusted,
    )
    try:
        found = await decision.decide()
        if isinstance(found, Resume) and journal is not None:
            await store.check_writable(names.lineage(journal.lineage))
    except (UnavailableError, StoreRefused):
        raise
    except StoreNotFound as error:
        raise UnavailableError(f"the archive changed while it was read: {error}") from error
    except BasenetError as error:
        return Refuse(error=error)
    return found


class _Decision:
    """One decision, and what was read for it."""

    def __init__(
        self,
        names: ShardNames,
        catalog: Catalog,
        fetcher: Fetcher,
        *,
        journal: JournalFacts | None,
        key: PublicKeyBytes,
        trusted: frozenset[PublicKeyBytes],
    ) -> None:
        self._names = names
        self._catalog = catalog
        self._fetcher = fetcher
        self._journal = journal
        self._key = key
        self._trusted = trusted
        self._believed = trusted | {key}
        self._facts: dict[str, LogFacts] = {}
        self._archive_epoch = 0
        self._notes: list[str] = []

    async def decide(self) -> Continuation:
        tip = await self._read_tip()
        lineages = list_lineages(self._catalog)
        if not lineages:
            return self._begin(tip)
        journal = self._journal
        is_ours = (
            journal is not None
            and journal.lineage in lineages
            and journal.is_written_by(self._key)
            and await self._is_leaf(journal, lineages)
        )
        resume = await self._resume(journal, tip) if journal is not None and is_ours else None
        return resume or await self._begin_child(tip)

    # An archive that holds nothing.

    def _begin(self, tip: TipFacts | None) -> Continuation:
        journal = self._journal
        if tip is not None and (journal is None or tip.lineage != journal.lineage):
            raise CorruptionError(
                f"{self._names.tip} proves that frame {tip.head.seq} of lineage "
                f"{tip.lineage.hex()} was archived, and nothing of it is there: bring the objects "
                "back, or delete that TIP to give them up"
            )
        if journal is None:
            return Birth(archive_epoch=self._archive_epoch)
        if journal.first_seq <= journal.genesis_seq and journal.is_written_by(self._key):
            return Resume(
                archived_seq=Seq(journal.genesis_seq - 1),
                needs_snapshot=False,
                archive_epoch=self._archive_epoch,
            )
        # The log before is nowhere, and without its genesis a lineage cannot be placed.
        return self._continue_journal(
            journal, "the archive is new to this journal, which holds no complete log"
        )

    def _continue_journal(self, journal: JournalFacts, note: str) -> Child:
        """Return a child of the journal's own history, as far as that is known to the journal."""
        return Child(
            parent=journal.lineage,
            seq=journal.tip_seq,
            hash=journal.tip_hash,
            state=None,
            is_forced=not any(voter.key == self._key for voter in journal.config.voters),
            archive_epoch=self._archive_epoch,
            notes=(*self._notes, note),
            needs_snapshot=True,
        )

    # Going on in our own lineage.

    async def _is_leaf(self, journal: JournalFacts, lineages: Sequence[Lineage]) -> bool:
        """Return whether nobody has continued our lineage."""
        for lineage in lineages:
            logs = self._catalog.items(lineage).logs
            if lineage == journal.lineage or not logs:
                continue
            genesis = find_genesis((await self._read([logs[0]]))[0])
            if genesis is None:
                self._notes.append(f"lineage {lineage.hex()} has lost its genesis")
            elif genesis.config.parent is not None and genesis.config.parent[0] == journal.lineage:
                return False
        return True

    async def _resume(self, journal: JournalFacts, tip: TipFacts | None) -> Resume | Child | None:
        """Return where to go on, or None if the journal does not stand at or above the archive.

        A child of our own history, when the archive has lost our genesis and the journal, too.
        """
        items = self._catalog.items(journal.lineage)
        stretch = await self._resolve(items)
        sets = [item.set.to_seq for item in items.sets]
        end = Seq(max([*(span.last for span in stretch.spans), *sets]))
        if tip is not None and tip.lineage == journal.lineage and tip.head.seq > end:
            self._check_tip_ahead(journal, tip, end)
        if journal.tip_seq < end or not await self._is_same_at(journal, items, stretch, end):
            return None
        first_gap = find_gap(
            stretch.spans, max([*(seq + 1 for seq in sets if seq <= end), journal.genesis_seq]), end
        )
        if not await self._has_genesis(items):
            if journal.first_seq > journal.genesis_seq:
                return self._continue_journal(
                    journal, f"lineage {journal.lineage.hex()} has lost its genesis"
                )
            first_gap = (journal.genesis_seq, journal.genesis_seq)
        archived_seq = end if first_gap is None else Seq(first_gap[0] - 1)
        needs_snapshot = journal.first_seq > archived_seq + 1
        if first_gap is not None:
            self._notes.append(f"the archive lacks the frames {first_gap[0]}..{first_gap[1]}")
        if needs_snapshot:
            archived_seq = Seq(journal.first_seq - 1)
        return Resume(
            archived_seq=archived_seq,
            needs_snapshot=needs_snapshot,
            archive_epoch=self._archive_epoch,
            notes=tuple(self._notes),
            has_tip=tip is not None and tip.lineage == journal.lineage,
        )

    async def _has_genesis(self, items: LineageItems) -> bool:
        """Return whether the first log object is there and begins with the genesis."""
        try:
            facts = await self._read(items.logs[:1])
        except CorruptionError:
            return True  # damaged, and not gone: only a person can tell what it held
        return bool(facts) and find_genesis(facts[0]) is not None

    def _check_tip_ahead(self, journal: JournalFacts, tip: TipFacts, end: Seq) -> None:
        """Objects above ``end`` were deleted; go on only if our journal knows what they held."""
        if journal.tip_seq < tip.head.seq:
            raise CorruptionError(
                f"{self._names.tip} proves that frame {tip.head.seq} was archived, but the log "
                f"ends at {end} and this journal at {journal.tip_seq}: bring the objects back, or "
                "delete that TIP to give them up"
            )
        self._notes.append(
            f"{self._names.tip} proves that frame {tip.head.seq} was archived, but the log ends "
            f"at {end}: what the journal still holds is shipped again"
        )

    async def _resolve(self, items: LineageItems) -> Stretch:
        """Return who speaks for which frames; overlapping objects are read for it."""
        while doubtful := find_doubtful(items.logs, self._facts):
            await self._read(doubtful)
        return resolve(items.logs, self._facts)

    async def _is_same_at(
        self, journal: JournalFacts, items: LineageItems, stretch: Stretch, end: Seq
    ) -> bool:
        """Return whether the journal's frame ``end`` is the archive's."""
        ours = await journal.hash_at(end)
        last = stretch.spans[-1] if stretch.spans else None
        if last is None or last.last != end:
            # A snapshot reaches further than the log; it was made of this journal, or of none.
            newest = items.sets[-1]
            data = await self._fetcher.get(newest.name)
            theirs = open_set(data, newest.name, newest.set, self._names).head.hash
        else:
            try:
                facts = (await self._read([last.item]))[0]
            except CorruptionError as error:
                if journal.archived_seq < end:
                    raise
                self._notes.append(f"{error}; this journal knows that it wrote that object")
                return True
            theirs = facts.hash(end)
        if ours is None:
            return journal.archived_seq >= end
        return ours == theirs

    # A child lineage.

    async def _begin_child(self, tip: TipFacts | None) -> Child | Resume:
        try:
            return await self._continue_plan()
        except UntrustedKey:
            raise
        except CorruptionError as error:
            return await self._continue_blindly(tip, error)

    async def _continue_blindly(
        self, tip: TipFacts | None, error: CorruptionError
    ) -> Child | Resume:
        """Return a child of the archive's last commit, whose state cannot be told: ``error``."""
        lineages = list_lineages(self._catalog)
        geneses = {lineage: await self._find_genesis(lineage) for lineage in lineages}
        leaves = find_leaves(geneses)
        if len(leaves) != 1:
            raise error
        (leaf,) = leaves
        found = await self._find_last_commit(await self._resolve(self._catalog.items(leaf)))
        seq, digest = (found.seq, found.hash) if found else (Seq(0), FrameHash(ZERO_HASH))
        if self._is_unshipped_child(leaf, seq, digest):
            return self._ship_child()
        if found is None or found.author not in self._believed:
            raise error
        if tip is not None and (
            tip.lineage not in geneses or (tip.lineage == leaf and tip.head.seq > found.seq)
        ):
            raise error  # there was more, which only a person can give up
        self._notes.append(f"{error}; so the child brings every page, and needs a snapshot")
        return Child(
            parent=leaf,
            seq=found.seq,
            hash=found.hash,
            state=ParentState(head=found, page_size=0, db_pages=0, groups=b"", known=b""),
            is_forced=found.author != self._key,
            archive_epoch=self._archive_epoch,
            notes=tuple(self._notes),
            needs_snapshot=True,
            has_regressed=self._has_regressed(found.seq),
        )

    async def _find_genesis(self, lineage: Lineage) -> Genesis | None:
        logs = self._catalog.items(lineage).logs
        return find_genesis((await self._read(logs[:1]))[0]) if logs else None

    async def _find_last_commit(self, stretch: Stretch) -> Head | None:
        """Return the head of the last frame that ends a commit, signed by its author."""
        for span in reversed(stretch.spans):
            item = span.item
            segment = open_log(await self._fetcher.get(item.name), item.name, item.log, self._names)
            if sign_of(segment, item.name).signer not in self._believed:
                return None
            for frame in reversed(segment.frames[: span.last - segment.start_seq + 1]):
                if not frame.head.flags & Flag.PARTIAL:
                    return frame.head if frame.head.is_signed_by_author() else None
        return None

    def _has_regressed(self, seq: Seq) -> bool:
        """Return whether the journal is one that wrote the archive, and was put back since.

        ``seq``: where the archive ends. A copy of that journal has regressed if it is older.
        """
        journal = self._journal
        return (
            journal is not None
            and journal.lineage in list_lineages(self._catalog)
            and any(voter.key == self._key for voter in journal.config.voters)
            and (journal.is_written_by(self._key) or journal.tip_seq < seq)
        )

    async def _continue_plan(self) -> Child | Resume:
        survey = Survey(self._fetcher, self._catalog)
        plan = await survey.make_plan(Wish(), self._trusted)
        target = plan.target
        if self._is_unshipped_child(target.lineage, target.seq, target.hash):
            return self._ship_child()
        tip = await read_tip_state(plan, survey, self._fetcher)
        for span in plan.spans[-1:]:
            await self._read([span.item])
        return Child(
            parent=plan.target.lineage,
            seq=plan.target.seq,
            hash=plan.target.hash,
            state=tip.state,
            is_forced=not tip.standing.accepts(self._key),
            archive_epoch=self._archive_epoch,
            notes=plan.notes,
            has_regressed=self._has_regressed(plan.target.seq),
        )

    def _is_unshipped_child(self, lineage: Lineage, seq: Seq, digest: FrameHash) -> bool:
        """Return whether our lineage continues the archive's last commit, and waits in our journal.

        It was born from an earlier decision like this one. The frame that it continues may lie
        beyond that commit, when it is one of our own that the archive lost.
        """
        journal = self._journal
        if (
            journal is None
            or journal.config.parent is None
            or journal.first_seq > journal.genesis_seq
            or not journal.is_written_by(self._key)
        ):
            return False
        parent, parent_seq, parent_hash = journal.config.parent
        if parent_seq == seq:
            return (parent, parent_hash) == (lineage, digest)
        return parent == lineage and parent_seq > seq

    def _ship_child(self) -> Resume:
        assert self._journal is not None, "only a journal can hold an unshipped child"
        return Resume(
            archived_seq=Seq(self._journal.genesis_seq - 1),
            needs_snapshot=False,
            archive_epoch=self._archive_epoch,
            notes=tuple(self._notes),
        )

    # Reading.

    async def _read_tip(self) -> TipFacts | None:
        if self._catalog.tip is None:
            return None
        try:
            tip = open_tip(await self._fetcher.get(self._names.tip), self._names)
        except CorruptionError as error:
            self._notes.append(f"{error}; it is written anew")
            return None
        if tip.signed.signer not in self._believed:
            self._notes.append(f"{self._names.tip} is signed by a key that is not trusted")
            return None
        self._archive_epoch = max(self._archive_epoch, tip.signed.archive_epoch)
        return tip

    async def _read(self, items: Sequence[LogItem]) -> list[LogFacts]:
        for item in items:
            if item.name in self._facts:
                continue
            data = await self._fetcher.get(item.name)
            segment = open_log(data, item.name, item.log, self._names)
            facts = make_log_facts(segment, item.name, item.log)
            self._facts[item.name] = facts
            if facts.signed.signer in self._believed:
                self._archive_epoch = max(self._archive_epoch, facts.signed.archive_epoch)
        return [self._facts[item.name] for item in items]
