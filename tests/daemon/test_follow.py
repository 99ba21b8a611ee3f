"""Following one database: `look` is what `wait`, snapshots and a clean stop rely on."""

import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from basenet.daemon.follow import Follower, Nap
from basenet.daemon.journalist import Journalist
from basenet.daemon.pump import Pump
from basenet.daemon.waker import Waker
from basenet.sqlite.attach import DetachedState, attach
from basenet.sqlite.capture import Capture, Gap
from basenet.sqlite.captured import Captured
from basenet.sqlite.checkpoint import DatabaseReplaced
from basenet.sqlite.wake import open_wake
from tests.daemon.model import Model, born, loaded
from tests.sqlite.application import Application

WAIT_S = 20
NEVER_S = 3600.0


@dataclass
class Bench:
    """A follower of a real database, without a waker: it looks only when it is asked to."""

    application: Application
    capture: Capture
    follower: Follower = field(init=False)
    commits: int = 0
    batches: int = 0
    hold: threading.Event | None = None
    held: threading.Event = field(default_factory=threading.Event)
    refusals: int = 0
    detached: DetachedState | None = None
    ended: trio.Event = field(default_factory=trio.Event)

    def sink(self, batch: list[Captured]) -> bool:
        self.batches += 1
        if self.hold is not None:
            self.held.set()
            assert self.hold.wait(WAIT_S)
        self.commits += sum(item.commits for item in batch)
        self.refusals -= self.refusals > 0
        return self.refusals == 0

    def insert(self, count: int = 1, *, size: int = 1) -> None:
        """Commit ``count`` rows of ``size`` bytes."""
        self.application.run(
            f"for n in range({count}): c.execute('insert into t values(?, zeroblob({size}))', (n,))"
        )

    async def bridge(self, gap: Gap) -> None:
        raise AssertionError(str(gap))

    async def run(self) -> None:
        try:
            self.detached = await self.follower.run()
        finally:
            self.ended.set()

    async def look(self) -> bool:
        with trio.fail_after(WAIT_S):
            return await self.follower.look()


@asynccontextmanager
async def following(
    folder: Path, *, starts: bool = True, nap: Nap | None = None
) -> AsyncIterator[Bench]:
    with Application(folder / "app.db") as application:
        application.sql(
            "pragma journal_mode=wal", "pragma synchronous=normal", "create table t(x, y)"
        )
        # With a nap it never rests, and sleeps for ever unless it is woken.
        slow = {"nap": lambda _: nap.sleep(NEVER_S), "active_s": NEVER_S} if nap else {}
        capture = Capture(attach(folder / "app.db"), **slow)  # type: ignore[arg-type]
        capture.adopt()
        journal = born(folder / "data", Model())
        wake = open_wake()
        waker = Waker(wake)
        bench = Bench(application, capture)
        limiter = trio.CapacityLimiter(2)
        pump = Pump(
            framer=loaded(journal)[1],
            journalist=Journalist(journal),
            sync_wal=None,
            on_final=lambda _: None,
            limiter=limiter,
        )
        bench.follower = Follower(
            key="app",
            capture=capture,
            pump=pump,
            waker=waker,
            limiter=limiter,
            bridge=bench.bridge,
            file_lock=trio.Lock(),
            sink=bench.sink,
            nap=nap,
        )
        waker.wake.watch("app", folder / "app.db")
        try:
            async with trio.open_nursery() as nursery:
                if starts:
                    nursery.start_soon(bench.run)
                yield bench
                bench.follower.stop()
        finally:
            capture.close()
            wake.close()
            journal.close()


async def test_a_look_at_rest_captures_what_is_committed(tmp_path: Path) -> None:
    """Nothing else wakes it here, so the commit is there because of the look."""
    async with following(tmp_path) as bench:
        assert await bench.look()
        for number in range(1, 4):
            bench.insert()
            assert await bench.look()
            assert bench.commits == number


async def test_a_look_cuts_the_threads_nap_short(tmp_path: Path) -> None:
    """Who waits for a commit of a database in use waits for the thread, not for its pauses."""
    nap = Nap()
    async with following(tmp_path, nap=nap) as bench:
        for number in range(1, 4):
            bench.insert()
            assert await bench.look()
            assert bench.commits == number


def test_a_nap_that_was_ended_before_it_began_is_none() -> None:
    """Once; the next one is slept."""
    nap = Nap()
    nap.end()
    nap.end()
    began = time.monotonic()
    assert nap.sleep(NEVER_S)
    assert time.monotonic() - began < NEVER_S
    assert not nap.sleep(0.001)
    assert time.monotonic() - began >= 0.001
    nap.is_brief = True
    assert nap.sleep(NEVER_S)
    assert time.monotonic() - began < NEVER_S


async def test_a_look_without_news_ends_too(tmp_path: Path) -> None:
    """Also for several who look at once, and at a follower that rests without an alarm."""
    async with following(tmp_path) as bench:
        rests = trio.Event()
        really_wait = bench.follower._wait

        async def note_rest(seconds_max: float | None) -> None:
            if seconds_max is None:
                rests.set()
            await really_wait(seconds_max)

        bench.follower._wait = note_rest  # type: ignore[method-assign]
        with trio.fail_after(WAIT_S):
            await rests.wait()
        answers: list[bool] = []

        async def look() -> None:
            answers.append(await bench.look())

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(look)
        assert answers == [True] * 5
        assert bench.batches == 0


async def test_a_look_during_a_poll_waits_for_the_next_one(tmp_path: Path) -> None:
    """The poll that runs may have read the header before the commit, so it does not count."""
    async with following(tmp_path) as bench:
        bench.hold = threading.Event()
        bench.insert()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.look)
            assert await trio.to_thread.run_sync(bench.held.wait, WAIT_S)
            bench.insert()
            seen: list[int] = []

            async def look() -> None:
                assert await bench.look()
                seen.append(bench.commits)

            nursery.start_soon(look)
            await wait_all_tasks_blocked()
            assert seen == []
            bench.hold.set()
        assert seen == [2]


async def test_a_look_outlasts_a_full_queue(tmp_path: Path) -> None:
    """A poll that stopped for want of room did not reach the tip: the next one counts."""
    async with following(tmp_path) as bench:
        # More than one block of the log, so that a refusal stops short of the tip.
        bench.insert(120, size=300_000)
        bench.refusals = 2
        assert await bench.look()
        assert bench.batches > 2
        assert bench.commits == 120


async def test_commits_at_full_speed_are_covered_by_each_look(tmp_path: Path) -> None:
    """While an application commits without pause, a look returns with all that it had told."""
    async with following(tmp_path) as bench:
        for number in range(1, 9):
            bench.application.start(
                "for n in range(200): c.execute('insert into t values(?, 1)', (n,))"
            )
            while not bench.application.is_finished():
                assert await bench.look()
            bench.application.finish()
            assert await bench.look()
            assert bench.commits == 200 * number


async def test_a_look_says_when_the_follower_stops(tmp_path: Path) -> None:
    """Nobody waits for ever, whether the stop comes before or during the look."""
    async with following(tmp_path, starts=False) as bench:
        answers: list[bool] = []

        async def look() -> None:
            answers.append(await bench.look())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await wait_all_tasks_blocked()
            bench.follower.stop()
            bench.follower.end()
        assert answers == [False]
        assert not await bench.look()


async def test_a_stop_ends_it_at_rest_and_keeps_the_file(tmp_path: Path) -> None:
    """It returns nothing: the file was not let go."""
    async with following(tmp_path) as bench:
        assert await bench.look()
        bench.follower.stop()
        with trio.fail_after(WAIT_S):
            await bench.ended.wait()
        assert bench.detached is None
        assert bench.capture.database.is_open


async def test_a_replaced_file_ends_it_with_the_sentence(tmp_path: Path) -> None:
    """Whoever found out says why."""
    with pytest.RaisesGroup(pytest.RaisesExc(DatabaseReplaced, match="another file")):
        async with following(tmp_path) as bench:
            assert await bench.look()
            bench.follower.give_up("the path leads to another file.")
            with trio.fail_after(WAIT_S):
                await bench.ended.wait()


async def test_a_file_that_nobody_uses_is_let_go_as_by_the_last_close(tmp_path: Path) -> None:
    """The log is gone and everything is in the file; as long as somebody uses it, it stays."""
    async with following(tmp_path) as bench:
        bench.insert(3)
        bench.follower.request_detach()
        assert await bench.look()
        assert not bench.ended.is_set()
        bench.application.close()
        with trio.fail_after(WAIT_S):
            while not bench.ended.is_set():
                # As the supervisor does; a file that was just written is not let go yet.
                bench.follower.request_detach()
                with trio.move_on_after(0.02):
                    await bench.ended.wait()
        assert bench.detached is not None
        assert bench.commits == 3
        assert not (tmp_path / "app.db-wal").exists()
        assert bench.detached.size == (tmp_path / "app.db").stat().st_size
    with sqlite3.connect(tmp_path / "app.db") as connection:
        assert connection.execute("select count(*) from t").fetchall() == [(3,)]
    connection.close()
