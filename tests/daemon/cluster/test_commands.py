# ruff: noqa: ASYNC240  (a name is made in a folder of this test)
"""`basenet members` beside an application that commits faster than others can be told."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from basenet.config.model import NodeRole
from basenet.control.members import MembersCommand, MembersVerb
from basenet.daemon.cluster import commands, heirs, tending
from basenet.daemon.cluster.tending import Steward
from basenet.engine import membership
from basenet.errors import ConflictError
from tests.daemon.cluster.joined import Joined, Member, joined
from tests.daemon.cluster.nodes import SHARD, eventually
from tests.sqlite.application import Application

FIRST, LATE = ("b", "c"), "a"
"""Who votes for the shard ``app`` where two do, and who does not."""
WRITE = """
count = 0
while not os.path.exists(db + '.stop'):
    try:
        c.execute('INSERT INTO t VALUES (1)')
        count += 1
    except sqlite3.OperationalError:
        time.sleep(0.01)
result = count
"""


@pytest.fixture(autouse=True)
def _strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is caught up who lacks a frame, so nobody ever is beside such an application."""
    monkeypatch.setattr(membership, "WINDOW_FRAMES", 0)
    monkeypatch.setattr(commands, "_FREE_S", 0.1)
    monkeypatch.setattr(heirs, "NEAR_FRAMES", 10**9)


@asynccontextmanager
async def busy(member: Member) -> AsyncIterator[list[int]]:
    """Write all the time; the list has how many commits there were, afterwards."""
    counts: list[int] = []
    with Application(member.path, timeout_s=0) as application:
        application.start(WRITE)
        before = member.seq()
        await eventually(lambda: member.seq() > before + 10)
        try:
            yield counts
        finally:
            Path(f"{member.path}.stop").touch()
            counts.append(await trio.to_thread.run_sync(application.finish))


async def born(here: Joined) -> Member:
    """Start everybody, and commit an empty table; return the writer."""
    for one in here.others():
        one.start()
    writer = await here.writer()
    await here.commit(writer, "CREATE TABLE t (x)")
    await here.agree()
    return writer


async def give(member: Member, verb: MembersVerb, name: str) -> str:
    with trio.fail_after(60):
        return await member.shard.command(MembersCommand(verb=verb, nodes=(name,)))


async def rows(here: Joined, count: int) -> None:
    """Everybody has all that was ever committed."""
    writer = await here.writer()
    seq = await writer.shard.capture_now()
    await eventually(lambda: writer.seq() >= seq)
    await here.agree()
    for one in here.others():
        assert one.journal.orphans(SHARD) == ()
        with Application(one.path) as application:
            found = await trio.to_thread.run_sync(application.sql, "SELECT count(*) FROM t")
        assert found == [[count]]


async def test_who_is_a_little_behind_is_added(tmp_path: Path, socket: Path) -> None:
    """The application is locked out for the moment that it takes, and goes on."""
    async with joined(tmp_path, socket, replication=2) as here:
        writer = await born(here)
        async with busy(writer) as counts:
            said = await give(writer, MembersVerb.ADD, LATE)
            assert "has the voters" in said
            await eventually(lambda: writer.is_writer)
        await rows(here, counts[0])


async def test_the_lead_goes_to_who_is_a_little_behind(tmp_path: Path, socket: Path) -> None:
    """With all that was committed before."""
    async with joined(tmp_path, socket) as here:
        writer = await born(here)
        target = here.others(writer)[0]
        async with busy(writer) as counts:
            said = await give(writer, MembersVerb.TRANSFER, target.name)
            assert f"{target.name} leads" in said
            assert await here.writer(but=writer) is target
        await rows(here, counts[0])


async def test_the_writer_comes_home_though_the_application_never_rests(
    tmp_path: Path, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is near all the time, and has everything once nothing more is committed."""
    monkeypatch.setattr(tending, "_LOOK_S", 0.01)
    monkeypatch.setattr(tending, "_HOME_S", 0.5)
    async with joined(tmp_path, socket) as here:
        writer = await born(here)
        home = here.others(writer)[0]
        steward = Steward(
            {SHARD: writer.shard},
            cluster=cast("Any", writer.station),
            config=cast("Any", SimpleNamespace(writer=home.name, node_role=NodeRole.VALIDATOR)),
        )
        async with busy(writer) as counts, trio.open_nursery() as nursery:
            nursery.start_soon(steward.run)
            assert await here.writer(but=writer) is home
            nursery.cancel_scope.cancel()
        await rows(here, counts[0])


async def test_nobody_is_locked_out_for_who_is_far_behind(
    tmp_path: Path, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused after a while, and nothing has changed."""
    monkeypatch.setattr(heirs, "NEAR_FRAMES", -(10**9))
    monkeypatch.setattr(commands, "_CLOSE_S", 0.5)
    async with joined(tmp_path, socket) as here:
        writer = await born(here)
        target = here.others(writer)[0]
        monkeypatch.setattr(membership, "WINDOW_FRAMES", -(10**9))
        async with busy(writer) as counts:
            with pytest.raises(ConflictError, match="has not caught up with seq"):
                await give(writer, MembersVerb.TRANSFER, target.name)
            assert writer.is_writer
        await rows(here, counts[0])
