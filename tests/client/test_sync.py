import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypercorn.trio.tcp_server import TCPServer

from basenet.client import (
    CommitOrphaned,
    DaemonUnavailable,
    Level,
    LineageChanged,
    NotFinal,
    Refused,
    sync,
    waiting,
)
from basenet.control import server
from basenet.control.surface import Orphaned
from basenet.errors import UnavailableError, UsageError
from tests.fakes.served import served_in_thread
from tests.fakes.surface import LINEAGE, FakeSurface, make_shard

COOKIE = f"{LINEAGE[:8]}-11"


@pytest.fixture
def surface(tmp_path: Path) -> FakeSurface:
    path = str(tmp_path / "app.db")
    return FakeSurface(make_shard("other"), make_shard(path=path, archived_seq=11, applied_seq=11))


@pytest.fixture
def database(surface: FakeSurface, tmp_path: Path) -> Iterator[sync.Connection]:
    (tmp_path / "data").mkdir()
    with closing(sqlite3.connect(tmp_path / "app.db")) as first:
        first.execute("create table note (id integer primary key, text)")
    with served_in_thread(surface, tmp_path / "data"):
        options: dict[str, Any] = {"daemon": tmp_path / "data", "timeout_s": 2.0}
        with closing(sync.connect(tmp_path / "app.db", **options)) as connection:
            yield connection


def rows(tmp_path: Path) -> list[Any]:
    with closing(sqlite3.connect(tmp_path / "app.db")) as other:
        return other.execute("select text from note order by id").fetchall()


def test_its_own_connection_is_one_that_is_answered_at_once(
    database: sync.Connection, surface: FakeSurface, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks nothing that would hand it over; only which shard it is, is asked elsewhere."""
    handed_over: list[object] = []

    class Counted(TCPServer):
        def __init__(self, *arguments: Any) -> None:
            handed_over.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr(server, "TCPServer", Counted)
    monkeypatch.setattr(waiting, "_FRESH_SECONDS", 0.0)  # the generation is asked for each time
    for text in "abc":
        with database:
            database.execute("insert into note (text) values (?)", (text,))
    assert len(surface.waits) == 3
    assert len(handed_over) == 1


def test_a_commit_waits_for_its_level(database: sync.Connection, surface: FakeSurface) -> None:
    """For the present commit of the right shard, and only when something was committed."""
    database.execute("insert into note (text) values (?)", ("a",))
    assert surface.waits == []
    assert database.last_txseq is None
    database.commit()
    assert surface.waits == [("app", None, "final", 2.0)]
    assert (database.last_txseq, database.last_seq) == (COOKIE, 11)
    database.commit()
    assert len(surface.waits) == 1
    database.level = Level.ARCHIVED
    with database:
        database.execute("insert into note (text) values ('b')")
    assert surface.waits[1:] == [("app", None, "archived", 2.0)]


def test_level_local_asks_nobody(tmp_path: Path) -> None:
    """It is sqlite3, daemon or no daemon; what is wanted later can be waited for then."""
    with closing(sync.connect(tmp_path / "a.db", level=Level.LOCAL)) as database:
        database.execute("create table t (x)")
        database.execute("insert into t values (1)")
        database.commit()
        assert database.execute("select * from t").fetchall() == [(1,)]
        with pytest.raises(UsageError, match="nothing to wait for"):
            database.wait()
        with pytest.raises(DaemonUnavailable):
            database.wait(Level.FINAL)


def test_statements_that_commit_by_themselves_wait(
    surface: FakeSurface, database: sync.Connection, tmp_path: Path
) -> None:
    """In autocommit each of them; reading waits for nothing."""
    database.isolation_level = None
    database.execute("insert into note (text) values ('a')")
    assert len(surface.waits) == 1
    database.executemany("insert into note (text) values (?)", [("b",), ("c",)])
    assert len(surface.waits) == 2
    database.executescript("insert into note (text) values ('d'); delete from note where id = 1")
    assert len(surface.waits) == 3
    database.execute("create table more (x)")
    assert len(surface.waits) == 4
    assert database.execute("select count(*) from note").fetchone() == (3,)
    database.execute("begin")
    database.execute("update note set text = 'z'")
    assert len(surface.waits) == 4
    database.execute("rollback")
    assert len(surface.waits) == 4
    database.execute("begin")
    database.execute("update note set text = 'z' where id = 2")
    database.execute("commit")
    assert len(surface.waits) == 5
    cursor = database.cursor()
    cursor.execute("insert into note (text) values ('e')")
    assert len(surface.waits) == 6
    assert rows(tmp_path) == [("z",), ("c",), ("d",), ("e",)]


def test_to_leave_the_transaction_mode_is_a_commit_too(
    surface: FakeSurface, database: sync.Connection, tmp_path: Path
) -> None:
    """sqlite3 commits what is open when it is told to commit by itself from now on."""
    assert database.isolation_level == ""
    database.execute("insert into note (text) values ('a')")
    database.isolation_level = "IMMEDIATE"
    assert (surface.waits, rows(tmp_path)) == ([], [])
    database.isolation_level = None
    assert (len(surface.waits), rows(tmp_path)) == (1, [("a",)])
    assert database.isolation_level is None


def test_rows_of_a_returning_statement_come_after_its_commit(
    surface: FakeSurface, database: sync.Connection, tmp_path: Path
) -> None:
    """SQLite commits it when the last row was read, so they are read first."""
    database.isolation_level = None
    database.row_factory = sqlite3.Row
    cursor = database.execute("insert into note (text) values ('a'), ('b'), ('c') returning id")
    assert len(surface.waits) == 1
    assert len(rows(tmp_path)) == 3
    assert cursor.fetchone()["id"] == 1
    assert [row["id"] for row in cursor.fetchmany(1)] == [2]
    assert [row["id"] for row in cursor] == [3]
    assert cursor.fetchone() is None
    assert cursor.execute("select 5").fetchall()[0][0] == 5


def test_an_error_after_a_commit_says_that_it_is_committed(
    surface: FakeSurface, database: sync.Connection, tmp_path: Path
) -> None:
    """Whatever the daemon says, the transaction stands and must not be run again."""
    surface.shards[1] = make_shard(path=surface.shards[1].path, final_seq=3)
    database.timeout_s = 0.02
    database.execute("insert into note (text) values ('a')")
    with pytest.raises(NotFinal) as late:
        database.commit()
    assert (late.value.is_committed, late.value.seq, late.value.level) == (True, 11, "final")
    assert "was not final up to 11" in str(late.value)
    assert database.in_transaction is False
    for error, kind in (
        (Orphaned("commits 4 to 5 lost"), CommitOrphaned),
        (UnavailableError("shard app is stopped"), DaemonUnavailable),
        (UsageError("BASE_ARCHIVE is off"), Refused),
    ):
        surface.wait_error = error
        with pytest.raises(kind, match=str(error)) as caught, database:
            database.execute("insert into note (text) values ('b')")
        assert isinstance(caught.value, kind)
        assert caught.value.is_committed is True
    assert len(rows(tmp_path)) == 4
    surface.wait_error = None
    surface.grant()
    assert database.wait() == COOKIE


def pass_generation(surface: FakeSurface, generation: str | None) -> None:
    """Let this be the shard's generation from now on."""
    surface.shards[1] = msgspec.structs.replace(surface.shards[1], generation=generation)


def test_a_wait_names_the_generation_from_before_the_commit(
    surface: FakeSurface, database: sync.Connection
) -> None:
    """Something was undone on the node between the statement and the wait: never final."""
    pass_generation(surface, "g1")
    database.execute("insert into note (text) values ('a')")
    pass_generation(surface, "g2")
    with pytest.raises(CommitOrphaned, match="g1 has passed") as caught:
        database.commit()
    assert (caught.value.is_committed, caught.value.bundles) == (True, ("app/9-8",))
    with database:
        database.execute("insert into note (text) values ('b')")
    assert surface.generations == ["g1", "g2"]


def test_an_answered_wait_gives_the_generation_of_the_next_commit(
    surface: FakeSurface, database: sync.Connection
) -> None:
    """A busy connection asks nothing more; what was not waited for keeps the older one."""
    pass_generation(surface, "g1")
    database.isolation_level = None
    database.execute("insert into note (text) values ('a')")
    database.execute("insert into note (text) values ('b')")
    pass_generation(surface, "g2")
    with pytest.raises(CommitOrphaned):
        database.execute("insert into note (text) values ('c')")
    database.level = Level.LOCAL
    database.execute("insert into note (text) values ('d')")
    pass_generation(surface, "g3")
    database.level = Level.FINAL
    with database:
        database.execute("insert into note (text) values ('e')")
    assert surface.generations == ["g1", "g1", "g1", "g3"]


def test_what_is_committed_without_a_wait_counts_from_the_last_one(
    surface: FakeSurface, database: sync.Connection
) -> None:
    """Whatever was undone since then may be what the wait is for."""
    pass_generation(surface, "g1")
    database.isolation_level = None
    database.execute("insert into note (text) values ('a')")
    database.level = Level.LOCAL
    database.execute("insert into note (text) values ('b')")
    pass_generation(surface, "g2")
    with pytest.raises(CommitOrphaned, match="g1 has passed") as caught:
        database.wait(Level.FINAL)
    assert caught.value.is_committed is False
    assert database.wait(Level.FINAL) == COOKIE
    assert surface.generations == ["g1", "g1", None]


def test_a_generation_that_is_a_second_old_is_asked_for_again(
    surface: FakeSurface, database: sync.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what was undone long before the commit would be taken to have hit it."""
    now_s = 0.0
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: now_s))
    pass_generation(surface, "g1")
    database.isolation_level = None
    database.execute("insert into note (text) values ('a')")
    pass_generation(surface, "g2")
    now_s = 1.5
    database.execute("insert into note (text) values ('b')")
    assert surface.generations == ["g1", "g2"]


def test_a_node_alone_has_no_generation_and_is_asked_as_ever(
    surface: FakeSurface, database: sync.Connection
) -> None:
    """None is passed on as none."""
    with database:
        database.execute("insert into note (text) values ('a')")
    assert surface.generations == [None]


def test_a_daemon_that_is_gone_does_not_unmake_a_commit(tmp_path: Path) -> None:
    """The commit is there, and the error says so."""
    with closing(sync.connect(tmp_path / "a.db", daemon=tmp_path)) as database:
        with pytest.raises(DaemonUnavailable) as caught:
            database.execute("create table t (x)")
        assert caught.value.is_committed is True
        assert database.execute("select count(*) from t").fetchone() == (0,)


def test_a_transaction_that_failed_is_rolled_back(
    surface: FakeSurface, database: sync.Connection, tmp_path: Path
) -> None:
    """As in sqlite3: an exception in the block, and nobody is asked anything."""

    def write_twice() -> None:
        with database:
            database.execute("insert into note values (1, 'a')")
            database.execute("insert into note values (1, 'b')")

    with pytest.raises(sqlite3.IntegrityError):
        write_twice()
    assert database.in_transaction is False
    assert rows(tmp_path) == []
    assert surface.waits == []


def test_a_reader_waits_for_what_it_wrote_elsewhere(
    surface: FakeSurface, database: sync.Connection
) -> None:
    """By its cookie; one of another lineage is refused, and so is an old view of the database."""
    database.read_your_writes(f"{LINEAGE[:8]}-7")
    assert surface.waits == [("app", 7, "applied", 2.0)]
    with pytest.raises(LineageChanged, match="another history"):
        database.read_your_writes("deadbeef-7")
    with pytest.raises(Refused, match="no cookie"):
        database.read_your_writes("seven")
    with pytest.raises(NotFinal) as late:
        database.read_your_writes(f"{LINEAGE[:8]}-99", timeout_s=0.02)
    assert late.value.is_committed is False
    database.execute("insert into note (text) values ('a')")
    with pytest.raises(UsageError, match="a transaction is open"):
        database.read_your_writes(COOKIE)


def test_the_shard_is_found_by_its_file(surface: FakeSurface, tmp_path: Path) -> None:
    """Through a link, too; by its name where paths differ; and not at all where none is ours."""
    (tmp_path / "data").mkdir()
    with closing(sqlite3.connect(tmp_path / "app.db")) as first:
        first.execute("create table t (x)")
    (tmp_path / "link.db").symlink_to(tmp_path / "app.db")
    with served_in_thread(surface, tmp_path / "data") as listeners:
        url = f"http://{listeners.address}"
        for path, options in (
            (tmp_path / "link.db", {"daemon": url}),
            (tmp_path / "foreign.db", {"daemon": tmp_path / "data", "shard": "app"}),
            (tmp_path / "app.db", {"daemon": tmp_path / "data" / "basenet.sock"}),
        ):
            with closing(sync.connect(path, **options)) as database:  # type: ignore[arg-type]
                assert database.wait(Level.FINAL) == COOKIE
        with (
            closing(sync.connect(tmp_path / "foreign.db", daemon=url)) as database,
            pytest.raises(DaemonUnavailable, match=r"does not serve .*app, other"),
        ):
            database.wait()


def test_the_daemon_is_found_where_it_usually_is(
    surface: FakeSurface, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.basenet` beside the database, BASE_DATA_DIR, BASE_LISTEN_HTTP."""
    for name in ("BASE_DATA_DIR", "BASE_LISTEN_HTTP"):
        monkeypatch.delenv(name, raising=False)
    beside = tmp_path / ".basenet"
    beside.mkdir()

    def ask() -> str:
        with closing(sync.connect(tmp_path / "app.db")) as database:
            return database.wait()

    with served_in_thread(surface, beside):
        assert ask() == COOKIE
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with served_in_thread(surface, elsewhere) as listeners:
        with pytest.raises(DaemonUnavailable):
            ask()
        monkeypatch.setenv("BASE_LISTEN_HTTP", str(listeners.address))
        assert ask() == COOKIE
        monkeypatch.setenv("BASE_DATA_DIR", str(elsewhere))
        assert ask() == COOKIE


@pytest.mark.parametrize("daemon", ["https://a:1", "http://", "http://host", "ftp://a:1"])
def test_an_address_that_is_none_is_refused_at_once(tmp_path: Path, daemon: str) -> None:
    """Before anything is committed that nobody can be asked about."""
    with pytest.raises(UsageError):
        sync.connect(tmp_path / "a.db", daemon=daemon)
    with pytest.raises(UsageError):
        sync.connect(":memory:")


@pytest.mark.parametrize("module", ["basenet.client", "basenet.client.sync", "basenet.client.aio"])
def test_nothing_of_the_daemon_is_imported(module: str) -> None:
    """Inside an application there are the standard library and, for asyncio, aiosqlite."""
    program = f"""
import sys
standard = set(sys.stdlib_module_names)
before = set(sys.modules)
import {module}
tops = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(sorted(tops - standard - {{"basenet"}}))
print(sorted(name for name in sys.modules if name.startswith("basenet.")))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    alien, ours = done.stdout.splitlines()
    assert alien == ("['aiosqlite']" if module.endswith("aio") else "[]")
    rooms = {name.split(".")[1].strip("'") for name in ours.strip("[]").split(", ")}
    assert rooms <= {"client", "errors"}
