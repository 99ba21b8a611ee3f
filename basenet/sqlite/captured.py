"""What capture hands over: commits as values, and the place in the log where they end.

One `Captured` becomes one frame of the chain. It holds the last image of each page that its
commits wrote, ascending, at most 4 MiB raw. A transaction with more is a *run* of PARTIAL pieces,
page numbers ascending over the whole run; only the last piece has no PARTIAL flag, carries the
commits and moves the cursor. A run that is not handed over to its end never happened: whoever
keeps its pieces drops them when `Captured.is_run_last` does not come.
"""

from dataclasses import dataclass
from enum import IntFlag
from struct import Struct
from typing import Final

import numpy as np
import numpy.typing as npt

from basenet.errors import CorruptionError
from basenet.sqlite.walformat import Checksum
from basenet.units import PARTIAL_RAW_BYTES_MAX, lock_page

_CURSOR: Final = Struct(">BQQI8sIIII")
_CURSOR_VERSION: Final = 1


class CaptureFlag(IntFlag):
    """How a `Captured` came about; the same bits as in a frame (docs/formats)."""

    NONE = 0
    PARTIAL = 1
    RECOVERED = 2
    REGRESSED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """The place in one file's log up to which every commit was handed over.

    ``salts``: the generation. ``frame``: frames of it that are behind us. ``checksum``: as stored
    in that frame; of no meaning when ``frame`` is 0, the log's header then has it.
    ``change``: iChange at that place; comparable only while the same wal-index lives.
    """

    device: int
    inode: int
    page_size: int
    salts: bytes
    frame: int
    checksum: Checksum
    change: int

    def encode(self) -> bytes:
        """Return the cursor as bytes for the journal."""
        return _CURSOR.pack(
            _CURSOR_VERSION,
            self.device,
            self.inode,
            self.page_size,
            self.salts,
            self.frame,
            *self.checksum,
            self.change,
        )

    @classmethod
    def decode(cls, data: bytes) -> "Cursor":
        """Return the cursor that `encode` wrote; raise `CorruptionError` for anything else."""
        if len(data) != _CURSOR.size or data[0] != _CURSOR_VERSION:
            raise CorruptionError(
                f"a capture cursor of {len(data)} bytes in the journal is not readable; "
                "move journal.db and what begins with its name out of the data directory"
            )
        _, device, inode, page_size, salts, frame, sum0, sum1, change = _CURSOR.unpack(data)
        return cls(
            device=device,
            inode=inode,
            page_size=page_size,
            salts=salts,
            frame=frame,
            checksum=(sum0, sum1),
            change=change,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Captured:
    """Consecutive commits as one change of the database.

    ``pgnos``: uint32, ascending, shape (n,), never the lock page, none above ``db_pages``.
    ``pages``: n * page_size bytes in the order of ``pgnos``. ``db_pages``: after the commits (of a
    run: after the run). ``commits``: 0 in all but the last piece of a run. ``cursor``: where to go
    on once this one is kept; in a run all but the last piece repeat the cursor before it.
    ``captured_ns``: wall clock.
    """

    page_size: int
    db_pages: int
    commits: int
    pgnos: npt.NDArray[np.uint32]
    pages: bytes | memoryview
    flags: CaptureFlag
    cursor: Cursor
    captured_ns: int

    @property
    def is_run_last(self) -> bool:
        """Whether the change is whole with this piece."""
        return not self.flags & CaptureFlag.PARTIAL

    @property
    def raw_bytes(self) -> int:
        """Size of the page images in bytes."""
        return len(self.pages)


def pages_max(page_size: int) -> int:
    """Return how many pages one `Captured` may hold."""
    return PARTIAL_RAW_BYTES_MAX // page_size


def last_images(
    pgnos: npt.NDArray[np.uint32], db_pages: int, page_size: int
) -> npt.NDArray[np.intp] | None:
    """Return, ascending by page, which rows hold the last image of each page that is to be kept.

    Pages beyond ``db_pages`` are gone and the lock page never counts. None: all rows, as they are.
    """
    ascending = len(pgnos) == 1 or bool((pgnos[1:] > pgnos[:-1]).all())
    lock = lock_page(page_size)
    if ascending and pgnos[-1] <= db_pages and (db_pages < lock or lock not in pgnos):
        return None
    backwards = pgnos[::-1]
    unique, first = np.unique(backwards, return_index=True)
    keep = (unique <= db_pages) & (unique != lock)
    return np.asarray(len(pgnos) - 1 - first[keep], np.intp)


def cut_run(whole: Captured, before: Cursor) -> list[Captured]:
    """Return ``whole`` as it is, or as a run of PARTIAL pieces if it is too large for one."""
    step = pages_max(whole.page_size)
    count = len(whole.pgnos)
    if count <= step:
        return [whole]
    view = memoryview(whole.pages)
    pieces = []
    for start in range(0, count, step):
        is_last = start + step >= count
        pieces.append(
            Captured(
                page_size=whole.page_size,
                db_pages=whole.db_pages,
                commits=whole.commits if is_last else 0,
                pgnos=whole.pgnos[start : start + step],
                pages=view[start * whole.page_size : (start + step) * whole.page_size],
                flags=whole.flags if is_last else whole.flags | CaptureFlag.PARTIAL,
                cursor=whole.cursor if is_last else before,
                captured_ns=whole.captured_ns,
            )
        )
    return pieces


def merge(batch: list[Captured]) -> Captured:
    """Return consecutive changes as one: the last image of each page wins, commits add up.

    For a daemon that has fallen behind. No piece of a run may be among them, and the raw sizes
    together must not exceed 4 MiB.
    """
    assert batch, "nothing to merge"
    if len(batch) == 1:
        return batch[0]
    last = batch[-1]
    size = last.page_size
    assert all(item.is_run_last and item.page_size == size for item in batch), "a run in a merge"
    assert sum(item.raw_bytes for item in batch) <= PARTIAL_RAW_BYTES_MAX, "too large to merge"
    pgnos = np.concatenate([item.pgnos for item in batch])
    images = np.frombuffer(b"".join(item.pages for item in batch), np.uint8).reshape(-1, size)
    flags = CaptureFlag.NONE
    for item in batch:
        flags |= item.flags
    if len(pgnos):
        rows = last_images(pgnos, last.db_pages, size)
        if rows is not None:
            pgnos, images = pgnos[rows], images[rows]
    return Captured(
        page_size=size,
        db_pages=last.db_pages,
        commits=sum(item.commits for item in batch),
        pgnos=pgnos,
        pages=np.ascontiguousarray(images).reshape(-1).data,
        flags=flags,
        cursor=last.cursor,
        captured_ns=last.captured_ns,
    )
