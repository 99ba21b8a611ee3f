"""A past moment, page by page, out of an archive, without restoring it.

Theory of operation
===================

A restore writes all pages and proves them by the state root of the target. A query wants a few
pages, and the same proof. So the hash of *every group at the target* is made known first, and the
state root above them must be the one that the target frame was signed with; after that a page
needs no more than its own group::

    page set's index ----------------- 36 bytes a group, whole --------+
    log objects from there to the target, whole, chain followed        +--> group hashes -> root
      touched groups: block of the set, newest pages laid over it -----+
    page p: the block of its group, by a range read, overlaid, hashed; must be the group's hash

A group is always checked against its hash *at the target*, never against the one at the page set:
a page that changed since and is left out somewhere would be right there (P26).

What the format allows. Which pages a log object holds stands inside it, compressed, and its
signature covers all of it: so log objects are read whole, each of them from the page set on, and
the blocks of the groups that they touch are read to know their hashes. Right after a snapshot that
is next to nothing; long after one it nears what a restore reads. It is never more than that.

Memory: 32 bytes a group and the index (0.06 % of the database), some bytes for each changed page,
and `CACHE_BYTES_MAX` of proven pages, or twice what is read ahead, if that is more. Changed pages
wait in a file without a name. Blocks that are read one after another are read ahead, twice as many
each time, up to `AHEAD_GROUPS_MAX`.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from basenet.archive.fetch import Fetcher
from basenet.archive.names import ShardNames
from basenet.archive.overlay import Overlay
from basenet.archive.plan import Plan, Target, Wish
from basenet.archive.port import Store, StoreNotFound
from basenet.archive.pursuit import follow_spans
from basenet.archive.replay import Follower
from basenet.archive.setreader import SetReader
from basenet.archive.survey import Survey, survey_shard
from basenet.errors import (
    BasenetError,
    ChainBroken,
    CorruptionError,
    PageSetCorrupt,
    UnavailableError,
)
from basenet.units import GROUP_PAGES, HASH_BYTES, KIB, MIB, PublicKeyBytes, lock_page
from basenet.wire.merkle import (
    group_count,
    group_hash,
    leaf_hashes,
    normalised_first_page,
    root_of_groups,
)

CACHE_BYTES_MAX: Final = 64 * MIB
AHEAD_GROUPS_MAX: Final = 64
ATTEMPTS: Final = 2
# What lies between two blocks is read over up to this: a round trip costs more.
GAP_BYTES_MAX: Final = 64 * KIB
RUN_BYTES_MAX: Final = 4 * MIB
RUNS_AT_ONCE: Final = 8

Fetch = Callable[[str, int, int], bytes]
"""Return the bytes of an object by name, start and length; blocks."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Blocks of one part that are read at once."""

    part: int
    start: int
    end: int
    groups: tuple[int, ...]


class Past:
    """A database as it was at one frame. Used by one thread at a time.

    Every method that reads raises `CorruptionError` that names the object which is not as signed,
    and `UnavailableError` when the store does not answer.
    """

    def __init__(
        self,
        plan: Plan,
        reader: SetReader | None,
        overlay: Overlay,
        *,
        cache_bytes_max: int = CACHE_BYTES_MAX,
    ) -> None:
        """Lay ``overlay`` over ``reader``; nothing may be read before `_settle` has proven it."""
        self._plan = plan
        self._reader = reader
        self._overlay = overlay
        self._touched = frozenset(overlay.touched_groups())
        self._settled: set[int] = set()
        self._groups = bytearray() if reader is None else reader.group_hashes()
        length = group_count(overlay.db_pages) * HASH_BYTES
        del self._groups[length:]
        self._groups.extend(bytes(length - len(self._groups)))
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._cache_groups_max = max(
            cache_bytes_max // (GROUP_PAGES * max(overlay.page_size, 1)), 2 * AHEAD_GROUPS_MAX
        )
        self._next_group = 0
        self._ahead = 1
        self.fetch: Fetch | None = None

    @property
    def target(self) -> Target:
        """The frame at which the database is read."""
        return self._plan.target

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for people."""
        return self._plan.notes

    @property
    def page_size(self) -> int:
        """The size of a page in bytes; 0 of a database that had none yet."""
        return self._overlay.page_size

    @property
    def db_pages(self) -> int:
        """How many pages the database had."""
        return self._overlay.db_pages

    def read_page(self, pgno: int) -> bytes:
        """Return page ``pgno``, proven; bytes 18 and 19 of page 1 are 2, the lock page zeros."""
        group = (pgno - 1) // GROUP_PAGES
        pages = self._cache.get(group)
        if pages is None:
            pages = self._load(group)
        else:
            self._cache.move_to_end(group)
        start = (pgno - 1) % GROUP_PAGES * self.page_size
        return pages[start : start + self.page_size]

    # Reading blocks.

    def _load(self, group: int) -> bytes:
        """Return the pages of ``group``, and read ahead when it follows the one before."""
        self._ahead = min(self._ahead * 2, AHEAD_GROUPS_MAX) if group == self._next_group else 1
        end = min(group + self._ahead, group_count(self.db_pages))
        wanted = [g for g in range(group, end) if g not in self._cache]
        self._next_group = end
        runs = {g: run for run in self.plan_runs(wanted) for g in run.groups}
        done: set[_Run] = set()
        for one in wanted:
            run = runs.get(one)
            if run is None:
                self._keep(one, self._assemble(one, None))
            elif run not in done:
                done.add(run)
                self.take_run(run, self._read_run(run))
        return self._cache[group]

    def _read_run(self, run: _Run) -> bytes:
        base = self._plan.base
        assert base is not None, "only a page set has blocks"
        if base.index is None:
            return b""
        assert self.fetch is not None, "set before anything is read"
        name = base.parts[run.part].name
        try:
            return self.fetch(name, run.start, run.end - run.start)
        except StoreNotFound as error:
            raise UnavailableError(
                f"{name} was deleted while it was needed: run the command again, which begins with "
                "what is there now"
            ) from error

    def plan_runs(self, groups: Iterable[int]) -> list[_Run]:
        """Return what to read for those of ``groups``, ascending, that need the page set."""
        reader, runs = self._reader, list[_Run]()
        for group in groups:
            if reader is None or not self._needs_block(group):
                continue
            part, start, size = reader.locate(group)
            last = runs[-1] if runs else None
            if (
                last is not None
                and last.part == part
                and start - last.end <= GAP_BYTES_MAX
                and start + size - last.start <= RUN_BYTES_MAX
            ):
                runs[-1] = _Run(part, last.start, start + size, (*last.groups, group))
            else:
                runs.append(_Run(part, start, start + size, (group,)))
        return runs

    def take_run(self, run: _Run, data: bytes) -> None:
        """Prove the blocks of ``run``, which ``data`` holds, and keep their pages."""
        base, reader = self._plan.base, self._reader
        assert base is not None, "only a page set has blocks"
        assert reader is not None, "only a page set has blocks"
        view, offset = memoryview(data), run.start
        name = base.item.name if base.index is None else base.parts[run.part].name
        if base.index is None:
            view, offset = reader.inline_part(run.part), 0
        elif len(data) != run.end - run.start:
            raise PageSetCorrupt(f"{name} ends before byte {run.end}, where its index has a block")
        for group in run.groups:
            _, start, size = reader.locate(group)
            block = reader.read_block(group, view[start - offset : start - offset + size], name)
            self._keep(group, self._assemble(group, block.pages))

    def _needs_block(self, group: int) -> bool:
        """Return whether a page of ``group`` is still that of the page set."""
        overlay = self._overlay
        if group not in self._touched:
            return True
        first = group * GROUP_PAGES + 1
        last = min(first + GROUP_PAGES - 1, overlay.base_pages, overlay.db_pages)
        return any(
            not overlay.holds(pgno) and pgno != lock_page(self.page_size)
            for pgno in range(first, last + 1)
        )

    def _assemble(self, group: int, block: bytes | None) -> bytes:
        """Return the pages of ``group`` at the target, of which ``block`` is what the set holds.

        A touched group tells its hash the first time, for the root, and must have it ever after.
        One that was not touched was checked with its block, whose hash is still in force.
        """
        if group not in self._touched:
            assert block is not None, "an untouched group is in the page set"
            return block
        overlay, size = self._overlay, self.page_size
        first = group * GROUP_PAGES + 1
        pages = bytearray()
        for pgno in range(first, min(first + GROUP_PAGES, self.db_pages + 1)):
            page = overlay.get(pgno)
            if page is None and pgno == lock_page(size):
                page = bytes(size)
            elif page is None and pgno <= overlay.base_pages and block is not None:
                page = block[(pgno - first) * size : (pgno - first + 1) * size]
            if not page:
                raise ChainBroken(
                    f"page {pgno} of the database at frame {self.target.seq} is in no object that "
                    "was read; run `basenet verify` on the archive"
                )
            pages += normalised_first_page(page) if pgno == 1 else page
        digest = group_hash(leaf_hashes(first, memoryview(pages), size))
        known = self._groups[group * HASH_BYTES : (group + 1) * HASH_BYTES]
        if group in self._settled:
            # It was proven at the beginning: what is read now must be the same.
            if digest != known:
                raise ChainBroken(f"group {group} is not the one of frame {self.target.seq}")
        else:
            self._groups[group * HASH_BYTES : (group + 1) * HASH_BYTES] = digest
            self._settled.add(group)
        return bytes(pages)

    def _keep(self, group: int, pages: bytes) -> None:
        self._cache[group] = pages
        self._cache.move_to_end(group)
        while len(self._cache) > self._cache_groups_max:
            self._cache.popitem(last=False)

    # The proof of the whole.

    def settle_rest(self, runs: Sequence[_Run]) -> None:
        """Find the hashes of the touched groups that need no block."""
        covered = {group for run in runs for group in run.groups}
        for group in sorted(self._touched - covered):
            self._keep(group, self._assemble(group, None))

    def touched(self) -> list[int]:
        """Return the groups that changed since the page set, ascending."""
        return sorted(self._touched)

    def check_root(self, expected: bytes) -> None:
        """Raise `ChainBroken` unless the groups give the target's state root ``expected``."""
        assert self._settled == self._touched, "every touched group was hashed"
        if root_of_groups(self.page_size, self.db_pages, self._groups) != expected:
            raise ChainBroken(
                f"the pages in the archive do not give the state root of frame {self.target.seq}, "
                "so at least one of them is missing or stale; run `basenet verify` on the archive"
            )

    def close(self) -> None:
        """Give up what was spooled."""
        self._overlay.close()
        self._cache.clear()


@asynccontextmanager
async def open_past(
    store: Store,
    fetcher: Fetcher,
    names: ShardNames,
    wish: Wish,
    *,
    trusted: frozenset[PublicKeyBytes],
    folder: Path,
    cache_bytes_max: int = CACHE_BYTES_MAX,
) -> AsyncIterator[Past]:
    """Open the moment ``wish`` of the shard ``names``, proven; ``folder`` takes changed pages.

    While the body runs, worker threads of it may read pages. Raises what
    `basenet.archive.restore.restore` raises, of a place excepted.
    """
    attempt = 0
    while True:
        attempt += 1
        survey = await survey_shard(store, fetcher, names, wish)
        try:
            past = await _build(fetcher, survey, wish, trusted, folder, cache_bytes_max)
            break
        except StoreNotFound as error:
            if attempt == ATTEMPTS:
                raise CorruptionError(f"an object that was listed is gone: {error}") from error
    past.fetch = lambda name, start, length: trio.from_thread.run(
        fetcher.get_range, name, start, length
    )
    try:
        yield past
    finally:
        past.close()


async def _build(  # noqa: PLR0917  (all of `open_past`'s)
    fetcher: Fetcher,
    survey: Survey,
    wish: Wish,
    trusted: frozenset[PublicKeyBytes],
    folder: Path,
    cache_bytes_max: int,
) -> Past:
    plan = await survey.make_plan(wish, trusted)
    reader, overlay = None, Overlay(folder, 0, 0, is_folder_free=True)
    if plan.base is not None:
        base = plan.base
        index = None if base.index is None else await fetcher.get(base.index.name)
        name = base.item.name if base.index is None else base.index.name
        reader = await trio.to_thread.run_sync(SetReader, base.facts, index, name)
        overlay = Overlay(
            folder, reader.pages.page_size, reader.pages.db_pages, is_folder_free=True
        )
    try:
        follower = Follower(plan, overlay)
        if plan.base is not None:
            follower.begin_at(plan.base, overlay)
        await follow_spans(fetcher, survey, plan, follower)
        follower.check_end()
        past = Past(plan, reader, overlay, cache_bytes_max=cache_bytes_max)
        await _settle(fetcher, past, plan)
        await trio.to_thread.run_sync(past.check_root, follower.head.state_root)
    except BaseException:
        overlay.close()
        raise
    return past


async def _settle(fetcher: Fetcher, past: Past, plan: Plan) -> None:
    """Make the hash of every touched group known; the blocks are read in parallel."""
    runs = past.plan_runs(past.touched())
    limiter, turn = trio.CapacityLimiter(RUNS_AT_ONCE), trio.Lock()
    failures: list[BasenetError] = []

    async def read(run: _Run) -> None:
        base = plan.base
        assert base is not None, "only a page set has blocks"
        async with limiter:
            try:
                data = b""
                if base.index is not None:
                    size = run.end - run.start
                    data = await fetcher.get_range(base.parts[run.part].name, run.start, size)
                async with turn:
                    await trio.to_thread.run_sync(past.take_run, run, data)
            except BasenetError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for run in runs:
            nursery.start_soon(read, run)
    if failures:
        raise failures[0]
    await trio.to_thread.run_sync(past.settle_rest, runs)
