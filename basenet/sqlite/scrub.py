"""The scrubber, which asks whether the file still holds what the chain says it holds.

Theory of operation
===================

The writer computes state roots from the frames that it captured, never from the file. So a commit
that capture missed, or a page that the disk changed, would show only when somebody restores. The
scrubber reads the whole file once a day, a few pages at a time, and compares each page with its
leaf hash. A live writer changes both while we look, hence the rule:

    *A difference counts only if no capture changed the page between the start of the read and
    the moment of the comparison, and everything committed before the read is captured by then.*

Proof: let the leaves stand at position c when the read starts (`begin`), the read see the commits
up to r, and the leaves stand at position j when compared (`judge`). r <= j, as we settle in
between; c <= j. A page without a change in (c, j] has one content at c, j and r, wherever r lies.
If it differs from the leaf, the leaf or the file is wrong.

So one step is, on the thread that captures:

1. ``begin``: which pages to read now;
2. read them as of some commit, under a pin as short as the read;
3. *settle*: capture to the tip and bring every captured change into the leaves, telling
   `on_captured` of each;
4. ``judge``: the pages that differ. A page has to differ in two steps in a row: what comes out
   costs a RECOVERED frame and an alarm, and a single bad read must not.

A page that was rewritten meanwhile is skipped: its frame has just set its leaf.

The pace is even: a pass takes ``pass_seconds``, but never more than ``bytes_per_second`` are
read, so that a huge file takes longer instead of making noise. Time is an argument (monotonic).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from basenet.units import HASH_BYTES, KIB
from basenet.wire.merkle import leaf_hashes

BYTES_PER_SECOND_MAX: Final = 4_000_000
PASS_SECONDS: Final = 24 * 3600
BATCH_BYTES: Final = 256 * KIB
# A page list goes into logs and status; the count beside it is exact.
PAGES_LISTED_MAX: Final = 1_000
_SECOND_NS: Final = 1_000_000_000


ReadPages = Callable[[int, int], bytes | memoryview]
"""Returns ``count`` pages from ``first`` on, end to end, as of one commit; fewer past the end."""


class Leaves(Protocol):
    """The leaf hashes of the chain, such as `basenet.wire.merkle.StateTree`."""

    @property
    def page_size(self) -> int:
        """The page size in bytes."""

    @property
    def db_pages(self) -> int:
        """How many pages the database has."""

    def leaf(self, pgno: int) -> bytes:
        """Return the leaf hash of page ``pgno``, or b"" beyond the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Consecutive pages to read now."""

    first: int
    count: int
    page_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubReport:
    """What the scrubber has seen since it was made.

    ``mismatches``: how often a page was found to differ for sure. ``bad_pages``: those that have
    not been rewritten since, ascending, at most 1,000. ``bytes_per_second``: of the present pass.
    ``pass_finished_ns``: when the last whole pass ended, on the caller's clock; None: not yet.
    """

    passes: int
    pages: int
    skipped: int
    mismatches: int
    bad_pages: tuple[int, ...]
    bytes_per_second: float
    pass_finished_ns: int | None


class Scrubber:
    """Where the scrubbing of one database stands. Feed it as the top of this file says."""

    def __init__(
        self,
        *,
        start_ns: int,
        next_pgno: int = 1,
        bytes_per_second: int = BYTES_PER_SECOND_MAX,
        pass_seconds: float = PASS_SECONDS,
    ) -> None:
        """Begin at ``start_ns`` with page ``next_pgno``, where an earlier process stopped."""
        assert next_pgno >= 1, "pages are numbered from 1"
        self.next_pgno = next_pgno
        """The page that is read next: what the journal keeps."""
        self._bytes_per_second = bytes_per_second
        self._pass_ns = round(pass_seconds * _SECOND_NS)
        self._due_ns = start_ns
        self._batch: Batch | None = None
        self._changed: set[int] = set()
        self._is_all_changed = False
        self._suspects: set[int] = set()
        self._bad: set[int] = set()
        self._passes = self._pages = self._skipped = self._mismatches = 0
        self._pass_started_ns = start_ns
        self._pass_bytes = 0
        self._pass_finished_ns: int | None = None
        self._now_ns = start_ns

    def seconds_to_next(self, now_ns: int) -> float:
        """Return in how many seconds the next step is due."""
        return max(0, self._due_ns - now_ns) / _SECOND_NS

    def report(self) -> ScrubReport:
        """Return what was seen so far."""
        elapsed_ns = self._now_ns - self._pass_started_ns
        return ScrubReport(
            passes=self._passes,
            pages=self._pages,
            skipped=self._skipped,
            mismatches=self._mismatches,
            bad_pages=tuple(sorted(self._bad)[:PAGES_LISTED_MAX]),
            bytes_per_second=self._pass_bytes * _SECOND_NS / elapsed_ns if elapsed_ns else 0.0,
            pass_finished_ns=self._pass_finished_ns,
        )

    def begin(self, leaves: Leaves, now_ns: int) -> Batch | None:
        """Return what to read now, or None if nothing is due.

        A batch that is not judged is forgotten by the next `begin`.
        """
        self._now_ns = now_ns
        self._batch = None
        if now_ns < self._due_ns:
            return None
        if leaves.db_pages == 0:
            self._due_ns = now_ns + self._pass_ns
            return None
        self._changed.clear()
        self._is_all_changed = False
        self._batch = self._next_batch(leaves)
        return self._batch

    def _next_batch(self, leaves: Leaves) -> Batch:
        if self.next_pgno > leaves.db_pages:
            self.next_pgno = 1  # the database shrank below it
        left = leaves.db_pages - self.next_pgno + 1
        count = min(max(1, BATCH_BYTES // leaves.page_size), left)
        return Batch(first=self.next_pgno, count=count, page_size=leaves.page_size)

    def on_captured(
        self, pgnos: Sequence[int] | npt.NDArray[np.uint32], db_pages: int, page_size: int
    ) -> None:
        """Take in that these pages were captured, and that ``db_pages`` are left after it."""
        changed = {int(pgno) for pgno in pgnos}
        self._bad = {page for page in self._bad - changed if page <= db_pages}
        if self._batch is None:
            return
        self._changed |= changed
        if page_size != self._batch.page_size:
            self._is_all_changed = True
        # Cut off now, and perhaps back again before the comparison: changed in any case.
        last = self._batch.first + self._batch.count - 1
        self._changed.update(range(max(db_pages + 1, self._batch.first), last + 1))

    def judge(self, pages: bytes | memoryview, leaves: Leaves, now_ns: int) -> list[int]:
        """Compare what was read with the leaves; return the pages that differ for sure.

        ``leaves`` stand at or beyond every commit before the read, and `on_captured` has been told
        of all that was captured since `begin`.
        """
        batch, self._batch = self._batch, None
        assert batch is not None, "judge without begin"
        differing, skipped = self._compare(batch, pages, leaves)
        self._now_ns = now_ns
        self._pass_bytes += len(pages)
        confirmed = [pgno for pgno in differing if pgno in self._suspects]
        is_first_look = not self._suspects
        self._suspects = set(differing) if is_first_look else set()
        limited_ns = len(pages) * _SECOND_NS // self._bytes_per_second
        if self._suspects:
            self._due_ns = now_ns + limited_ns  # the same batch once more
            return []
        even_ns = self._pass_ns * batch.count // max(leaves.db_pages, batch.count)
        self._due_ns = now_ns + max(limited_ns, even_ns)
        self._pages += batch.count - skipped
        self._skipped += skipped
        self._mismatches += len(confirmed)
        self._bad.update(confirmed)
        self._move_on(batch, leaves.db_pages, now_ns)
        return confirmed

    def _move_on(self, batch: Batch, db_pages: int, now_ns: int) -> None:
        self.next_pgno = batch.first + batch.count
        if self.next_pgno > db_pages:
            self.next_pgno = 1
            self._passes += 1
            self._pass_finished_ns = self._pass_started_ns = now_ns
            self._pass_bytes = 0

    def _compare(
        self, batch: Batch, pages: bytes | memoryview, leaves: Leaves
    ) -> tuple[list[int], int]:
        """Return the pages that differ from their leaf, and how many could not be judged."""
        if self._is_all_changed or leaves.page_size != batch.page_size:
            return [], batch.count
        whole = len(pages) - len(pages) % batch.page_size
        found = leaf_hashes(batch.first, memoryview(pages)[:whole], batch.page_size)
        differing = []
        skipped = 0
        for index in range(batch.count):
            pgno = batch.first + index
            if pgno in self._changed:
                skipped += 1
            # A page that the file ought to have and has not is b"", unlike any leaf.
            elif found[index * HASH_BYTES : (index + 1) * HASH_BYTES] != leaves.leaf(pgno):
                differing.append(pgno)
        return differing, skipped


def scrub_step(
    scrubber: Scrubber,
    read_pages: ReadPages,
    leaves: Leaves,
    settle: Callable[[], None],
    clock: Callable[[], int],
) -> list[int]:
    """Do one step if one is due; return the pages that differ for sure.

    ``settle`` captures to the tip, brings it into ``leaves`` and tells ``scrubber.on_captured``.
    What ``read_pages`` and ``settle`` raise passes through, and the same pages come again.
    """
    batch = scrubber.begin(leaves, clock())
    if batch is None:
        return []
    pages = read_pages(batch.first, batch.count)
    settle()
    return scrubber.judge(pages, leaves, clock())
