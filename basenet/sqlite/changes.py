"""Frames become changes: one per commit, or fewer and larger ones when there are many.

A commit is a restore point of its own as long as few are found at once. Under load they are put
together while their frames fit 4 MiB raw, and only the last image of each page is kept: a frame of
the chain costs the same whether it carries one commit or a hundred. A single commit beyond 4 MiB is
a run of PARTIAL pieces.
"""

import time
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from basenet.sqlite.captured import Captured, CaptureFlag, Cursor, cut_run, last_images, pages_max
from basenet.sqlite.tail import HugeTransaction, LogReader, News
from basenet.sqlite.walindex import IndexHeader

# So many commits found at once still become one change each.
SPLIT_COMMITS_MAX: Final = 16
_MASK: Final = 0xFFFFFFFF


def changes_of(news: News) -> list[list[Captured]]:
    """Return the changes in ``news`` in order, each as its pieces: one, or those of a run."""
    count = len(news.frames)
    if not count:
        return []
    captured_ns = time.time_ns()
    changes = []
    begin = commits_before = 0
    before = news.start
    for end, commits in _cut(np.flatnonzero(news.frames.sizes) + 1, before.page_size):
        commits_before += commits
        # After a reset the last change also steps over to the new generation.
        cursor = news.end if end == count else _cursor_behind(news, end - 1, commits_before)
        pgnos, images = news.frames.pgnos[begin:end], news.frames.images[begin:end]
        db_pages = int(news.frames.sizes[end - 1])
        rows = last_images(pgnos, db_pages, before.page_size)
        # Copies, so that the block that was read can go.
        pgnos = pgnos.copy() if rows is None else pgnos[rows]
        images = images.copy() if rows is None else images[rows]
        whole = Captured(
            page_size=before.page_size,
            db_pages=db_pages,
            commits=commits,
            pgnos=pgnos,
            pages=images.reshape(-1).data,
            flags=CaptureFlag.NONE,
            cursor=cursor,
            captured_ns=captured_ns,
        )
        changes.append(cut_run(whole, before))
        begin, before = end, cursor
    return changes


def _cursor_behind(news: News, row: int, commits: int) -> Cursor:
    """Return the cursor behind the commit frame in ``row``, the ``commits``-th of the news."""
    start = news.start
    return Cursor(
        device=start.device,
        inode=start.inode,
        page_size=start.page_size,
        salts=start.salts,
        frame=int(news.positions[row]),
        checksum=(int(news.frames.sums[0, row]), int(news.frames.sums[1, row])),
        change=(start.change + commits) & _MASK,
    )


def _cut(ends: npt.NDArray[np.intp], page_size: int) -> Iterator[tuple[int, int]]:
    """Yield (end row, commits) of the changes into which commits ending at ``ends`` are cut."""
    count = len(ends)
    if count <= SPLIT_COMMITS_MAX:
        for end in ends.tolist():
            yield end, 1
        return
    limit = pages_max(page_size)
    first = begin = 0
    while first < count:
        stop = int(np.searchsorted(ends, begin + limit, side="right"))
        stop = max(stop, first + 1)
        begin = int(ends[stop - 1])
        yield begin, stop - first
        first = stop


def pieces_of(huge: HugeTransaction, reader: LogReader, header: IndexHeader) -> Iterator[Captured]:
    """Yield a transaction that does not fit memory, in pieces of at most 4 MiB.

    Raises `Gap` if it was overwritten meanwhile; the pieces yielded so far are then void.
    """
    page_size = huge.start.page_size
    rows = last_images(huge.pgnos, huge.db_pages, page_size)
    if rows is None:
        rows = np.arange(len(huge.pgnos))
    captured_ns = time.time_ns()
    step = pages_max(page_size)
    for start in range(0, max(len(rows), 1), step):
        chunk = rows[start : start + step]
        is_last = start + step >= len(rows)
        yield Captured(
            page_size=page_size,
            db_pages=huge.db_pages,
            commits=1 if is_last else 0,
            pgnos=huge.pgnos[chunk],
            pages=reader.read_images(huge, chunk, header),
            flags=CaptureFlag.NONE if is_last else CaptureFlag.PARTIAL,
            cursor=huge.end if is_last else huge.start,
            captured_ns=captured_ns,
        )
