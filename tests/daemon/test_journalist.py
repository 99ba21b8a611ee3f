"""The one writer of the journal: what it promises to those who wait for it."""

import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path

import apsw
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from basenet.daemon.journalist import Journalist
from basenet.errors import CorruptionError, UnavailableError
from basenet.journal.journal import Journal, JournalBroken
from basenet.journal.records import Batch, Settled, Step
from basenet.units import ShardId
from tests.daemon.cluster.nodes import eventually
from tests.daemon.model import SHARD, Model, born, give_birth, loaded
from tests.fakes.branching import Branching
from tests.journal.faulty_disk import LOG, FaultyDisk, faulty_disk
from tests.journal.replicas import check_replica, load

WAIT_S = 10


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    with faulty_disk() as disk:
        yield disk


@asynccontextmanager
async def writing(journal: Journal) -> AsyncIterator[Journalist]:
    """Run a journalist for the body, then close the journal."""
    journalist = Journalist(journal)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journalist.run)
            yield journalist
            nursery.cancel_scope.cancel()
    finally:
        journal.close()


def log_syncs(disk: FaultyDisk) -> int:
    return sum(act == "sync" and name.endswith(LOG) for act, name in disk.trace)


async def shielded(ask: Callable[[Journalist], Awaitable[None]], journalist: Journalist) -> None:
    """Hear the answer even though the journalist's end cancels everything around."""
    with trio.CancelScope(shield=True):
        await ask(journalist)


class Gate:
    """Holds the writing thread until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(WAIT_S)

    async def when_reached(self) -> None:
        assert await trio.to_thread.run_sync(self.reached.wait, WAIT_S)


async def test_batches_that_come_during_a_sync_share_the_next(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    """Twelve shards' batches and a gate: two transactions, so two syncs of the journal's log."""
    shards = [ShardId(f"s{number}") for number in range(12)]
    journal, gate = Journal(tmp_path), Gate()
    models = {shard: Model(seed=number) for number, shard in enumerate(shards)}
    for shard, model in models.items():
        give_birth(journal, model, shard=shard)
    batches = [loaded(journal, shard)[1].frame([models[shard].commit()]) for shard in shards]
    disk.trace.clear()
    async with writing(journal) as journalist:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journalist.persist, batches[0], gate)
            await gate.when_reached()
            for batch in batches[1:]:
                nursery.start_soon(journalist.persist, batch, None)
            await wait_all_tasks_blocked()
            assert log_syncs(disk) == 0
            gate.opened.set()
        assert log_syncs(disk) == 2
    journal = Journal(tmp_path)
    assert {loaded(journal, shard)[0].tip.seq for shard in shards} == {2}
    journal.close()


async def test_shards_with_and_without_peers_share_a_sync(tmp_path: Path, disk: FaultyDisk) -> None:
    """A batch, steps and what settles: one transaction, and each log is synced before it."""
    alone = ShardId("alone")
    journal, gate, synced = Journal(tmp_path), Gate(), list[str]()
    model = Model()
    give_birth(journal, model, shard=alone)
    batch = loaded(journal, alone)[1].frame([model.commit()])
    stories = [Branching(shard=ShardId(name)) for name in ("a", "b")]
    for story in stories:
        journal.begin_replica(**story.birth())
    rows = [story.own(2) for story in stories]
    before = journal.jcount

    def sync(name: str) -> Callable[[], None]:
        def act() -> None:
            assert journal.jcount == before
            synced.append(name)

        return act

    async with writing(journal) as journalist:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journalist.perform, lambda _: gate())
            await gate.when_reached()
            nursery.start_soon(journalist.keep, stories[0].step(rows[0]), sync("a"))
            nursery.start_soon(journalist.persist, batch, sync("alone"))
            nursery.start_soon(journalist.keep, stories[1].step(rows[1]), sync("b"))
            await wait_all_tasks_blocked()
            nursery.start_soon(journalist.settle, stories[0].settled(rows[0]))
            await wait_all_tasks_blocked()
            disk.trace.clear()
            gate.opened.set()
        assert log_syncs(disk) == 1
        assert journal.jcount == before + 1
        assert sorted(synced) == ["a", "alone", "b"]
        assert loaded(journal, alone)[0].tip.seq == 2
        assert check_replica(journal, ShardId("a")).tip.seq == 3
        assert len(check_replica(journal, ShardId("b")).heads) == 2


async def test_work_that_fails_fails_for_whoever_asked(tmp_path: Path) -> None:
    """A shard whose rows are damaged stops alone: the others' work of its turn is stored, once."""
    journal, gate, raised = Journal(tmp_path), Gate(), list[str]()
    stories = [Branching(shard=ShardId(name)) for name in ("a", "b")]
    for story in stories:
        journal.begin_replica(**story.birth())
    config = stories[0].new_config()
    journal.keep([stories[0].step(config)])
    connection = sqlite3.connect(journal.path)
    with connection:
        connection.execute("UPDATE branch SET crc = 0")
    connection.close()

    async def ask(journalist: Journalist) -> None:
        with pytest.raises(CorruptionError, match="reads back differently") as caught:
            await journalist.settle(stories[0].settled(config))
        raised.append(str(caught.value))

    async with writing(journal) as journalist:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journalist.perform, lambda _: gate())
            await gate.when_reached()
            nursery.start_soon(ask, journalist)
            nursery.start_soon(journalist.keep, stories[1].step(stories[1].own(1)), None)
            await wait_all_tasks_blocked()
            gate.opened.set()
        assert len(raised) == 1
        assert check_replica(journal, ShardId("b")).local_last == 1
        assert len(load(journal, ShardId("b")).heads) == 1


async def test_batches_of_one_shard_share_a_transaction_in_order(tmp_path: Path) -> None:
    """A pump that is ahead may hand over the next batch before the last one is durable."""
    model, gate = Model(), Gate()
    journal = born(tmp_path, model)
    _, framer = loaded(journal)
    batches = [framer.frame([model.commit()]) for _ in range(5)]
    async with writing(journal) as journalist:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journalist.perform, lambda _: gate())
            await gate.when_reached()
            for batch in batches:
                nursery.start_soon(journalist.persist, batch, None)
                await wait_all_tasks_blocked()
            gate.opened.set()
        assert loaded(journal)[0].tip.seq == 6


async def test_the_applications_log_is_synced_before_the_journal(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    """A frame never counts while the commit behind it could still be lost (P7)."""
    model = Model()
    journal = born(tmp_path, model)
    _, framer = loaded(journal)
    disk.trace.clear()
    seen: list[tuple[int, int]] = []

    def sync() -> None:
        seen.append((len(disk.trace), len(journal.frame_sizes(SHARD, 1))))

    async with writing(journal) as journalist:
        await journalist.persist(framer.frame([model.commit()]), sync)
        assert [size for size in seen if size[1]] == []
        assert len(seen) == 1
        assert [act for act, _ in disk.trace[: seen[0][0]] if act != "read"] == []
        assert len(journal.frame_sizes(SHARD, 1)) == 1


async def test_a_full_disk_is_waited_for_and_then_the_batch_is_stored(
    tmp_path: Path, disk: FaultyDisk, autojump_clock: trio.testing.MockClock
) -> None:
    """Whoever waits notices nothing but the time; meanwhile `error` says why, and later not."""
    assert autojump_clock.autojump_threshold == 0
    model, syncs = Model(), []
    journal = born(tmp_path, model)
    _, framer = loaded(journal)
    errors: list[str | None] = []

    class Full(apsw.FullError):
        def __init__(self, message: str) -> None:
            super().__init__(message)
            errors.append(journalist.error)
            if len(errors) == 3:
                disk.heal()

    async with writing(journal) as journalist:
        disk.fail("write", LOG, Full)
        started = trio.current_time()
        await journalist.persist(framer.frame([model.commit()]), lambda: syncs.append(1))
        assert len(errors) == 3
        assert errors[0] is None
        assert all("full" in str(error) for error in errors[1:])
        assert journalist.error is None
        assert trio.current_time() - started >= 3
        assert len(syncs) == 1
        assert loaded(journal)[0].tip.seq == 2


async def test_a_log_that_cannot_be_synced_ends_the_journalist(tmp_path: Path) -> None:
    """After a failed fsync nothing is known (P32): nobody is told that a batch is durable."""
    model, told = Model(), []
    journal = born(tmp_path, model)
    _, framer = loaded(journal)

    def sync() -> None:
        raise OSError(5, "Input/output error")

    async def hand_over(journalist: Journalist) -> None:
        with pytest.raises(UnavailableError, match="is being closed"):
            await journalist.persist(framer.frame([model.commit()]), sync)
        told.append("refused")

    with pytest.RaisesGroup(
        pytest.RaisesExc(JournalBroken, match="could not be synced"), flatten_subgroups=True
    ):
        async with writing(journal) as journalist, trio.open_nursery() as nursery:
            nursery.start_soon(shielded, hand_over, journalist)
    assert told == ["refused"]
    journal = Journal(tmp_path)
    assert loaded(journal)[0].tip.seq == 1
    journal.close()


async def test_a_journal_that_fails_ends_the_journalist(tmp_path: Path, disk: FaultyDisk) -> None:
    """An I/O error is no full disk: it is not tried again."""
    model, told = Model(), []
    journal = born(tmp_path, model)
    _, framer = loaded(journal)
    batch = framer.frame([model.commit()])

    async def hand_over(journalist: Journalist) -> None:
        with pytest.raises(UnavailableError, match="is being closed"):
            await journalist.persist(batch, None)
        told.append("refused")

    disk.fail("sync", LOG, apsw.IOError)
    with pytest.RaisesGroup(JournalBroken, flatten_subgroups=True):
        async with writing(journal) as journalist, trio.open_nursery() as nursery:
            nursery.start_soon(shielded, hand_over, journalist)
    assert told == ["refused"]


async def test_an_act_runs_behind_the_batches_of_its_turn(tmp_path: Path) -> None:
    """Its result comes back, and it sees what was handed over before it."""
    model, gate = Model(), Gate()
    journal = born(tmp_path, model)
    _, framer = loaded(journal)
    results: list[int] = []

    async def ask(journalist: Journalist) -> None:
        results.append(await journalist.perform(lambda journal: len(journal.frame_sizes(SHARD, 0))))

    async with writing(journal) as journalist, trio.open_nursery() as nursery:
        nursery.start_soon(journalist.perform, lambda _: gate())
        await gate.when_reached()
        nursery.start_soon(journalist.persist, framer.frame([model.commit()]), None)
        nursery.start_soon(ask, journalist)
        await wait_all_tasks_blocked()
        gate.opened.set()
    assert results == [2]


async def test_an_act_on_a_full_disk_is_repeated_alone(
    tmp_path: Path, disk: FaultyDisk, autojump_clock: trio.testing.MockClock
) -> None:
    """What was done before it in the same turn is not done twice."""
    assert autojump_clock.autojump_threshold == 0
    journal, gate = born(tmp_path, Model()), Gate()
    calls: list[str] = []

    class Full(apsw.FullError):
        def __init__(self, message: str) -> None:
            super().__init__(message)
            disk.heal()

    def act(name: str) -> Callable[[Journal], None]:
        def perform(journal: Journal) -> None:
            calls.append(name)
            if name == "second":
                journal.set_broken(SHARD, 1)

        return perform

    async with writing(journal) as journalist:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journalist.perform, lambda _: gate())
            await gate.when_reached()
            for name in ("first", "second"):
                nursery.start_soon(journalist.perform, act(name))
                await wait_all_tasks_blocked()
            disk.fail("write", LOG, Full)
            gate.opened.set()
        assert calls == ["first", "second", "second"]
        assert loaded(journal)[0].broken_seq == 1


async def test_a_question_is_answered_while_the_writer_is_busy(tmp_path: Path) -> None:
    """Reading has a thread of its own: a slow disk does not hold `status` up."""
    journal, gate = born(tmp_path, Model()), Gate()
    async with writing(journal) as journalist, trio.open_nursery() as nursery:
        nursery.start_soon(journalist.perform, lambda _: gate())
        await gate.when_reached()
        with trio.fail_after(WAIT_S):
            assert await journalist.read(lambda journal: journal.first_seq(SHARD)) == 1
        gate.opened.set()


async def test_an_act_that_fails_fails_for_whoever_asked(tmp_path: Path) -> None:
    """A shard whose rows are damaged stops alone; the batches of its turn are stored."""
    model, gate = Model(), Gate()
    journal = born(tmp_path, model)
    _, framer = loaded(journal)
    raised: list[str] = []

    def damaged(_: Journal) -> None:
        raise CorruptionError("these rows are damaged.")

    async def ask(journalist: Journalist) -> None:
        with pytest.raises(CorruptionError, match="rows are damaged") as caught:
            await journalist.perform(damaged)
        raised.append(str(caught.value))

    async with writing(journal) as journalist:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journalist.perform, lambda _: gate())
            await gate.when_reached()
            nursery.start_soon(ask, journalist)
            nursery.start_soon(journalist.persist, framer.frame([model.commit()]), None)
            await wait_all_tasks_blocked()
            gate.opened.set()
        assert raised == ["these rows are damaged."]
        assert await journalist.perform(lambda journal: len(journal.frame_sizes(SHARD, 0))) == 2


async def test_what_was_withdrawn_before_its_turn_is_not_written(tmp_path: Path) -> None:
    """A session that ends while the disk is full may close its file at once."""
    model, gate = Model(), Gate()
    journal = born(tmp_path, model)
    _, framer = loaded(journal)
    syncs: list[int] = []
    async with writing(journal) as journalist:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journalist.perform, lambda _: gate())
            await gate.when_reached()
            async with trio.open_nursery() as session:
                batch = framer.frame([model.commit()])
                session.start_soon(journalist.persist, batch, lambda: syncs.append(1))
                await wait_all_tasks_blocked()
                session.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await wait_all_tasks_blocked()
                gate.opened.set()
        assert syncs == []
        assert loaded(journal)[0].tip.seq == 1


async def test_who_is_cancelled_during_the_sync_leaves_after_it(tmp_path: Path) -> None:
    """The descriptor that is being synced must not be closed under it."""
    model, gate = Model(), Gate()
    journal = born(tmp_path, model)
    _, framer = loaded(journal)
    async with writing(journal) as journalist:
        async with trio.open_nursery() as nursery:
            left = trio.Event()

            async def session() -> None:
                try:
                    await journalist.persist(framer.frame([model.commit()]), gate)
                finally:
                    left.set()

            nursery.start_soon(session)
            await gate.when_reached()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
                assert not left.is_set()
                gate.opened.set()
                await left.wait()
        assert loaded(journal)[0].tip.seq == 2


async def test_who_is_patient_shares_the_next_transaction(
    tmp_path: Path, disk: FaultyDisk, autojump_clock: trio.testing.MockClock
) -> None:
    """In the order of asking; whoever comes in between hurries them both."""
    story, journal = Branching(shard=SHARD), Journal(tmp_path)
    journal.begin_replica(**story.birth())
    first, second = story.own(1), story.own(1)
    async with writing(journal) as journalist:
        await journalist.keep(story.step(first), None)
        disk.trace.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journalist.settle, story.settled(first), 60.0)
            await trio.testing.wait_all_tasks_blocked()
            assert load(journal, SHARD).tip.seq == 1
            nursery.start_soon(journalist.keep, story.step(second), None)
        assert log_syncs(disk) == 1
        assert trio.current_time() < 60
        record = check_replica(journal, SHARD)
        assert (record.tip.seq, [head.seq for head in record.heads]) == (2, [3])
    del autojump_clock


async def test_patience_ends_by_itself_or_when_somebody_says_so(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """What nobody joins is written when its time is over, at the latest."""
    del autojump_clock
    story, journal = Branching(shard=SHARD), Journal(tmp_path)
    journal.begin_replica(**story.birth())
    async with writing(journal) as journalist:
        began = trio.current_time()
        await journalist.keep(story.step(story.own(1)), None, 30.0)
        assert trio.current_time() >= began + 30
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journalist.keep, story.step(story.own(1)), None, inf)
            await wait_all_tasks_blocked()
            journalist.hurry()
        assert len(load(journal, SHARD).heads) == 2


@pytest.mark.parametrize("is_together", [True, False])
async def test_nothing_settles_behind_a_step_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_together: bool
) -> None:
    """Else the log would know what the ballot does not; the next replica begins anew."""
    story, journal = Branching(shard=SHARD), Journal(tmp_path)
    journal.begin_replica(**story.birth())
    rows = story.own(1)
    journal.keep([story.step(rows)])
    write, is_broken = journal.write, True
    raised, gate = list[str](), Gate()

    def fail(works: Sequence[Batch | Step | Settled]) -> None:
        if is_broken and any(isinstance(work, Step) for work in works):
            raise CorruptionError("a step that cannot be kept")
        write(works)

    monkeypatch.setattr(journal, "write", fail)

    async def ask(act: Callable[[], Awaitable[None]]) -> None:
        with pytest.raises(CorruptionError, match="cannot be kept") as caught:
            await act()
        raised.append(str(caught.value))

    async with writing(journal) as journalist:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journalist.perform, lambda _: gate())
            await gate.when_reached()
            nursery.start_soon(ask, lambda: journalist.keep(story.step(story.own(1)), None))
            await wait_all_tasks_blocked()
            if not is_together:
                gate.opened.set()
                await eventually(lambda: bool(raised))
            nursery.start_soon(ask, lambda: journalist.settle(story.settled(rows)))
            await wait_all_tasks_blocked()
            gate.opened.set()
        assert len(raised) == 2
        assert load(journal, SHARD).tip.seq == 1
        is_broken = False
        journalist.begin_term(SHARD)
        await journalist.settle(story.settled(rows))
        assert load(journal, SHARD).tip.seq == 2


async def test_nothing_settles_behind_a_step_that_was_withdrawn(tmp_path: Path) -> None:
    """A term that ends gives up both, whichever of the two hears of it first."""
    story, journal, gate = Branching(shard=SHARD), Journal(tmp_path), Gate()
    journal.begin_replica(**story.birth())
    rows = story.own(1)
    journal.keep([story.step(rows)])
    async with writing(journal) as journalist:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journalist.perform, lambda _: gate())
            await gate.when_reached()
            async with trio.open_nursery() as term:
                term.start_soon(journalist.keep, story.step(story.own(1)), None)
                await wait_all_tasks_blocked()

                async def settle() -> None:
                    with pytest.raises(UnavailableError, match="given up"):
                        await journalist.settle(story.settled(rows))

                nursery.start_soon(settle)
                await wait_all_tasks_blocked()
                term.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await wait_all_tasks_blocked()
                gate.opened.set()
        assert load(journal, SHARD).tip.seq == 1
