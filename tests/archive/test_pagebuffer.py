"""The newest image of each page reaches the file, whatever the order and size of writes."""

import random
from pathlib import Path

import pytest

from basenet.archive import pagebuffer
from basenet.archive.pagebuffer import PageBuffer
from basenet.archive.place import Draft
from basenet.wire.merkle import leaf_hash

SIZE = 512


@pytest.mark.parametrize("waiting_bytes_max", [0, 20 * SIZE, 1 << 20])
def test_pages_end_up_where_they_belong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting_bytes_max: int
) -> None:
    """Small and large frames in turn, with shrinks between: the file and the leaves agree."""
    monkeypatch.setattr(pagebuffer, "WAITING_BYTES_MAX", waiting_bytes_max)
    chance = random.Random(4)
    model: dict[int, bytes] = {}
    with Draft(tmp_path / "draft") as draft:
        buffer = PageBuffer(draft, SIZE, bytearray())
        for step in range(60):
            if step % 7 == 6:
                end = chance.randint(1, 200)
                model = {pgno: page for pgno, page in model.items() if pgno <= end}
                buffer.resize(end, max(model, default=0))
                continue
            count = chance.choice([1, 2, 5, 90])
            first = chance.randint(1, max(model, default=0) + 1)
            pgnos = list(range(first, first + count))
            # Growth is given whole, as SQLite's is.
            pages = [chance.randbytes(SIZE) for _ in pgnos]
            model |= dict(zip(pgnos, pages, strict=True))
            buffer.resize(buffer.db_pages, max(buffer.db_pages, pgnos[-1]))
            buffer.put(pgnos, b"".join(pages), range(count))
        buffer.flush()
        draft.resize(buffer.db_pages * SIZE)
        data = (tmp_path / "draft").read_bytes()
        leaves = bytes(buffer.leaves)
    for pgno, page in model.items():
        expected = page[:18] + b"\x02\x02" + page[20:] if pgno == 1 else page
        assert data[(pgno - 1) * SIZE : pgno * SIZE] == expected
        assert leaves[(pgno - 1) * 32 : pgno * 32] == leaf_hash(pgno, page)
    assert len(data) == buffer.db_pages * SIZE


def test_only_what_is_wanted_is_written(tmp_path: Path) -> None:
    """Pages that a later frame replaced are passed over, also in the middle of a run."""
    with Draft(tmp_path / "draft") as draft:
        buffer = PageBuffer(draft, SIZE, bytearray())
        buffer.resize(0, 200)
        pgnos = list(range(1, 201))
        wanted = [place for place in range(200) if place not in (10, 11, 199)]
        buffer.put(pgnos, b"\x07" * SIZE * 200, wanted)
        written = (tmp_path / "draft").read_bytes()
        holes = [pgno for pgno in pgnos if not any(buffer.leaves[(pgno - 1) * 32 : pgno * 32])]
    assert holes == [11, 12, 200]
    assert written[10 * SIZE : 12 * SIZE] == bytes(2 * SIZE)
    assert len(written) == 199 * SIZE


def test_a_new_page_size_begins_anew(tmp_path: Path) -> None:
    """What waited is of another layout."""
    with Draft(tmp_path / "draft") as draft:
        buffer = PageBuffer(draft, SIZE, bytearray())
        buffer.resize(0, 2)
        buffer.put([1, 2], bytes(2 * SIZE), range(2))
        buffer.reset(1024)
        buffer.flush()
        assert buffer.db_pages == 0
        assert (tmp_path / "draft").read_bytes() == b""
