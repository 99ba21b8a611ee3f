"""Final changes applied to a replica that applications of several SQLite versions are reading."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from basenet.sqlite import apply, locks
from basenet.sqlite.apply import Applier, Found, merge
from basenet.sqlite.attach import attach
from basenet.sqlite.inject import ForeignCommit
from basenet.wire.payload import CommitPayload
from tests.sqlite.application import Application
from tests.sqlite.replica import Source, content_of


def payload_of(source: Source) -> CommitPayload:
    change = source.change()
    ((pgnos, pages),) = change.pieces
    return CommitPayload(
        page_size=source.page_size,
        db_pages=change.db_pages,
        commits=1,
        pgnos=pgnos,
        pages=pages,
    )


def make(pages: dict[int, bytes], db_pages: int) -> CommitPayload:
    return CommitPayload(
        page_size=512,
        db_pages=db_pages,
        commits=1,
        pgnos=np.array(sorted(pages), np.uint32),
        pages=b"".join(pages[pgno].ljust(512, b"\0") for pgno in sorted(pages)),
    )


@contextmanager
def replicating(source: Source, path: Path, **more: Any) -> Iterator[Applier]:
    shutil.copy(source.path, path)
    database = attach(path)
    applier = Applier(database, **more)
    assert locks.try_lock(database.shm_fd, locks.WAL_WRITE_BYTE)
    yield applier
    locks.unlock(database.shm_fd, locks.WAL_WRITE_BYTE)
    database.close_connections()
    applier.close()
    database.close()


def test_the_log_stays_short_while_a_reader_comes_and_goes(tmp_path: Path) -> None:
    """Thousands of changes, read all the time by another process, never let the log grow far."""
    random = Random(1)
    source = Source(tmp_path / "source.db")
    path = tmp_path / "replica.db"
    longest = 0
    with replicating(source, path) as applier, Application(path) as reader:
        for _ in range(60):
            batch = []
            for _ in range(random.randint(1, 10)):
                source.run("INSERT INTO t (v) VALUES (randomblob(20000))")
                batch.append([payload_of(source)])
            applier.apply(applier.prepare(batch))
            longest = max(longest, applier.relieve().log_bytes)
            assert reader.sql("SELECT count(*) FROM t") == [
                list(source.connection.execute("SELECT count(*) FROM t").fetchone())
            ]
        assert reader.sql("PRAGMA integrity_check") == [["ok"]]
    assert longest < 8 * 1024 * 1024
    assert content_of(path) == content_of(source.path)
    source.close()


def test_a_reader_that_stays_is_told_of_and_never_blocked(tmp_path: Path) -> None:
    """Its snapshot keeps the log; when it ends the log begins anew."""
    source = Source(tmp_path / "source.db")
    path = tmp_path / "replica.db"
    with replicating(source, path) as applier, Application(path) as reader:
        reader.sql("BEGIN", "SELECT count(*) FROM t")
        for _ in range(3):
            source.run("INSERT INTO t (v) VALUES (randomblob(3000000))")
            applier.apply(applier.prepare([[payload_of(source)]]))
            state = applier.relieve()
        assert state.log_bytes > 9_000_000
        assert state.waiting_bytes > 0
        assert reader.sql("SELECT count(*) FROM t") == [[0]]
        reader.sql("COMMIT")
        assert applier.relieve().log_bytes == 0
        assert reader.sql("SELECT count(*) FROM t") == [[3]]
    source.close()


def test_the_log_begins_anew_though_there_is_always_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each begins before the one before ends, and beside a stream of batches one is always late."""
    monkeypatch.setattr(apply, "LONG_BYTES", 1)
    source = Source(tmp_path / "source.db")
    path = tmp_path / "replica.db"
    readers: list[Application] = []

    def begin() -> None:
        readers.append(Application(path))
        readers[-1].sql("BEGIN", "SELECT count(*) FROM t")

    def go_on(_seconds: float) -> None:
        begin()
        readers[-2].close()

    def apply_one(applier: Applier) -> None:
        source.run("INSERT INTO t (v) VALUES (randomblob(5000000))")
        applier.apply(applier.prepare([[payload_of(source)]]))

    with replicating(source, path, sleep=go_on) as applier:
        begin()
        for _ in range(3):
            apply_one(applier)
            go_on(0)
            assert applier.relieve().log_bytes > 4_000_000
        assert applier.make_way().log_bytes == 0
        assert readers[-1].sql("SELECT count(*) FROM t") == [[3]]
        readers[-1].close()
    assert content_of(path) == content_of(source.path)
    source.close()


def test_a_reader_that_stays_is_waited_for_ever_more_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For half a second each time, and as often as before once it has gone."""
    monkeypatch.setattr(apply, "LONG_BYTES", 1)
    source = Source(tmp_path / "source.db")
    path = tmp_path / "replica.db"
    now_s, slept_s = [100.0], [0.0]

    def sleep(seconds: float) -> None:
        now_s[0] += seconds
        slept_s[0] += seconds

    def waits(seconds: int) -> list[int]:
        """Look once a second; return when it was waited."""
        found = []
        for second in range(seconds):
            slept_s[0] = 0.0
            applier.make_way()
            if slept_s[0]:
                assert slept_s[0] == pytest.approx(apply.WAIT_S, abs=0.01)
                found.append(second)
            now_s[0] += 1 - slept_s[0]
        return found

    with (
        replicating(source, path, clock=lambda: now_s[0], sleep=sleep) as applier,
        Application(path) as reader,
    ):
        reader.sql("BEGIN", "SELECT count(*) FROM t")
        source.run("INSERT INTO t (v) VALUES (randomblob(5000000))")
        applier.apply(applier.prepare([[payload_of(source)]]))
        assert waits(80) == [0, 11, 32, 73]
        reader.sql("COMMIT")
        assert applier.make_way().log_bytes == 0
    source.close()


def test_what_became_of_a_batch_is_told_after_a_crash(tmp_path: Path) -> None:
    """Before, after, or somebody else: nothing in between is visible."""
    source = Source(tmp_path / "source.db")
    path = tmp_path / "replica.db"
    with replicating(source, path) as applier:
        source.run("INSERT INTO t (v) VALUES ('x')")
        batch = applier.prepare([[payload_of(source)]])
        assert applier.tell(batch.before, batch.after) is Found.NOT_APPLIED
        applier.apply(batch)
        assert applier.tell(batch.before, batch.after) is Found.APPLIED
        source.run("INSERT INTO t (v) VALUES ('y')")
        applier.apply(applier.prepare([[payload_of(source)]]))
        assert applier.tell(batch.before, batch.after) is Found.FOREIGN
        with pytest.raises(ForeignCommit):
            applier.apply(batch)
    source.close()


def test_merging_keeps_the_last_image_of_each_page() -> None:
    """Pages that a later change cut off are gone; order and sizes are those of the last change."""
    changes = [
        [make({1: b"a1", 2: b"a2", 5: b"a5"}, 5)],
        [make({1: b"b1", 3: b"b3"}, 5)],
        [make({2: b"c2"}, 3)],
    ]
    (merged,) = merge(changes, 512)
    ((pgnos, pages),) = merged.pieces
    assert pgnos.tolist() == [1, 2, 3]
    assert [bytes(pages[n : n + 2]) for n in range(0, len(pages), 512)] == [b"b1", b"c2", b"b3"]
    assert merged.db_pages == 3


def test_a_run_stays_a_transaction_of_its_own() -> None:
    """Its pieces are not copied together, and what stands around it keeps its place."""
    run = [make({1: b"r"}, 9), make({2: b"r"}, 9)]
    merged = merge([[make({1: b"a"}, 4)], run, [make({3: b"z"}, 9)], [make({}, 9)]], 512)
    assert [each.page_count for each in merged] == [1, 2, 1]
    assert [each.db_pages for each in merged] == [4, 9, 9]
    assert merge([[make({}, 4)]], 512) == []
