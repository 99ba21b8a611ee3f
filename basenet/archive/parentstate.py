"""The state at an archive's tip, as far as it can be told without downloading the database.

A child lineage begins at its parent's tip and then brings the difference between that state and the
file at hand. To find the difference only hashes are needed: those of the newest page set's index,
and those of the pages that the log has carried since. A group of 16 pages of which the log carried
some but not all is *unknown*: its hash would need the other pages. Unknown groups count as
differing, so that a few pages too many are stored, and none too few.

All that is read is verified as for a restore; the log is replayed without a file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from basenet.archive.facts import naming, open_log, sign_of
from basenet.archive.fetch import Fetcher, Request
from basenet.archive.finality import Finality
from basenet.archive.plan import Base, Plan, enter_lineage, is_born_empty
from basenet.archive.replay import check_descent, check_tip_trust
from basenet.archive.stretch import Span
from basenet.archive.survey import Survey
from basenet.archive.trust import Standing, change, check_author, check_signer
from basenet.errors import ChainBroken
from basenet.units import GROUP_PAGES, HASH_BYTES, ZERO_HASH, Lineage, StateRoot, lock_page
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Frame, Head, Kind, check_link
from basenet.wire.merkle import group_count, group_hash, leaf_hash, root_of_groups
from basenet.wire.pageset import check_groups, decode_index
from basenet.wire.payload import CommitPayload, decode_commit
from basenet.wire.segment import Segment

_GROUP_BYTES: Final = GROUP_PAGES * HASH_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentState:
    """The database at the parent's frame ``head``: group hashes, end to end.

    ``known``: one byte a group, 0 where the hash is not known (and then zeros).
    """

    head: Head
    page_size: int
    db_pages: int
    groups: bytes
    known: bytes

    @property
    def state_root(self) -> StateRoot:
        """The root that a child's genesis begins with."""
        return self.head.state_root

    def find_differing(self, groups: bytes | bytearray, *, page_size: int) -> list[int]:
        """Return which groups of a file must be stored anew, given the file's group hashes.

        Those that are unknown here, that differ, or that the parent did not have.
        """
        count = len(groups) // HASH_BYTES
        if page_size != self.page_size:
            return list(range(count))
        return [
            group
            for group in range(count)
            if group >= len(self.known)
            or not self.known[group]
            or groups[group * HASH_BYTES : (group + 1) * HASH_BYTES]
            != self.groups[group * HASH_BYTES : (group + 1) * HASH_BYTES]
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tip:
    """Where the archive's history ends: its last commit, the state there, and who counts."""

    state: ParentState
    standing: Standing


class _Leaves:
    """The leaf hashes that a log carried; a leaf that no frame carried stays 32 zero bytes."""

    def __init__(self, page_size: int, db_pages: int) -> None:
        self.page_size = page_size
        self.leaves = bytearray(db_pages * HASH_BYTES)

    @property
    def db_pages(self) -> int:
        return len(self.leaves) // HASH_BYTES

    def apply(self, commit: CommitPayload) -> None:
        if commit.page_size != self.page_size:  # then it carries every page
            self.page_size = commit.page_size
            self.leaves = bytearray()
        before = self.db_pages
        del self.leaves[commit.db_pages * HASH_BYTES :]
        self.leaves.extend(bytes(max(commit.db_pages - before, 0) * HASH_BYTES))
        lock = lock_page(self.page_size)
        if before < lock <= commit.db_pages:
            self._set(lock, leaf_hash(lock, bytes(self.page_size)))
        for index, pgno in enumerate(commit.pgnos.tolist()):
            self._set(pgno, leaf_hash(pgno, commit.page(index)))

    def _set(self, pgno: int, digest: bytes) -> None:
        self.leaves[(pgno - 1) * HASH_BYTES : pgno * HASH_BYTES] = digest

    def group_hash(self, group: int, base: Sequence[bytes], base_pages: int) -> bytes | None:
        """Return the hash of ``group``, or None if it is not known."""
        leaves = bytes(self.leaves[group * _GROUP_BYTES : (group + 1) * _GROUP_BYTES])
        missing = sum(
            leaves[start : start + HASH_BYTES] == ZERO_HASH
            for start in range(0, len(leaves), HASH_BYTES)
        )
        if not missing:
            return group_hash(leaves)
        end = (group + 1) * GROUP_PAGES
        is_untouched = missing * HASH_BYTES == len(leaves)
        is_same_size = min(base_pages, end) == min(self.db_pages, end)
        return base[group] if is_untouched and is_same_size and group < len(base) else None


class _Replay:
    """Follows a plan's log from its base to its target, and proves every step."""

    def __init__(self, plan: Plan, base: Sequence[bytes]) -> None:
        """Start at the plan's page set, whose group hashes are ``base``, or before the genesis."""
        self._plan = plan
        self._base = base
        self._base_pages = plan.base.facts.pages.db_pages if plan.base else 0
        page_size = plan.base.facts.pages.page_size if plan.base else 0
        self._base_page_size = page_size
        self._lineage = plan.base.item.set.lineage if plan.base else None
        self._head = plan.base.facts.head if plan.base else None
        self._leaves = _Leaves(page_size, self._base_pages)
        self._geneses = {reach.lineage: reach.genesis for reach in plan.line}
        self.standing = plan.standing
        self._finality = Finality()
        if self._head is not None:
            self._check_tip(self._head)

    def apply(self, span: Span, segment: Segment) -> None:
        """Prove the frames of ``span``, whose opened object is ``segment``, and take them in."""
        name = span.item.name
        frames = segment.frames[span.first - segment.start_seq :][: span.last - span.first + 1]
        with naming(name):
            before = self.standing
            for frame in frames:
                self._follow(frame, span.item.log.lineage, name, segment.certificates)
                self._check_tip(frame.head)
                if frame.head.kind is Kind.COMMIT:
                    self._leaves.apply(decode_commit(frame.payload))
            later = [frame.head for frame in segment.frames[span.first - segment.start_seq :]]
            self._finality.take(self.standing, later, span.last, segment.certificates, name)
            if not frames[-1].head.is_signed_by_author():
                raise ChainBroken(f"frame {span.last} is not signed by its author")
            if not before.accepts(segment.public):
                check_signer(self.standing, sign_of(segment, name))

    def _follow(
        self, frame: Frame, lineage: Lineage, name: str, proofs: Sequence[Certificate]
    ) -> None:
        if lineage != self._lineage or self._head is None:
            self._enter(frame, lineage, name)
        else:
            check_link(self._head, frame.head)
            if frame.head.kind is Kind.CONFIG:
                self.standing = change(self.standing, frame, lineage, name, proofs)
            else:
                check_author(self.standing, frame.head, name)
        self._head = frame.head

    def _enter(self, frame: Frame, lineage: Lineage, name: str) -> None:
        genesis = self._geneses[lineage]
        if genesis is None or genesis.head.hash != frame.head.hash:
            raise ChainBroken(f"frame {frame.head.seq} is not the genesis of {lineage.hex()}")
        if self._head is not None and self._lineage is not None:
            check_descent(self._head, self._lineage, genesis)
        elif genesis.config.parent is not None or not is_born_empty(genesis):
            raise ChainBroken(f"genesis {frame.head.seq} needs a state that nothing gives")
        self._finality.require()
        self.standing = enter_lineage(self.standing, genesis, name, self._plan.wish.lineage)
        self._lineage = lineage

    def _check_tip(self, head: Head) -> None:
        tip = self._plan.tip
        is_there = tip is not None and (tip.lineage, tip.head.seq) == (self._lineage, head.seq)
        if tip is not None and is_there and tip.head.hash != head.hash:
            raise ChainBroken(f"frame {head.seq} is not the one that {tip.signed.name} proves")

    def finish(self) -> ParentState:
        """Return the state at the target, after proving it as far as it is known."""
        assert self._head is not None, "a plan begins with a page set or a genesis"
        self._finality.require()
        if (self._head.seq, self._head.hash) != (self._plan.target.seq, self._plan.target.hash):
            raise ChainBroken(f"the log of {self._head.shard} ends elsewhere than was planned")
        if self._plan.tip is not None:
            check_tip_trust(self.standing, self._plan.tip.signed, self._plan.tip.head)
        leaves = self._leaves
        base, base_pages = self._base, self._base_pages
        if leaves.page_size != self._base_page_size:
            base, base_pages = (), 0
        hashes = [
            leaves.group_hash(group, base, base_pages)
            for group in range(group_count(leaves.db_pages))
        ]
        groups = b"".join(digest or ZERO_HASH for digest in hashes)
        root = root_of_groups(leaves.page_size, leaves.db_pages, groups)
        if None not in hashes and root != self._head.state_root:
            raise ChainBroken(
                f"the log of {self._head.shard} does not give the state root of frame "
                f"{self._head.seq}; run `basenet verify` on the archive"
            )
        return ParentState(
            head=self._head,
            page_size=leaves.page_size,
            db_pages=leaves.db_pages,
            groups=groups,
            known=bytes(digest is not None for digest in hashes),
        )


async def read_tip_state(plan: Plan, survey: Survey, fetcher: Fetcher) -> Tip:
    """Return the state at the plan's target, from the index of its base and its log objects.

    Raises `CorruptionError` that names the object which is not as signed.
    """
    base = () if plan.base is None else await _read_base(plan.base, fetcher)
    replay = _Replay(plan, base)
    await _replay_log(plan, replay, survey, fetcher)
    state = await trio.to_thread.run_sync(replay.finish)
    return Tip(state=state, standing=replay.standing)


async def _read_base(base: Base, fetcher: Fetcher) -> Sequence[bytes]:
    """Return the group hashes of a page set, proven; its parts are not read."""
    name = base.item.name if base.index is None else base.index.name
    pages = base.facts.pages
    inline = (pages.inline or b"")[: pages.index_len]
    index = inline if base.index is None else await fetcher.get(name)

    def read() -> list[bytes]:
        rows = decode_index(index, pages, name)
        check_groups(rows, pages, name)
        return [row.group_hash for row in rows]

    return await trio.to_thread.run_sync(read)


async def _replay_log(plan: Plan, replay: _Replay, survey: Survey, fetcher: Fetcher) -> None:
    """Apply the plan's log objects in order; those that the survey kept are not read again."""
    kept = {span: survey.take(span.item) for span in plan.spans}
    missing = [span.item for span in plan.spans if kept[span] is None]

    def opened(number: int, data: bytes) -> Segment:
        item = missing[number]
        return open_log(data, item.name, item.log, plan.names)

    requests = [Request(name=item.name, size=item.size) for item in missing]
    async with fetcher.stream(requests, opened) as stream:
        for span in plan.spans:
            segment = kept.pop(span)
            number: int | None = None
            if segment is None:
                number, segment = await anext(stream)
            assert segment is not None, "kept, or fetched"
            await trio.to_thread.run_sync(replay.apply, span, segment)
            if number is not None:
                await stream.done(number)
