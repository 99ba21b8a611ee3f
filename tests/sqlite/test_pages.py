"""A state of the whole database, read while the application goes on."""

import os
import subprocess
import sys

import pytest

from basenet.errors import CorruptionError
from basenet.sqlite.pages import PageView, read_pages
from basenet.sqlite.recover import scan
from basenet.wire.merkle import leaf_hash
from tests.sqlite.conftest import Scene
from tests.sqlite.mirror import checkpointed_image


def whole(view: PageView) -> bytes:
    return b"".join(bytes(block) for _, block in view.blocks())


@pytest.mark.parametrize("checkpoint", ["none", "passive", "truncate", "half"])
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_a_view_is_the_checkpointed_file(scene: Scene, checkpoint: str, page_size: int) -> None:
    """Wherever the pages lie: in the log, in the file, or some here and some there."""
    scene.open(page_size=page_size)
    scene.capture.rotation.pin.release()
    scene.application.sql("insert into t values(1, zeroblob(200000))")
    if checkpoint == "half":
        scene.application.sql("pragma wal_checkpoint(passive)")
        scene.application.sql("update t set y = randomblob(100000)")
    elif checkpoint != "none":
        scene.application.sql(f"pragma wal_checkpoint({checkpoint})")
    with PageView(scene.capture.database) as view:
        assert whole(view) == checkpointed_image(scene.path, scene.folder / "scratch")
        small = [bytes(block) for _, block in view.blocks(2, 5, page_size)]
        assert [len(block) for block in small] == [page_size] * len(small)
        assert b"".join(small) == whole(view)[page_size : 5 * page_size]


def test_a_view_stands_still(scene: Scene) -> None:
    """Commits, checkpoints and shrinking beside it do not show; the next view has them."""
    scene.open()
    scene.capture.rotation.pin.release()
    scene.application.sql("insert into t values(1, randomblob(400000))")
    with PageView(scene.capture.database) as view:
        before = whole(view)
        scene.application.sql("delete from t", "vacuum", "pragma wal_checkpoint(passive)")
        scene.application.sql("insert into t values(2, randomblob(900000))")
        assert whole(view) == before
        with PageView(scene.capture.database) as later:
            assert whole(later) == checkpointed_image(scene.path, scene.folder / "scratch")
            assert later.cursor.change > view.cursor.change


def test_a_view_on_mark_zero_survives_a_reset_of_the_log(scene: Scene) -> None:
    """All in the file, then the next commit starts the log anew under our eyes."""
    scene.open()
    scene.capture.rotation.pin.release()
    scene.application.sql("insert into t values(1, randomblob(400000))")
    scene.application.sql("pragma wal_checkpoint(passive)")
    with PageView(scene.capture.database) as view:
        before = whole(view)
        for number in range(30):
            scene.application.sql(f"insert into t values({number}, randomblob(50000))")
        scene.application.sql("pragma wal_checkpoint(passive)")
        assert whole(view) == before


def test_following_goes_on_from_the_position_of_a_view(scene: Scene) -> None:
    """A scan's cursor is exactly the place of its pages."""
    scene.open()
    scene.application.sql("insert into t values(1, randomblob(40000))")
    image = checkpointed_image(scene.path, scene.folder / "scratch")
    found = scan(scene.capture.database)
    scene.application.sql("insert into t values(2, randomblob(40000))")
    assert found.db_pages * 32 == len(found.leaves)
    assert bytes(found.leaves[:32]) == leaf_hash(1, image[:4096])
    scene.capture.restart_at(found.cursor)
    assert sum(piece.commits for piece in scene.capture.poll()) == 1


def test_a_part_can_be_read_by_itself(scene: Scene) -> None:
    """For a snapshot's fuzzy copy; beyond the end there is nothing."""
    scene.open()
    scene.application.sql("insert into t values(1, randomblob(100000))")
    image = checkpointed_image(scene.path, scene.folder / "scratch")
    database = scene.capture.database
    assert bytes(read_pages(database, 3, 10)) == image[2 * 4096 : 12 * 4096]
    last = len(image) // 4096
    assert bytes(read_pages(database, last, 50)) == image[-4096:]
    assert bytes(read_pages(database, last + 1, 50)) == b""


def test_a_cut_file_is_corruption(scene: Scene) -> None:
    """A page that is in neither place must not be read as zeros."""
    scene.open()
    scene.capture.rotation.pin.release()
    scene.application.sql("insert into t values(1, randomblob(100000))")
    scene.application.sql("pragma wal_checkpoint(truncate)")
    scene.application.sql("insert into t values(1, 2)")
    os.ftruncate(scene.capture.database.database_fd, 5 * 4096)
    with (
        PageView(scene.capture.database) as view,
        pytest.raises(CorruptionError, match="cut short"),
    ):
        whole(view)


def test_a_damaged_log_is_corruption(scene: Scene) -> None:
    """Frames are verified when they are listed."""
    scene.open()
    scene.application.sql("insert into t values(1, 2)")
    os.pwrite(scene.capture.database.wal_fd, b"????", 32 + 24 + 100)
    with pytest.raises(CorruptionError, match="-wal is damaged"):
        PageView(scene.capture.database)


@pytest.mark.parametrize("checkpoint", ["passive", "truncate"])
def test_spare_room_at_the_end_of_the_file_counts_as_sqlite_counts_it(
    scene: Scene, checkpoint: str
) -> None:
    """A program may let its file grow in chunks: then the pager's size is the file's."""
    code = (
        "import apsw, ctypes, os, sys\n"
        "c = apsw.Connection(sys.argv[1])\n"
        "size = ctypes.c_int(1 << 20)\n"
        "c.file_control('main', apsw.SQLITE_FCNTL_CHUNK_SIZE, ctypes.addressof(size))\n"
        "c.execute('pragma journal_mode=wal').get\n"
        "c.execute('create table t(x, y)'); c.execute('insert into t values(1, zeroblob(50000))')\n"
        f"c.execute('pragma wal_checkpoint({checkpoint})').get\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(scene.path)], check=True)
    assert scene.path.stat().st_size == 1 << 20
    scene.attach()
    assert scene.mirror.tree.db_pages == 256
    scene.application = scene.start()
    scene.application.sql("insert into t values(2, 2)")
    scene.check(commits=1)
