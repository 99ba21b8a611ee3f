"""Changes as values: merging, cutting, and the cursor's bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.sqlite.captured import (
    Captured,
    CaptureFlag,
    Cursor,
    cut_run,
    last_images,
    merge,
    pages_max,
)
from basenet.units import LOCK_BYTE_OFFSET, lock_page

SIZE = 512


def cursor(frame: int) -> Cursor:
    return Cursor(
        device=1, inode=2, page_size=SIZE, salts=b"saltSALT", frame=frame, checksum=(3, 4), change=5
    )


def change(pages: dict[int, int], db_pages: int, frame: int = 1) -> Captured:
    """One commit that wrote ``pages``: number to fill byte."""
    numbers = sorted(number for number in pages if number <= db_pages)
    return Captured(
        page_size=SIZE,
        db_pages=db_pages,
        commits=1,
        pgnos=np.array(numbers, np.uint32),
        pages=b"".join(bytes([pages[number]]) * SIZE for number in numbers),
        flags=CaptureFlag.NONE,
        cursor=cursor(frame),
        captured_ns=frame,
    )


def apply(state: dict[int, int], item: Captured) -> None:
    """Replay ``item`` onto a dictionary of pages."""
    for row, number in enumerate(item.pgnos.tolist()):
        state[number] = item.pages[row * SIZE]
    for number in [number for number in state if number > item.db_pages]:
        del state[number]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.integers(1, 12), st.integers(0, 255), max_size=6),
            st.integers(1, 12),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_a_merged_change_does_what_its_parts_did(steps: list[tuple[dict[int, int], int]]) -> None:
    """Last image wins, pages beyond the end are gone, commits add up, the last cursor counts."""
    parts = [change(pages, size, index) for index, (pages, size) in enumerate(steps)]
    whole = merge(parts)
    last_size = steps[-1][1]
    one_by_one: dict[int, int] = {}
    for part in parts:
        apply(one_by_one, part)
    at_once: dict[int, int] = {}
    apply(at_once, whole)
    # A page that a shrink removed and nobody wrote again is in neither, unless the end grew over
    # it: SQLite always writes the pages by which a database grows.
    assert {n: v for n, v in at_once.items() if n in one_by_one} == one_by_one
    assert whole.commits == len(parts)
    assert whole.db_pages == last_size
    assert whole.cursor == parts[-1].cursor
    assert whole.pgnos.tolist() == sorted(set(whole.pgnos.tolist()))


def test_flags_are_kept_when_merging() -> None:
    """A RECOVERED change among others makes the whole one."""
    recovered = change({1: 1}, 3)
    recovered = Captured(
        page_size=SIZE,
        db_pages=3,
        commits=0,
        pgnos=recovered.pgnos,
        pages=recovered.pages,
        flags=CaptureFlag.RECOVERED,
        cursor=recovered.cursor,
        captured_ns=1,
    )
    assert merge([change({2: 2}, 3), recovered]).flags == CaptureFlag.RECOVERED
    single = change({1: 1}, 1)
    assert merge([single]) is single


def test_pieces_of_a_run_are_never_merged() -> None:
    """A run is one unit; merging into it is a mistake of ours."""
    count = pages_max(SIZE) + 1
    pieces = cut_run(change(dict.fromkeys(range(1, count + 1), 7), count, 9), cursor(3))
    assert [len(piece.pgnos) for piece in pieces] == [count - 1, 1]
    assert [piece.is_run_last for piece in pieces] == [False, True]
    assert [piece.commits for piece in pieces] == [0, 1]
    assert [piece.cursor.frame for piece in pieces] == [3, 9]
    with pytest.raises(AssertionError, match="run"):
        merge(pieces)
    with pytest.raises(AssertionError, match="nothing"):
        merge([])


def test_the_lock_page_is_never_given() -> None:
    """At 1 GiB SQLite keeps one page empty for its lock bytes."""
    lock = lock_page(65536)
    assert lock == LOCK_BYTE_OFFSET // 65536 + 1
    pgnos = np.array([1, lock - 1, lock, lock + 1], np.uint32)
    rows = last_images(pgnos, lock + 1, 65536)
    assert rows is not None
    assert rows.tolist() == [0, 1, 3]
    assert last_images(pgnos[:2], lock + 1, 65536) is None


def test_the_cursor_survives_encoding() -> None:
    """The journal stores it as bytes."""
    before = Cursor(
        device=2**63,
        inode=2**64 - 1,
        page_size=65536,
        salts=bytes(range(8)),
        frame=2**32 - 1,
        checksum=(2**32 - 1, 0),
        change=2**32 - 1,
    )
    assert Cursor.decode(before.encode()) == before
