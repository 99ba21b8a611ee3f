# ruff: noqa: ASYNC240  (nothing else runs in these event loops)
"""Files brought to a state by content, beside applications that read them all the time."""

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from basenet.daemon.cluster import spool
from basenet.daemon.cluster.file import Prepared, ReplicaFile, Target
from basenet.daemon.cluster.mending import Shortage
from basenet.daemon.cluster.spool import Spool
from basenet.errors import ConflictError, UnavailableError
from basenet.sqlite.apply import Found
from basenet.units import GIB, HASH_BYTES, lock_page
from basenet.wire.merkle import StateTree, leaf_hash
from basenet.wire.payload import CommitPayload
from tests.daemon.cluster.files import (
    State,
    StateSources,
    apply,
    opened,
    payload_of,
    root_of,
    whole_of,
)
from tests.sqlite.application import Application, ApplicationError
from tests.sqlite.replica import Source, content_of

PAGE_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]


async def root_now(file: ReplicaFile) -> bytes:
    return (await file.facts()).state_root


_READING = """
allowed, seen = {allowed}, set()
while not os.path.exists({stop}):
    c.execute('begin')
    found = tuple(c.execute('select count(*), total(length(v)) from t').fetchone())
    assert c.execute('pragma integrity_check').fetchone() == ('ok',)
    c.execute('commit')
    assert list(found) in allowed, found
    seen.add(found)
result = len(seen)
"""


@pytest.mark.parametrize("page_size", PAGE_SIZES)
async def test_readers_see_the_state_before_or_after(
    tmp_path: Path, path: Path, socket: Path, page_size: int
) -> None:
    """Growth, then shrinking by VACUUM, in one transaction each, for every page size."""
    with closing(Source(tmp_path / "sized.db", page_size)) as source:
        async with opened(path, socket, page_size=page_size) as here:
            await apply(here.file, whole_of(source))
            with Application(path) as reader, Application(path) as stays:
                stays.sql("BEGIN", "SELECT count(*) FROM t")
                allowed = [[0, 0.0]]
                states = []
                source.run(
                    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 60) "
                    "INSERT INTO t (v) SELECT randomblob(4000) FROM n"
                )
                for statement in ("SELECT 1", "DELETE FROM t WHERE id > 5"):
                    source.run(statement)
                    source.run("VACUUM")
                    states.append(State.of(source))
                    found = source.connection.execute("SELECT count(*), total(length(v)) FROM t")
                    allowed.append(list(found.fetchone()))
                stop = tmp_path / "stop"
                reader.start(_READING.format(allowed=allowed, stop=repr(str(stop))))
                for state in states:
                    done = await here.file.mend(state.target(), StateSources(pages=state.pages()))
                    assert done.pages == done.from_file + done.from_peers > 0
                    assert await root_now(here.file) == state.root
                    assert (await here.file.position()) == done.position
                    assert await here.file.cursor() == done.cursor
                stop.touch()
                assert 1 <= reader.finish() <= 3
                assert states[1].db_pages < states[0].db_pages
                assert stays.sql("SELECT count(*) FROM t") == [[0]]
                stays.sql("COMMIT")
                assert stays.sql("SELECT count(*) FROM t") == [[5]]
        assert content_of(path) == content_of(source.path)


@pytest.mark.parametrize("auto_vacuum", [1, 2])
async def test_a_file_with_auto_vacuum_is_mended(
    tmp_path: Path, path: Path, socket: Path, auto_vacuum: int
) -> None:
    """Its pointer-map pages are pages like all others; also from a file that had none."""
    with closing(Source(tmp_path / "sized.db", 1024)) as source:
        async with opened(path, socket, page_size=1024) as here:
            await apply(here.file, whole_of(source))
            source.run(f"PRAGMA auto_vacuum={auto_vacuum}")
            source.run("PRAGMA journal_mode=DELETE")
            source.run("VACUUM")
            source.run("PRAGMA journal_mode=WAL")
            for count in (300, 20):
                source.run(f"DELETE FROM t WHERE id > {count // 2}")
                source.run("PRAGMA incremental_vacuum")
                source.run(
                    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n "
                    f"WHERE x < {count}) INSERT INTO t (v) SELECT randomblob(2000) FROM n"
                )
                state = State.of(source)
                await here.file.mend(state.target(), StateSources(pages=state.pages()))
                assert await root_now(here.file) == state.root
        assert content_of(path) == content_of(source.path)


async def test_a_roll_back_finds_its_pages_in_the_file_itself(
    path: Path, socket: Path, source: Source
) -> None:
    """What the application wrote last is undone; nobody is asked for anything."""
    async with opened(path, socket) as here:
        source.run("INSERT INTO t (v) VALUES (randomblob(50000))")
        await apply(here.file, whole_of(source))
        state = State.of(source)
        here.file.database.checkpoint(here.file.database.connections[0])
        here.release()
        with Application(path) as app:
            app.sql(
                "UPDATE t SET v = randomblob(60000)",
                "INSERT INTO t (v) VALUES ('never final')",
                "INSERT INTO t (v) VALUES ('never final')",
            )
            await here.file.held()
            sources = StateSources()
            done = await here.file.mend(state.target(), sources)
            assert sources.asked == []
            assert done.pages == done.from_file > 5
            assert not done.is_schema_undone
            assert await root_now(here.file) == state.root
            assert app.sql("SELECT count(*), total(length(v)) FROM t") == [[1, 50000.0]]
            # The application goes on as if nothing had been.
            here.release()
            app.sql("INSERT INTO t (v) VALUES ('again')")
            assert app.sql("PRAGMA integrity_check") == [["ok"]]


async def test_pages_come_from_frames_before_anybody_is_asked(
    path: Path, socket: Path, source: Source
) -> None:
    """The newest frame first; only what is in none of them is asked for."""
    async with opened(path, socket) as here:
        await apply(here.file, whole_of(source))
        source.run("INSERT INTO t (v) VALUES (randomblob(30000))")
        first = payload_of(source)
        source.run("INSERT INTO t (v) VALUES (randomblob(30000))")
        second = payload_of(source)
        state = State.of(source)
        lost = int(second.pgnos[-1])
        second = CommitPayload(
            page_size=4096,
            db_pages=second.db_pages,
            commits=1,
            pgnos=second.pgnos[:-1],
            pages=second.pages[:-4096],
        )
        sources = StateSources(frames=[first, second], pages=state.pages())
        done = await here.file.mend(state.target(), sources)
        assert sources.asked == [lost]
        assert (done.from_file, done.from_peers) == (0, 1)
        assert done.from_frames == done.pages - 1 > 10
        assert await root_now(here.file) == state.root


async def test_an_image_that_is_not_what_was_asked_for_is_not_used(
    path: Path, socket: Path, source: Source
) -> None:
    """Peers that send other bytes, too few of them, or pages nobody asked for, change nothing."""
    async with opened(path, socket) as here:
        await apply(here.file, whole_of(source))
        before = await root_now(here.file)
        source.run("INSERT INTO t (v) VALUES (randomblob(30000))")
        state = State.of(source)
        right = state.pages()
        lies = {hashed: os.urandom(4096) for hashed in right}
        short = {hashed: page[:-1] for hashed, page in right.items()}
        sources = StateSources(pages=lies, later=[short])
        with pytest.raises(UnavailableError, match="had by no node"):
            await here.file.mend(state.target(), sources)
        assert sources.waits == 2
        assert await root_now(here.file) == before
        sources = StateSources(pages=lies, later=[short, right])
        done = await here.file.mend(state.target(), sources)
        assert done.from_peers > 0
        assert await root_now(here.file) == state.root


async def test_what_an_attempt_has_found_is_not_asked_for_again(
    path: Path, socket: Path, source: Source
) -> None:
    """The next target is a newer state; only what it changed, or nobody had, is asked for."""
    async with opened(path, socket) as here:
        await apply(here.file, whole_of(source))
        source.run("INSERT INTO t (v) VALUES (randomblob(300000))")
        first = State.of(source)
        pages = first.pages()
        missing = first.db_pages - 2
        del pages[first.leaf(missing)]
        sources = StateSources(pages=pages)
        with pytest.raises(UnavailableError, match=f"1 pages, page {missing} among them"):
            await here.file.mend(first.target(), sources)
        source.run("INSERT INTO t (v) VALUES ('newer')")
        second = State.of(source)
        sources = StateSources(pages=second.pages())
        done = await here.file.mend(second.target(), sources)
        assert done.pages > 70
        assert len(sources.asked) < 10
        assert missing in sources.asked
        assert await root_now(here.file) == second.root


async def test_the_version_bytes_of_page_1_are_ours_to_write(
    path: Path, socket: Path, source: Source
) -> None:
    """No hash covers them, so a peer could say that the file is read-only; it is in WAL mode."""
    async with opened(path, socket) as here:
        state = State.of(source)
        page = state.image[:18] + b"\x03\x01" + state.image[20:4096]
        assert leaf_hash(1, page) == state.leaf(1)
        pages = state.pages() | {state.leaf(1): page}
        await here.file.mend(state.target(), StateSources(pages=pages))
        with Application(path) as app:
            assert app.sql("SELECT count(*) FROM t") == [[0]]
            here.release()
            app.sql("INSERT INTO t (v) VALUES (1)")
    assert path.read_bytes()[18:20] == b"\x02\x02"


async def test_a_file_that_is_there_already_is_left_alone(
    path: Path, socket: Path, source: Source
) -> None:
    """Nothing is journalled and nothing written."""

    async def never(_: Prepared) -> None:
        raise AssertionError

    async with opened(path, socket) as here:
        await apply(here.file, whole_of(source))
        state, before = State.of(source), await here.file.position()
        assert (await here.file.mend(state.target(), StateSources(), never)).pages == 0
        assert await here.file.position() == before


async def test_a_state_without_a_page_is_an_empty_file(
    path: Path, socket: Path, source: Source
) -> None:
    """No transaction leads there: what the file holds is moved aside, once nobody has it open."""
    async with opened(path, socket) as here:
        state = State.of(source)
        none = Target(page_size=here.file.database.page_size, db_pages=0, leaf=state.leaf)
        before = await here.file.position()
        assert (await here.file.mend(none, StateSources())).set_aside is None
        assert await here.file.position() == before
        await apply(here.file, whole_of(source))
        with Application(path) as app:
            app.sql("SELECT count(*) FROM t")
            with pytest.raises(UnavailableError, match="stop the application once"):
                await here.file.mend(none, StateSources())
        fence = here.file.fence
        assert fence is not None
        fence.on_replaced = here.release
        done = await here.file.mend(none, StateSources())
        assert done.set_aside == path.with_name("app.db.never-final")
        assert content_of(done.set_aside) == content_of(source.path)
        assert (await here.file.facts()).db_pages <= 1
        fence = here.file.fence
        assert fence is not None
        assert fence.on_replaced == here.release
        assert here.file.is_fenced
        # What becomes final next begins with every page.
        await apply(here.file, whole_of(source))
        assert await root_now(here.file) == state.root


async def test_only_the_pages_that_are_named_are_looked_at(
    path: Path, socket: Path, source: Source
) -> None:
    """And those that the file lacks; a caller that knows the difference pays for it alone."""
    async with opened(path, socket) as here:
        source.run("INSERT INTO t (v) VALUES (randomblob(40000))")
        await apply(here.file, whole_of(source))
        before = State.of(source)
        source.run("UPDATE t SET v = randomblob(90000)")
        state = State.of(source)
        looked: list[int] = []
        differing = [
            pgno for pgno in range(1, before.db_pages + 1) if before.leaf(pgno) != state.leaf(pgno)
        ]

        def leaf(pgno: int) -> bytes:
            looked.append(pgno)
            return state.leaf(pgno)

        target = Target(
            page_size=4096, db_pages=state.db_pages, leaf=leaf, pgnos=[*differing, 0, 99_999]
        )
        await here.file.mend(target, StateSources(pages=state.pages()))
        assert await root_now(here.file) == state.root
        assert set(looked) == {*differing, *range(before.db_pages + 1, state.db_pages + 1)}


async def test_the_intent_is_journalled_before_anything_is_visible(
    path: Path, socket: Path, source: Source
) -> None:
    """A crash around it is told apart; and if it cannot be journalled nothing happens."""
    async with opened(path, socket) as here:
        await apply(here.file, whole_of(source))
        before = await root_now(here.file)
        source.run("INSERT INTO t (v) VALUES ('x')")
        state = State.of(source)
        kept: list[Prepared] = []

        async def keep(prepared: Prepared) -> None:
            kept.append(prepared)
            injector = here.file._injecting
            assert injector.tell(prepared.before, prepared.after) is Found.NOT_APPLIED

        async def fail(_: Prepared) -> None:
            raise UnavailableError("the journal is full")

        with pytest.raises(UnavailableError, match="journal is full"):
            await here.file.mend(state.target(), StateSources(pages=state.pages()), fail)
        assert await root_now(here.file) == before
        done = await here.file.mend(state.target(), StateSources(pages=state.pages()), keep)
        (prepared,) = kept
        assert prepared.after == done.position
        assert await here.file.tell(prepared.before, prepared.after) is Found.APPLIED


async def test_undone_ddl_is_told_until_every_application_is_gone(
    path: Path, socket: Path, source: Source
) -> None:
    """An idle connection would take the next index for the one that it knows (P6)."""
    async with opened(path, socket) as here:
        await apply(here.file, whole_of(source))
        state = State.of(source)
        here.release()
        with Application(path) as app:
            app.sql("CREATE INDEX undone ON t (id, v)")
            await here.file.held()
            done = await here.file.mend(state.target(), StateSources())
            assert done.is_schema_undone
            assert here.file.database.others_connected()
        assert not here.file.database.others_connected()
        # A schema that goes on is no danger, nor is a roll-back without DDL.
        source.run("CREATE INDEX next ON t (v, id)")
        state = State.of(source)
        done = await here.file.mend(state.target(), StateSources(pages=state.pages()))
        assert not done.is_schema_undone
        # Another schema with the very same cookie is.
        here.release()
        with Application(path) as app:
            app.sql("DROP INDEX next")
            await here.file.held()
        source.run("CREATE INDEX other ON t (v, v)")
        state = State.of(source)
        done = await here.file.mend(state.target(), StateSources(pages=state.pages()))
        assert done.is_schema_undone


async def test_another_page_size_needs_a_file_that_nobody_has_open(
    tmp_path: Path, path: Path, socket: Path
) -> None:
    """The old one is set aside whole; with an application in it, one sentence says what to do."""
    with closing(Source(tmp_path / "old.db", 1024)) as old:
        old.run("INSERT INTO t (v) VALUES ('kept')")
        async with opened(path, socket, page_size=1024) as here:
            await apply(here.file, whole_of(old))
            with closing(Source(tmp_path / "new.db", 8192)) as new:
                new.run("INSERT INTO t (v) VALUES (randomblob(100000))")
                state = State.of(new)
                with Application(path) as app:
                    app.sql("SELECT count(*) FROM t")
                    with pytest.raises(ConflictError, match="stop the application once"):
                        await here.file.mend(state.target(), StateSources(pages=state.pages()))
                done = await here.file.mend(state.target(), StateSources(pages=state.pages()))
                assert here.file.database.page_size == 8192
                assert await root_now(here.file) == state.root
                assert here.file.is_fenced
                with (
                    Application(path, timeout_s=0) as app,
                    pytest.raises(ApplicationError, match="locked"),
                ):
                    app.sql("INSERT INTO t (v) VALUES (1)")
            assert done.set_aside == path.with_name("app.db.page-size-1024")
        assert content_of(done.set_aside) == content_of(old.path)


async def test_many_pages_wait_in_a_file(
    path: Path, socket: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a bound they are not held in memory; nothing is left behind."""
    monkeypatch.setattr(spool, "MEMORY_BYTES_MAX", 100_000)
    async with opened(path, socket) as here:
        source.run("INSERT INTO t (v) VALUES (randomblob(3000000))")
        state = State.of(source)
        await here.file.mend(state.target(), StateSources(pages=state.pages()))
        assert await root_now(here.file) == state.root
        assert sorted(each.name for each in path.parent.iterdir()) == [
            "app.db",
            "app.db-shm",
            "app.db-wal",
            "guardian.socket",
            "source.db",
            "source.db-shm",
            "source.db-wal",
        ]


def test_a_spool_that_does_not_fit_the_disk_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is fetched."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool.os, "posix_fallocate", full)
    with pytest.raises(UnavailableError, match="No space left"):
        Spool(tmp_path, count=100_000, page_size=4096)


def test_a_shortage_takes_each_page_once(tmp_path: Path) -> None:
    """Pages that nobody looks for, and second images, are no progress."""
    page = bytes(512)
    state = State(page * 5, 512)
    shortage = Shortage(state.target(), np.array([2, 4], np.uint32), tmp_path)
    assert shortage.missing().tolist() == [2, 4]
    assert not shortage.offer(3, page)
    assert not shortage.offer(9, page)
    assert not shortage.offer(2, page[:-1] + b"\1")
    assert shortage.offer(2, page)
    assert not shortage.offer(2, page)
    assert shortage.missing().tolist() == [4]
    found = shortage.is_missing(np.array([1, 2, 4, 4_000], np.uint32))
    assert found.tolist() == [False, False, True, False]
    shortage.close()


@pytest.mark.system
@pytest.mark.parametrize("page_size", [4096, 65536])
async def test_a_database_grows_over_the_lock_page(
    tmp_path: Path, path: Path, socket: Path, page_size: int
) -> None:
    """More than 1 GiB, nearly all of it holes: the page of the lock bytes is never written."""
    lock = lock_page(page_size)
    big = tmp_path / "big.db"
    with closing(Source(big, page_size)) as source:
        source.run("INSERT INTO t (v) VALUES ('small')")
        async with opened(path, socket, page_size=page_size) as here:
            await apply(here.file, whole_of(source))
            await here.file.relieve()
            leaves = await here.file.leaves()
            small = len(leaves) // HASH_BYTES
            # A database of so many pages, of which those in between are free and never read.
            db_pages = lock + 5
            first = bytearray(State.of(source).image[:page_size])
            first[28:32] = db_pages.to_bytes(4, "big")
            zero = bytes(page_size)
            cache = {1: leaf_hash(1, first)}

            def leaf(pgno: int) -> bytes:
                if pgno not in cache:
                    if pgno <= small:
                        return bytes(leaves[(pgno - 1) * HASH_BYTES : pgno * HASH_BYTES])
                    return leaf_hash(pgno, zero)
                return cache[pgno]

            class Zeros(StateSources):
                async def fetch(self, wants: Sequence[tuple[int, bytes]]) -> Mapping[int, bytes]:
                    self.asked += [pgno for pgno, _ in wants]
                    return {pgno: bytes(first) if pgno == 1 else zero for pgno, _ in wants}

            peers = Zeros()
            target = Target(page_size=page_size, db_pages=db_pages, leaf=leaf)
            done = await here.file.mend(target, peers)
            assert lock not in peers.asked
            assert done.pages == db_pages - small - 1 + 1
            assert (await here.file.facts()).db_pages == db_pages
            tree = StateTree(page_size, b"".join(leaf(n) for n in range(1, db_pages + 1)))
            assert await root_now(here.file) == tree.root()
            state = await here.file.relieve()
            assert state.waiting_bytes == 0
            assert await root_now(here.file) == tree.root()
            assert path.stat().st_size == db_pages * page_size > GIB
            with Application(path) as app:
                assert app.sql("SELECT v FROM t") == [["small"]]
            # And back below it.
            before = State.of(source)
            done = await here.file.mend(before.target(), StateSources(pages=before.pages()))
            assert await root_now(here.file) == before.root == root_of(before.image, page_size)
            await here.file.relieve()
            with Application(path) as app:
                assert app.sql("PRAGMA integrity_check") == [["ok"]]
    for each in tmp_path.glob("app.db*"):
        each.unlink()  # gigabytes, which pytest would keep
