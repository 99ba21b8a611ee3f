"""The client library against a real `basenet serve`, as an application uses it."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from basenet.client import Level, NotFinal, Refused, connect, sync
from basenet.control.members import MembersCommand, MembersVerb
from basenet.control.surface import ShardRole
from basenet.errors import UsageError
from tests.system.harness import Daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with closing(sqlite3.connect(tmp_path / "app.db")) as first:
        first.execute("pragma journal_mode=wal")
        first.execute("create table note (id integer primary key, text)")
    data_dir = tmp_path / ".basenet"
    arguments = [str(tmp_path / "app.db"), str(tmp_path / "archive")]
    with Daemon(arguments, data_dir=data_dir, log=tmp_path / "log") as started:
        started.wait_capturing()
        started.wait_archived()
        yield started


def test_commits_reach_their_level(daemon: Daemon, tmp_path: Path) -> None:
    """Final is in the journal, archived in the archive: the daemon's own status says so after."""
    with closing(sync.connect(tmp_path / "app.db")) as db:
        db.execute("insert into note (text) values ('a')")
        db.commit()
        seq = db.last_seq
        assert seq is not None
        status = daemon.status()
        assert status.final_seq >= seq
        assert db.last_txseq == f"{(status.lineage or '')[:8]}-{seq}"
        db.level = Level.ARCHIVED
        with db:
            db.execute("insert into note (text) values ('b')")
        assert db.last_seq is not None
        assert daemon.status().archived_seq >= db.last_seq > seq
        db.level = Level.LOCAL
        db.isolation_level = None
        db.execute("insert into note (text) values ('c')")
        cookie = db.wait(Level.FINAL)
        assert int(cookie.partition("-")[2]) > db.last_seq - 1 >= seq
        db.read_your_writes(cookie)


def test_the_asyncio_form_does_the_same(daemon: Daemon, tmp_path: Path) -> None:
    """Explicit and by themselves, statements are final when the call returns."""

    async def main() -> None:
        async with connect(tmp_path / "app.db") as db:
            await db.execute("insert into note (text) values ('a')")
            await db.commit()
            first = db.last_seq
            assert first is not None
            assert daemon.status().final_seq >= first
        async with connect(tmp_path / "app.db", isolation_level=None) as db:
            await db.execute("insert into note (text) values ('b')")
            assert db.last_seq is not None
            assert daemon.status().final_seq >= db.last_seq > first

    asyncio.run(main())


def test_what_the_daemon_cannot_do_is_said(daemon: Daemon, tmp_path: Path) -> None:
    """A seq that is not there yet, and what is no cookie."""
    lineage = (daemon.status().lineage or "")[:8]
    with closing(sync.connect(tmp_path / "app.db", timeout_s=0.05)) as db:
        with pytest.raises(NotFinal):
            db.read_your_writes(f"{lineage}-999")
        with pytest.raises(Refused, match="no cookie"):
            db.read_your_writes("what")


def test_a_node_alone_is_its_own_writer_and_has_no_members_to_change(daemon: Daemon) -> None:
    """What is asked of a cluster has its answer here, too."""
    status = daemon.status()
    assert (status.role, status.writer) == (ShardRole.WRITER, "test-node")
    assert status.applied_seq == status.final_seq > 0
    assert '"writer":"test-node"' in daemon.get("/v1/shards/app/writer")
    with pytest.raises(UsageError, match="this node is standalone"):
        daemon.client.command("app", MembersCommand(verb=MembersVerb.ADD, nodes=("b",)))
