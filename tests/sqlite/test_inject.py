"""Transactions appended to a live log, judged by SQLite itself."""

import os
from pathlib import Path
from random import Random

import apsw
import numpy as np
import pytest

from basenet.errors import UnavailableError
from basenet.sqlite import inject
from basenet.sqlite.inject import ForeignCommit, Injector, Transaction
from tests.sqlite.application import Application
from tests.sqlite.replica import Source, applying, content_of, make_transaction

PAGE_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]


def put(injector: Injector, *transactions: Transaction, durable: bool = False) -> None:
    before = injector.begin(durable=durable)
    injector.apply(injector.prepare(before, transactions), durable=durable)


_COUNT = "SELECT count(*), total(length(v)) FROM t"


def rows_of(who: Source | Application) -> tuple[int, int]:
    rows = who.connection.execute(_COUNT).fetchall() if isinstance(who, Source) else who.sql(_COUNT)
    ((count, total),) = rows
    return int(count), int(total)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_a_replica_equals_its_source_after_every_commit(tmp_path: Path, page_size: int) -> None:
    """A reader that is there all the time sees each commit, whole; the file ends up equal."""
    random = Random(page_size)
    source = Source(tmp_path / "source.db", page_size)
    replica = tmp_path / "replica.db"
    with applying(source, replica) as applied:
        injector = applied.injector
        reader = Application(replica)
        for step in range(30):
            for _ in range(random.randint(1, 20)):
                source.run("INSERT INTO t (v) VALUES (?)", random.randbytes(random.randint(0, 900)))
            if step % 7 == 3:
                source.run("DELETE FROM t WHERE id % 3 = 0")
                source.run("VACUUM")
            if step % 5 == 4:
                source.run("UPDATE t SET v = zeroblob(10) WHERE id % 4 = 1")
            put(injector, source.change(), durable=bool(step % 2))
            assert rows_of(reader) == rows_of(source)
            assert reader.sql("PRAGMA integrity_check") == [["ok"]]
            if step % 6 == 5:
                applied.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                assert injector.restart()
        reader.close()
    assert content_of(replica) == content_of(source.path)
    source.close()


def test_a_reader_keeps_what_it_sees_until_its_transaction_ends(tmp_path: Path) -> None:
    """Snapshots of readers are not disturbed, and nobody waits for them."""
    source = Source(tmp_path / "source.db")
    with applying(source, tmp_path / "replica.db") as applied:
        injector = applied.injector
        reader = Application(tmp_path / "replica.db")
        reader.sql("BEGIN")
        assert rows_of(reader) == (0, 0)
        for _ in range(10):
            source.run("INSERT INTO t (v) VALUES ('x')")
            put(injector, source.change())
        assert rows_of(reader) == (0, 0)
        reader.sql("COMMIT")
        assert rows_of(reader) == (10, 10)
        reader.close()
    source.close()


def test_several_transactions_are_one_commit_to_readers(tmp_path: Path) -> None:
    """A batch moves the index once: iChange grows by one, the last sizes hold."""
    source = Source(tmp_path / "source.db")
    with applying(source, tmp_path / "replica.db") as applied:
        injector = applied.injector
        batch = []
        for _ in range(5):
            source.run("INSERT INTO t (v) VALUES (randomblob(3000))")
            batch.append(source.change())
        before = injector.begin(durable=False)
        prepared = injector.prepare(before, batch)
        injector.apply(prepared, durable=True)
        assert injector.position() == prepared.after
        assert prepared.after.change == before.change + 1
        assert prepared.after.frame_max == sum(each.page_count for each in batch)
    assert content_of(tmp_path / "replica.db") == content_of(source.path)
    source.close()


def test_a_transaction_larger_than_many_index_blocks(tmp_path: Path) -> None:
    """20,000 frames of one commit, in pieces, cross five blocks of the index and the buffer."""
    source = Source(tmp_path / "source.db", 1024)
    with applying(source, tmp_path / "replica.db") as applied:
        injector = applied.injector
        source.run(
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 20000) "
            "INSERT INTO t (v) SELECT randomblob(800) FROM n"
        )
        (pgnos, pages), *_ = (whole := source.change()).pieces
        half = len(pgnos) // 2
        split = Transaction(
            pieces=[
                (pgnos[:half], pages[: half * 1024]),
                (pgnos[half:], pages[half * 1024 :]),
            ],
            db_pages=whole.db_pages,
        )
        assert split.page_count > 20_000
        put(injector, split)
        source.run("UPDATE t SET v = 'short' WHERE id % 100 = 0")
        put(injector, source.change())
        reader = Application(tmp_path / "replica.db")
        assert rows_of(reader) == rows_of(source)
        reader.close()
    assert content_of(tmp_path / "replica.db") == content_of(source.path)
    source.close()


def test_what_was_planned_is_where_the_log_ends(tmp_path: Path) -> None:
    """The position after a batch is known before it is written, however large it is."""
    source = Source(tmp_path / "source.db", 512)
    with applying(source, tmp_path / "replica.db") as applied:
        injector = applied.injector
        for size in (10, 40_000):
            source.run("INSERT INTO t (v) VALUES (randomblob(?))", 512 * size)
            prepared = injector.prepare(injector.begin(durable=False), [source.change()])
            assert (prepared.blocks is None) == (size > 10)
            injector.apply(prepared, durable=False)
            assert injector.position() == prepared.after
    assert content_of(tmp_path / "replica.db") == content_of(source.path)
    source.close()


def test_a_foreign_commit_is_found_before_anything_is_written(tmp_path: Path) -> None:
    """Somebody committed between two batches: nothing of the next one is applied."""
    source = Source(tmp_path / "source.db")
    replica = tmp_path / "replica.db"
    with applying(source, replica) as applied:
        injector = applied.injector
        source.run("INSERT INTO t (v) VALUES ('ours')")
        put(injector, source.change())
        source.run("INSERT INTO t (v) VALUES ('ours, too')")
        prepared = injector.prepare(injector.begin(durable=False), [source.change()])
        log = Path(f"{replica}-wal")
        size = log.stat().st_size
        # A second injector stands for a writer that got past the fence.
        rogue = applied.another()
        put(rogue, make_transaction({2: bytes(4096)}, prepared.after.db_pages))
        with pytest.raises(ForeignCommit, match="written to by another program"):
            injector.apply(prepared, durable=False)
        assert log.stat().st_size == size + 4096 + 24
    source.close()


def test_frames_of_a_batch_that_never_was_are_overwritten(tmp_path: Path) -> None:
    """Frames and index entries beyond mxFrame, left by a death, are nothing to the next batch."""
    source = Source(tmp_path / "source.db")
    replica = tmp_path / "replica.db"
    with applying(source, replica) as applied:
        injector = applied.injector
        source.run("INSERT INTO t (v) VALUES ('first')")
        put(injector, source.change())
        lost = applied.another()
        lost._write_header = lambda _: None  # type: ignore[method-assign]  # dies before it
        garbage = {pgno: os.urandom(4096) for pgno in (1, 2, 3, 4)}
        lost.apply(lost.prepare(lost.position(), [make_transaction(garbage, 4)]), durable=False)
        fresh = applied.another()
        reader = Application(replica)
        assert rows_of(reader) == (1, 5)
        source.run("INSERT INTO t (v) VALUES (zeroblob(9000))")
        put(fresh, source.change())
        assert rows_of(reader) == (2, 9005)
        reader.close()
    assert content_of(replica) == content_of(source.path)
    source.close()


@pytest.mark.parametrize("copies", ["second is newer", "second is torn", "both are torn"])
def test_a_torn_header_is_repaired_before_readers_wait(tmp_path: Path, copies: str) -> None:
    """Copy 2 wins if it is whole, else copy 1; with neither the operator is told."""
    source = Source(tmp_path / "source.db")
    replica = tmp_path / "replica.db"
    with applying(source, replica) as applied:
        injector = applied.injector
        source.run("INSERT INTO t (v) VALUES ('first')")
        put(injector, source.change())
        index = injector._map
        old = index[:48]
        source.run("INSERT INTO t (v) VALUES ('second')")
        put(injector, source.change())
        index[:48] = old
        if copies != "second is newer":
            index[48:96] = os.urandom(48)
        if copies == "both are torn":
            index[:48] = os.urandom(48)
        with pytest.raises(ForeignCommit, match="is torn"):
            injector.position()
        if copies == "both are torn":
            with pytest.raises(ForeignCommit, match="both copies"):
                injector.repair()
            return
        assert injector.repair()
        assert not injector.repair()
        reader = Application(replica)
        assert rows_of(reader)[0] == (2 if copies == "second is newer" else 1)
        reader.close()
    source.close()


def test_the_log_begins_anew_only_when_nobody_needs_it(tmp_path: Path) -> None:
    """Not while frames are missing in the file, a reader reads from it, or one checkpoints."""
    source = Source(tmp_path / "source.db")
    replica = tmp_path / "replica.db"
    with applying(source, replica) as applied:
        injector = applied.injector
        assert not injector.restart()
        source.run("INSERT INTO t (v) VALUES ('x')")
        put(injector, source.change())
        assert not injector.restart()
        reader = Application(replica)
        reader.sql("BEGIN")
        assert rows_of(reader) == (1, 1)
        applied.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        assert not injector.restart()
        reader.sql("COMMIT")
        before = injector.position()
        assert injector.restart()
        after = injector.position()
        assert (after.frame_max, after.change) == (0, before.change)
        assert int.from_bytes(after.salts[:4]) == int.from_bytes(before.salts[:4]) + 1
        assert rows_of(reader) == (1, 1)
        reader.close()
    source.close()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the batch is visible, and the next attempt succeeds."""
    source = Source(tmp_path / "source.db")
    replica = tmp_path / "replica.db"
    with applying(source, replica) as applied:
        injector = applied.injector
        source.run("INSERT INTO t (v) VALUES ('x')")
        prepared = injector.prepare(injector.begin(durable=True), [source.change()])

        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(inject.os, "pwrite", full)
            with pytest.raises(UnavailableError, match="No space left"):
                injector.apply(prepared, durable=True)
        reader = Application(replica)
        assert rows_of(reader) == (0, 0)
        injector.apply(prepared, durable=True)
        assert rows_of(reader) == (1, 1)
        reader.close()
    source.close()


@pytest.mark.parametrize("byte", [121, 124, 127])
def test_a_log_that_somebody_checkpoints_or_reads_does_not_begin_anew(
    tmp_path: Path, byte: int
) -> None:
    """The checkpoint lock and all read marks are held meanwhile: whoever has one may look back."""
    source = Source(tmp_path / "source.db")
    with applying(source, tmp_path / "replica.db") as applied:
        source.run("INSERT INTO t (v) VALUES ('x')")
        put(applied.injector, source.change())
        applied.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        with Application(tmp_path / "replica.db") as other:
            other.run("import fcntl; f = os.open(db + '-shm', os.O_RDWR)")
            other.run(f"fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, {byte})")
            assert not applied.injector.restart()
            other.run(f"fcntl.lockf(f, fcntl.LOCK_UN, 1, {byte})")
            assert applied.injector.restart()
    source.close()


def test_the_next_generation_is_known_before_it_begins(tmp_path: Path) -> None:
    """A restart that nobody noted is told from a stranger's; beginning it twice changes nothing."""
    source = Source(tmp_path / "source.db")
    with applying(source, tmp_path / "replica.db") as applied:
        injector = applied.injector
        source.run("INSERT INTO t (v) VALUES ('x')")
        put(injector, source.change())
        end = injector.position()
        applied.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        assert injector.restart()
        salts = inject.salts_after_restart(end.salts, end.frame_max, end.checksum)
        assert injector.position().salts == salts
        first = injector.begin(durable=True)
        assert injector.begin(durable=True) == first
        assert first.salts == salts
        other = inject.salts_after_restart(end.salts, end.frame_max + 1, end.checksum)
        assert other[:4] == salts[:4]
        assert other != salts
    source.close()


def test_a_batch_that_was_given_up_does_not_come_back(tmp_path: Path) -> None:
    """A recovery takes whole frames behind the end for a commit, unless they are spoilt."""
    source = Source(tmp_path / "source.db")
    replica = tmp_path / "replica.db"
    with applying(source, replica) as applied:
        source.run("INSERT INTO t (v) VALUES ('x')")
        put(applied.injector, source.change())
        for is_given_up in (False, True):
            lost = applied.another()
            lost._write_header = lambda _: None  # type: ignore[method-assign]  # dies before it
            source.run("INSERT INTO t (v) VALUES ('lost')")
            lost.apply(lost.prepare(lost.position(), [source.change()]), durable=True)
            if is_given_up:
                lost.forget_tail()
            copy = tmp_path / f"copy-{is_given_up}.db"
            copy.write_bytes(replica.read_bytes())
            Path(f"{copy}-wal").write_bytes(Path(f"{replica}-wal").read_bytes())
            recovered = apsw.Connection(str(copy))
            count = recovered.execute("SELECT count(*) FROM t").get
            assert count == (1 if is_given_up else 2)
            recovered.close()
    source.close()


def test_a_database_without_a_log_is_refused(tmp_path: Path) -> None:
    """Somebody must have opened it first; the error names it."""
    with pytest.raises(UnavailableError, match=r"nothing\.db"):
        Injector(tmp_path / "nothing.db", page_size=4096)


def test_the_index_agrees_with_the_one_that_recovery_builds(tmp_path: Path) -> None:
    """A second process that recovers the log from its bytes finds the same pages."""
    source = Source(tmp_path / "source.db")
    replica = tmp_path / "replica.db"
    with applying(source, replica) as applied:
        injector = applied.injector
        for _ in range(20):
            source.run("INSERT INTO t (v) VALUES (randomblob(5000))")
            put(injector, source.change())
        copy = tmp_path / "copy.db"
        copy.write_bytes(replica.read_bytes())
        Path(f"{copy}-wal").write_bytes(Path(f"{replica}-wal").read_bytes())
        recovered = apsw.Connection(str(copy))
        ((count,),) = recovered.execute("SELECT count(*) FROM t").fetchall()
        assert count == 20
        recovered.close()
    assert content_of(copy) == content_of(replica)
    source.close()


def test_blocks_of_the_index_follow_one_another() -> None:
    """Frame numbers map to blocks as in walFramePage: 4,062 frames in the first, then 4,096."""
    assert inject._block_of(1) == (0, 1)
    assert inject._block_of(4062) == (0, 1)
    assert inject._block_of(4063) == (1, 4063)
    assert inject._block_of(4062 + 4096) == (1, 4063)
    assert inject._block_of(4062 + 4096 + 1) == (2, 4062 + 4096 + 1)
    assert np.uint32(inject._FRAMES_IN_FIRST) == 4062
