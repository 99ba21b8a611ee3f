import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import basenet.client
from basenet.client import Connection, DaemonUnavailable, Level, NotFinal, connect
from tests.fakes.served import served_in_thread
from tests.fakes.surface import LINEAGE, FakeSurface, make_shard

COOKIE = f"{LINEAGE[:8]}-11"


@pytest.fixture
def surface(tmp_path: Path) -> Iterator[FakeSurface]:
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as first:
        first.execute("create table note (text)")
    (tmp_path / ".basenet").mkdir()
    surface = FakeSurface(make_shard(path=str(path), archived_seq=11, applied_seq=11))
    with served_in_thread(surface, tmp_path / ".basenet"):
        yield surface


def test_a_commit_returns_when_it_is_final(surface: FakeSurface, tmp_path: Path) -> None:
    """As the example of the package says, and the connection is aiosqlite's."""

    async def main() -> None:
        async with connect(tmp_path / "app.db", timeout_s=3) as db:
            assert isinstance(db, Connection)
            await db.execute("insert into note values (?)", ("hello",))
            assert surface.waits == []
            await db.commit()
            assert surface.waits == [("app", None, "final", 3.0)]
            assert (db.last_txseq, db.last_seq, db.level) == (COOKIE, 11, Level.FINAL)
            async with db.execute("select text from note") as cursor:
                assert [row async for row in cursor] == [("hello",)]
            await db.read_your_writes(COOKIE)
            db.level = Level.ARCHIVED
            assert await db.wait() == COOKIE

    asyncio.run(main())
    assert [wait[2] for wait in surface.waits] == ["final", "applied", "archived"]


def test_statements_that_commit_by_themselves_wait(surface: FakeSurface, tmp_path: Path) -> None:
    """Also the ones of aiosqlite's own helpers, and they give their rows."""

    async def main() -> None:
        async with connect(tmp_path / "app.db", isolation_level=None) as db:
            await db.execute("insert into note values ('a')")
            await db.executemany("insert into note values (?)", [("b",)])
            await db.execute_insert("insert into note values (?)", ("c",))
            rows = await db.execute_fetchall("insert into note values ('d') returning text")
            assert list(rows) == [("d",)]

    asyncio.run(main())
    assert len(surface.waits) == 4


def test_the_loop_goes_on_while_a_commit_waits(surface: FakeSurface, tmp_path: Path) -> None:
    """Other tasks run, and the commit returns with the grant."""
    path = surface.shards[0].path
    surface.shards[0] = make_shard(path=path, final_seq=3)

    async def main() -> None:
        async with connect(tmp_path / "app.db") as db:
            await db.execute("insert into note values ('a')")
            waiting = asyncio.create_task(db.commit())
            assert await asyncio.to_thread(surface.wait_began_for_threads.wait, 10)
            assert not waiting.done()
            surface.grant_from_thread()
            await waiting

    asyncio.run(main())


def test_errors_say_that_the_commit_is_done(surface: FakeSurface, tmp_path: Path) -> None:
    """It is in the database, whatever became of the wait."""
    surface.shards[0] = make_shard(path=surface.shards[0].path, final_seq=3)

    async def main() -> None:
        async with connect(tmp_path / "app.db", timeout_s=0.02) as db:
            await db.execute("insert into note values ('a')")
            with pytest.raises(NotFinal) as late:
                await db.commit()
            assert late.value.is_committed
        async with connect(tmp_path / "app.db", daemon=tmp_path) as db:
            await db.execute("insert into note values ('b')")
            with pytest.raises(DaemonUnavailable) as gone:
                await db.commit()
            assert gone.value.is_committed
            async with db.execute("select count(*) from note") as cursor:
                assert await cursor.fetchone() == (2,)

    asyncio.run(main())


def test_the_package_gives_only_what_it_has() -> None:
    """Its lazy half does not hide a misspelt name."""
    with pytest.raises(AttributeError, match="conect"):
        _ = basenet.client.conect  # type: ignore[attr-defined]
