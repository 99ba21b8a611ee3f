"""Pages without a lock: right while nobody writes, and never mistaken while somebody does."""

import threading
from typing import Any

import pytest

from basenet.errors import UnavailableError
from basenet.sqlite.glance import glance
from basenet.sqlite.pages import PageView
from basenet.wire.merkle import leaf_hash
from tests.sqlite.conftest import Scene


def pages_of(scene: Scene) -> dict[int, bytes]:
    with PageView(scene.capture.database) as view:
        size = view.page_size
        return {
            first + index: bytes(block[index * size : (index + 1) * size])
            for first, block in view.blocks()
            for index in range(len(block) // size)
        }


@pytest.mark.parametrize("checkpoint", ["none", "passive", "truncate", "half"])
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_pages_come_from_the_log_or_the_file(scene: Scene, checkpoint: str, page_size: int) -> None:
    """Wherever the newest image of each lies; a page beyond the end is not there."""
    scene.open(page_size=page_size)
    scene.capture.rotation.pin.release()
    scene.application.sql("insert into t values(1, randomblob(300000))")
    if checkpoint == "half":
        scene.application.sql("pragma wal_checkpoint(passive)")
        scene.application.sql("update t set y = randomblob(100000)")
    elif checkpoint != "none":
        scene.application.sql(f"pragma wal_checkpoint({checkpoint})")
    expected = pages_of(scene)
    assert glance(scene.capture.database, [*expected, len(expected) + 1_000]) == expected
    assert glance(scene.capture.database, [2]) == {2: expected[2]}


def test_a_database_that_was_closed_cannot_be_read(scene: Scene) -> None:
    """The shard has let go of it while a peer was asking."""
    scene.open()
    scene.capture.close()
    with pytest.raises(UnavailableError, match="cannot be read now"):
        glance(scene.capture.database, [1])


def test_a_log_of_many_blocks_is_looked_through(scene: Scene) -> None:
    """The wal-index lists 4,062 frames in its first block and 4,096 in each later one."""
    scene.open("create table u(x)", page_size=512)
    for size in (3_000_000, 1_500_000, 800_000):
        scene.application.sql(f"insert into u values(randomblob({size}))")
    index = scene.capture.database.read_index()
    assert index is not None
    assert index.header.frame_max > 4_062 + 4_096
    expected = pages_of(scene)
    assert glance(scene.capture.database, list(expected)) == expected


def test_beside_a_writer_every_page_is_some_state_or_refused_by_its_hash(scene: Scene) -> None:
    """Whatever commits, checkpoints and resets do meanwhile: the hash decides, and most fit."""
    scene.open("insert into t values(1, randomblob(400000))")
    scene.capture.rotation.pin.release()
    known = {(pgno, leaf_hash(pgno, page)) for pgno, page in pages_of(scene).items()}
    wanted = dict(known)
    done = threading.Event()
    found: list[dict[int, bytes]] = []
    failures: list[Any] = []

    def look() -> None:
        try:
            while not done.is_set():
                found.append(glance(scene.capture.database, list(wanted)))
        except Exception as error:  # noqa: BLE001  (said below)
            failures.append(error)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(60):
        scene.application.sql(f"insert into t values({number + 2}, randomblob(50000))")
        if number % 7 == 0:
            scene.application.sql("pragma wal_checkpoint(restart)")
    done.set()
    reader.join()
    assert failures == []
    assert found
    for pages in found:
        right = sum(leaf_hash(pgno, page) == wanted[pgno] for pgno, page in pages.items())
        assert right >= 0.8 * len(wanted)
