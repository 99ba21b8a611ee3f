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
from pathlib import Path

import trio

from basenet.archive.facts import open_log
from basenet.archive.fetch import Fetcher, Request
from basenet.archive.place import Draft
from basenet.archive.plan import Base, Plan
from basenet.archive.replay import Replay
from basenet.archive.setreader import SetReader
from basenet.archive.survey import Survey
from basenet.archive.trust import Standing
from basenet.errors import ChainBroken
from basenet.units import GROUP_PAGES, HASH_BYTES, ZERO_HASH, StateRoot
from basenet.wire.frame import Head
from basenet.wire.merkle import group_count, group_hash, root_of_groups
from basenet.wire.pageset import decode_index
from basenet.wire.segment import Segment

_GROUP_BYTES = GROUP_PAGES * HASH_BYTES


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


class _Nowhere(Draft):
    """A file that nothing is written to: only hashes are wanted."""

    def __init__(self) -> None:
        self.path = Path("nowhere")

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write nothing."""

    def write_all(self, offset: int, pieces: Sequence[bytes]) -> None:
        """Write nothing."""

    def resize(self, size: int) -> None:
        """Cut nothing."""


class _Hashes(Replay):
    """A replay of the log alone: a leaf that no frame carried stays 32 zero bytes."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, _Nowhere())

    @property
    def standing(self) -> Standing:
        return self._standing

    def find_state(
        self, base: Sequence[bytes], base_pages: int, base_page_size: int
    ) -> ParentState:
        """Return the state after the last frame; ``base``: the group hashes of the page set."""
        db_pages = len(self._leaves) // HASH_BYTES
        if base_page_size != self._page_size:
            base, base_pages = (), 0  # every page was carried when the page size changed
        groups, known = bytearray(), bytearray()
        for group in range(group_count(db_pages)):
            leaves = bytes(self._leaves[group * _GROUP_BYTES : (group + 1) * _GROUP_BYTES])
            first = group * GROUP_PAGES
            is_same_size = min(base_pages, first + GROUP_PAGES) == min(
                db_pages, first + GROUP_PAGES
            )
            missing = [
                start
                for start in range(0, len(leaves), HASH_BYTES)
                if leaves[start : start + HASH_BYTES] == ZERO_HASH
            ]
            if not missing:
                digest: bytes | None = group_hash(leaves)
            elif len(missing) * HASH_BYTES == len(leaves) and is_same_size and group < len(base):
                digest = base[group]
            else:
                digest = None
            groups += digest or ZERO_HASH
            known.append(digest is not None)
        return self._check(bytes(groups), bytes(known), db_pages)

    def _check(self, groups: bytes, known: bytes, db_pages: int) -> ParentState:
        root = root_of_groups(self._page_size, db_pages, groups)
        if all(known) and root != self.head.state_root:
            raise ChainBroken(
                f"the log of {self.head.shard} does not give the state root of frame "
                f"{self.head.seq}; run `basenet verify` on the archive"
            )
        return ParentState(
            head=self.head,
            page_size=self._page_size,
            db_pages=db_pages,
            groups=groups,
            known=known,
        )


async def read_tip_state(plan: Plan, survey: Survey, fetcher: Fetcher) -> Tip:
    """Return the state at the plan's target, from the index of its base and its log objects.

    Raises `CorruptionError` that names the object which is not as signed.
    """
    hashes = _Hashes(plan)
    base: Sequence[bytes] = ()
    pages = page_size = 0
    if plan.base is not None:
        pages, page_size = plan.base.facts.pages.db_pages, plan.base.facts.pages.page_size
        base = await _begin(plan.base, hashes, fetcher)
    await _replay(plan, hashes, survey, fetcher)
    state = await trio.to_thread.run_sync(hashes.find_state, base, pages, page_size)
    return Tip(state=state, standing=hashes.standing)


async def _begin(base: Base, hashes: _Hashes, fetcher: Fetcher) -> Sequence[bytes]:
    """Enter the page set and return its group hashes; its parts are not read."""
    name = base.item.name if base.index is None else base.index.name
    pages = base.facts.pages
    index = None if base.index is None else await fetcher.get(name)
    reader = await trio.to_thread.run_sync(SetReader, base.facts, index, name)
    hashes.begin_base(base, reader)
    data = (pages.inline or b"")[: pages.index_len] if index is None else index
    rows = await trio.to_thread.run_sync(decode_index, data, pages, name)
    return [row.group_hash for row in rows]


async def _replay(plan: Plan, hashes: _Hashes, survey: Survey, fetcher: Fetcher) -> None:
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
            await trio.to_thread.run_sync(hashes.apply, span, segment)
            if number is not None:
                await stream.done(number)
