"""A run that a crash cut off: what is in frames already is left out when it comes again."""

from dataclasses import replace

import numpy as np
import pytest

from basenet.daemon.cluster.resuming import Resumed
from basenet.errors import UnavailableError
from basenet.sqlite.captured import Captured, CaptureFlag
from basenet.wire.merkle import leaf_hash
from tests.daemon.cluster.test_branch import CURSOR


def piece(first: int, count: int = 2, *, is_last: bool = False, fill: int = 0) -> Captured:
    pgnos = range(first, first + count)
    return Captured(
        page_size=512,
        db_pages=9,
        commits=int(is_last),
        pgnos=np.array(pgnos, dtype=np.uint32),
        pages=b"".join(bytes([pgno + fill]) * 512 for pgno in pgnos),
        flags=CaptureFlag.NONE if is_last else CaptureFlag.PARTIAL,
        cursor=CURSOR,
        captured_ns=1,
    )


RUN = [piece(1), piece(3), piece(5), piece(7, is_last=True)]
SEEN = [(pgno, leaf_hash(pgno, bytes([pgno]) * 512)) for pgno in range(1, 5)]
PGNOS, HASHES = [pgno for pgno, _ in SEEN], [hashed for _, hashed in SEEN]


@pytest.mark.parametrize("cut", range(1, 5))
def test_what_comes_again_is_left_out(cut: int) -> None:
    """In whatever lots it comes; what follows is handed on."""
    resumed = Resumed(PGNOS, HASHES)
    after = piece(1, is_last=True, fill=9)
    assert resumed.unseen(RUN[:cut]) + resumed.unseen([*RUN[cut:], after]) == [*RUN[2:], after]


def test_what_goes_on_is_left_alone() -> None:
    """There was no crash: the next piece comes, and later transactions begin anew."""
    resumed = Resumed(PGNOS, HASHES)
    assert resumed.unseen([]) == []
    assert resumed.unseen(RUN[2:]) == RUN[2:]
    assert resumed.unseen(RUN[:2]) == RUN[:2]
    assert Resumed([], []).unseen(RUN) == RUN


def test_another_transaction_is_refused() -> None:
    """Other content, another cut, or an end too early."""
    for item in (
        piece(1, fill=1),
        piece(2),
        piece(1, count=4, is_last=True),
        replace(piece(1), pgnos=np.array([], dtype=np.uint32), pages=b"", flags=CaptureFlag.NONE),
    ):
        with pytest.raises(UnavailableError, match="cut off by a crash"):
            Resumed(PGNOS, HASHES).unseen([item])
