"""The bridge over commits that cannot be followed: only the pages that differ."""

from basenet.sqlite.capture import CaptureFlag
from basenet.sqlite.pages import PageView
from basenet.sqlite.recover import diff, scan
from basenet.units import HASH_BYTES
from tests.sqlite.conftest import Scene


def test_nothing_is_said_where_nothing_differs(scene: Scene) -> None:
    """And the place to go on is found all the same."""
    scene.open()
    scene.application.sql("insert into t values(1, randomblob(100000))")
    found = scan(scene.capture.database)
    scene.capture.restart_at(found.cursor)
    assert list(scene.capture.recover(found.leaves)) == []
    assert scene.capture.cursor == found.cursor


def test_only_the_changed_pages_are_given(scene: Scene) -> None:
    """One changed row is a few pages, whatever the size of the database."""
    scene.open()
    scene.application.run(
        "c.execute('begin')\n"
        "for n in range(2000): c.execute('insert into t values(?, zeroblob(2000))', (n,))\n"
        "c.execute('commit')"
    )
    scene.mirror.poll()
    scene.application.sql("update t set y = 'x' where x = 777")
    (piece,) = scene.capture.recover(scene.mirror.tree.leaves)
    assert piece.flags == CaptureFlag.RECOVERED
    assert piece.commits == 1
    assert 1 <= len(piece.pgnos) <= 3
    scene.mirror.take(piece)
    scene.check()


def test_a_shrunken_database_is_said_even_without_a_changed_page(scene: Scene) -> None:
    """The new size is a difference by itself."""
    scene.open()
    found = scan(scene.capture.database)
    with PageView(scene.capture.database) as view:
        longer = bytes(found.leaves) + bytes(3 * HASH_BYTES)
        (piece,) = diff(view, longer)
    assert len(piece.pgnos) == 0
    assert piece.db_pages == found.db_pages
    assert piece.is_run_last


def test_a_large_difference_is_a_run(scene: Scene) -> None:
    """Pieces of at most 4 MiB; all but the last keep the old place."""
    scene.open()
    before = scene.capture.cursor
    scene.application.run(
        "c.execute('begin')\n"
        "for n in range(3000): c.execute('insert into t values(?, randomblob(3500))', (n,))\n"
        "c.execute('commit')"
    )
    pieces = list(scene.capture.recover(scene.mirror.tree.leaves))
    assert len(pieces) == 3
    partial = CaptureFlag.RECOVERED | CaptureFlag.PARTIAL
    assert [piece.flags for piece in pieces] == [partial, partial, CaptureFlag.RECOVERED]
    assert [piece.commits for piece in pieces] == [0, 0, 1]
    assert [piece.cursor == before for piece in pieces] == [True, True, False]
    for piece in pieces:
        scene.mirror.take(piece)
    assert scene.mirror.runs == 1
    scene.check()


def test_exactly_one_full_piece_is_no_run(scene: Scene) -> None:
    """The last piece never carries PARTIAL, also when it is full."""
    scene.open(page_size=65536)
    scene.application.sql("insert into t values(1, zeroblob(7000000))")
    found = scan(scene.capture.database)
    for differing in (64, 65, 128, 129):
        leaves = bytearray(found.leaves)
        start = 10 * HASH_BYTES
        leaves[: start + 0] = leaves[:start]
        count = min(differing, found.db_pages)
        leaves[: count * HASH_BYTES] = bytes(count * HASH_BYTES)
        pieces = list(scene.capture.recover(leaves))
        assert sum(len(piece.pgnos) for piece in pieces) == count
        assert len(pieces) == -(-count // 64)
        assert [piece.is_run_last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_a_write_version_that_fences_is_no_difference(scene: Scene) -> None:
    """Bytes 18 and 19 of page 1 are normalised in the leaf hash."""
    scene.open()
    found = scan(scene.capture.database)
    with PageView(scene.capture.database) as view:
        assert list(diff(view, bytes(found.leaves))) == []
