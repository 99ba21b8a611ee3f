"""Effects become acts: nothing behind a `Persist` before it is durable, an `Orphan` alone."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from basenet.daemon.cluster import perform
from basenet.daemon.cluster.frames import Frames
from basenet.daemon.cluster.perform import Acts, Performer
from basenet.daemon.cluster.ports import Peers
from basenet.daemon.journalist import Journalist
from basenet.engine.effects import (
    Effect,
    Fence,
    Finalize,
    Judge,
    Orphan,
    OwnFrame,
    Persist,
    ReadReady,
    Report,
    Send,
    SendFrames,
    ServeFinal,
)
from basenet.errors import CorruptionError, UnavailableError
from basenet.journal.journal import Journal
from basenet.journal.records import Step
from basenet.units import Epoch, FrameHash, LocalNumber, PublicKeyBytes, Seq, View
from basenet.wire.frame import Frame, decode_frame
from basenet.wire.message import SyncRequest
from tests.fakes.branching import SHARD, Branching, ballot_of, certify

TO = (PublicKeyBytes(b"p" * 32),)
LINEAGE = Branching().chain.lineage


class World:
    """Journalist, peers and shard in one: writes down what is asked, in its order."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.steps: list[Step] = []
        self.disk = trio.Event()
        self.disk.set()
        self.orphan_may_end = trio.Event()
        self.failure: Exception | None = None
        self.patience_s = 0.0
        self.coming: set[tuple[PublicKeyBytes, FrameHash]] = set()
        frames = Frames(SHARD, cast("Journalist", self))
        self.performer = Performer(
            shard=SHARD,
            lineage=LINEAGE,
            journalist=cast("Journalist", self),
            peers=cast("Peers", self),
            frames=frames,
            acts=cast("Acts", self),
        )

    async def keep(
        self, step: Step, sync: Callable[[], None] | None, patience_s: float = 0.0
    ) -> None:
        self.patience_s = patience_s
        self.done.append("keep")
        await self.disk.wait()
        if self.failure is not None:
            raise self.failure
        if sync is not None:
            sync()
        self.steps.append(step)
        self.done.append("kept")

    def kept(self, step: Step) -> None:
        assert step is self.steps[-1]

    def send(self, _to: object, _shard: object, _lineage: object, message: SyncRequest) -> None:
        self.done.append(f"send {message.above_height}")

    def send_frames(
        self, _to: object, _shard: object, _lineage: object, records: Mapping[FrameHash, bytes]
    ) -> None:
        frames = [cast("Frame", decode_frame(record)) for record in records.values()]
        assert [frame.head.hash for frame in frames] == list(records)
        self.done.append(f"frames {[frame.head.seq for frame in frames]}")

    def is_coming(self, to: PublicKeyBytes, digest: FrameHash) -> bool:
        return (to, digest) in self.coming

    async def orphan(self, effect: Orphan) -> None:
        self.done.append(f"orphan {effect.kept_height}")
        await self.orphan_may_end.wait()
        self.done.append("orphaned")

    def hurry(self) -> None:
        self.done.append("hurry")

    def __getattr__(self, name: str) -> Callable[[Any], None]:
        def act(_effect: object) -> None:
            self.done.append(name)

        return act


def send(number: int) -> Send:
    return Send(to=TO, message=SyncRequest(epoch=Epoch(1), above_height=Seq(number)))


def orphan(height: int) -> Orphan:
    return Orphan(heads=(), kept_height=Seq(height), certificate=None)


def own(frame: Frame, number: int) -> Persist:
    local = LocalNumber(number)
    return Persist(own=(OwnFrame(frame=frame, local_first=local, local_last=local),))


async def until_idle(world: World) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.performer.run)
        await world.performer.idle()
        nursery.cancel_scope.cancel()


async def test_what_stands_in_front_waits_for_nothing_and_the_rest_shares_one_transaction() -> None:
    """The order is that of the list."""
    world = World()
    world.performer.put([send(1), Persist(), send(2)])
    world.performer.put([Persist(), send(3)])
    await until_idle(world)
    assert world.done == ["send 1", "keep", "kept", "send 2", "send 3"]
    assert world.performer.persisted == 1


async def test_nothing_is_said_before_it_is_durable(autojump_clock: trio.testing.MockClock) -> None:
    """However long the disk takes; what comes meanwhile shares the next transaction."""
    del autojump_clock
    world = World()
    world.disk = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.performer.run)
        world.performer.put([Persist(), send(1)])
        await wait_all_tasks_blocked()
        world.performer.put([Persist(), send(2)])
        world.performer.put([Persist(), send(3)])
        await trio.sleep(60)
        assert world.done == ["keep"]
        world.disk.set()
        await world.performer.idle()
        nursery.cancel_scope.cancel()
    assert world.done == ["keep", "kept", "send 1", "keep", "kept", "send 2", "send 3"]


async def test_whoever_waits_for_what_was_put_waits_for_nothing_else() -> None:
    """Else a term would not end, or only after a time, while peers send steadily."""
    world = World()
    rounds: list[int] = []

    def go_on() -> None:
        if len(rounds) < 100:
            rounds.append(len(rounds))
            world.performer.put([Persist(), send(rounds[-1])])

    world.performer.on_turn = go_on
    async with trio.open_nursery() as nursery:
        world.performer.put([Persist(), send(1000)])
        nursery.start_soon(world.performer.run)
        await world.performer.idle()
        assert "send 1000" in world.done
        assert not world.performer.is_idle
        assert len(rounds) < 50
        nursery.cancel_scope.cancel()


async def test_an_orphan_stands_alone_and_before_what_follows_from_it() -> None:
    """And nothing may be sealed until it is done."""
    world = World()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.performer.run)
        world.performer.put([Persist(), send(1), orphan(4), Persist(), send(2)])
        await wait_all_tasks_blocked()
        assert world.done == ["keep", "kept", "send 1", "orphan 4"]
        assert world.performer.is_undoing
        world.orphan_may_end.set()
        await world.performer.idle()
        nursery.cancel_scope.cancel()
    assert world.done[4:] == ["orphaned", "keep", "kept", "send 2"]
    assert not world.performer.is_undoing


async def test_a_transaction_holds_what_all_its_steps_say() -> None:
    """Frames in order, the last place and cursor; inside a run the cursor stays behind."""
    branching = Branching()
    chain = branching.chain
    one = chain.random_commit()
    pieces = chain.commit({pgno: chain.page() for pgno in range(1, 21)}, run=2)
    world = World()
    synced: list[int] = []
    world.performer.put([own(one, 1)], cursor=b"one", sync=lambda: synced.append(1))
    world.performer.put([own(pieces[0], 2)], sync=lambda: synced.append(2))
    world.performer.put([SendFrames(to=TO, heads=(one.head, pieces[0].head))])
    await until_idle(world)
    (step,) = world.steps
    assert [row.head.seq for row in step.frames] == [2, 3]
    assert step.place == (Seq(3), pieces[0].head.hash)
    assert (step.cursor, step.local_last, synced) == (b"one", 2, [2])
    assert world.done[-1] == "frames [2, 3]"


async def test_frames_that_are_on_their_way_are_not_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who waits for large frames asks for them several times a second.

    Found with 10 MB transactions on a loaded machine: each question was answered with all that the
    window held, up to 512 frames read from the journal, and the cluster came to a standstill.
    """
    branching = Branching()
    pages = branching.chain.page
    heads = []
    world = World()
    for number in range(1, 4):
        frame = branching.chain.commit({pgno: pages() for pgno in range(1, 9)})[0]
        world.performer.put([own(frame, number)])
        heads.append(frame.head)
    await until_idle(world)
    world.coming = {(key, heads[0].hash) for key in TO}
    world.performer.put([SendFrames(to=TO, heads=tuple(heads))])
    await until_idle(world)
    assert world.done[-1] == f"frames {[heads[1].seq, heads[2].seq]}"
    world.coming = {(key, head.hash) for key in TO for head in heads}
    count = len(world.done)
    world.performer.put([SendFrames(to=TO, heads=tuple(heads))])
    await until_idle(world)
    assert len(world.done) == count
    world.coming.clear()
    monkeypatch.setattr(perform, "_SENT_BYTES_MAX", heads[0].payload_len + heads[1].payload_len)
    world.performer.put([SendFrames(to=TO, heads=tuple(heads))])
    await until_idle(world)
    assert world.done[-1] == f"frames {[heads[0].seq, heads[1].seq]}"


async def test_every_effect_has_its_act() -> None:
    """In the order listed, but for the question, which waits for nothing."""
    effects: list[Effect] = [
        Finalize(heads=(), certificate=None, is_own=False),
        Judge(epoch=Epoch(1), view=View(0), heads=()),
        Fence(epoch=Epoch(1), view=View(0)),
        ServeFinal(to=TO[0], above_height=Seq(0)),
        ReadReady(nonce=b"n" * 16, height=None),
        Report(what="x", peer=None),
    ]
    world = World()
    world.performer.put([])
    world.performer.put(effects)
    await until_idle(world)
    assert world.done == [
        "judge",
        "show_final",
        "finalize",
        "fence",
        "serve_final",
        "read_ready",
        "report",
    ]


async def test_a_failed_keep_ends_it_and_nothing_behind_it_is_done() -> None:
    """The shard starts again from the journal."""
    world = World()
    world.failure = UnavailableError("the journal is being closed.")
    world.performer.put([Persist(), send(1)])
    with pytest.raises(UnavailableError):
        await world.performer.run()
    assert world.done == ["keep"]


async def test_peers_wait_while_too_much_is_not_durable() -> None:
    """Memory is bounded by what may wait, not by what peers can send."""
    chain = Branching().chain
    chain.rng.seed(5)
    chain.page_size = 65536
    frame = chain.random_commit()
    big = Frame(head=frame.head, payload=frame.payload)
    world = World()
    world.disk = trio.Event()
    count = 64 * 2**20 // frame.head.payload_len + 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.performer.run)
        world.performer.put([Persist(frames=(big,) * count)])
        has_room = trio.Event()

        async def ask() -> None:
            await world.performer.room()
            has_room.set()

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert not has_room.is_set()
        world.disk.set()
        await has_room.wait()
        await world.performer.room()
        nursery.cancel_scope.cancel()


async def test_frames_come_from_memory_from_the_branch_and_from_the_log(tmp_path: Path) -> None:
    """One that is nowhere is damage."""
    branching = Branching()
    journal = Journal(tmp_path)
    try:
        journal.begin_replica(**branching.birth())
        rows = branching.others(3)
        journal.keep([branching.step(rows)])
        frames = Frames(SHARD, Journalist(journal))
        heads = [row.head for row in rows]
        assert await frames.records(heads) == [row.record for row in rows]
        journal.settle([branching.settled(rows[:2])])
        lost = branching.fork().others(1)
        frames.add_record(lost[0].head.hash, lost[0].record)
        records = await frames.records([*heads, lost[0].head])
        assert records == [row.record for row in [*rows, *lost]]
        get = frames.getter(journal, [lost[0].head])
        assert get(lost[0].head.hash).head == lost[0].head
        assert get(heads[2].hash).head == heads[2]
        with pytest.raises(CorruptionError, match="lacks a frame"):
            await frames.records([branching.fork().others(2)[1].head])
        with pytest.raises(CorruptionError, match="lacks a frame"):
            get(heads[0].hash)  # settled: the getter serves what lies above
    finally:
        journal.close()


def test_what_is_held_in_memory_is_bounded() -> None:
    """The oldest go first; adding one again changes nothing."""
    frames = Frames(SHARD, cast("Journalist", None))
    chain = Branching().chain
    kept = [chain.random_commit() for _ in range(3)]
    for number, frame in enumerate(kept):
        frames.add_record(frame.head.hash, bytes(7 * 2**20))
        frames.add_record(frame.head.hash, bytes(7 * 2**20))
        held = [one for one in kept if one.head.hash in frames._held]
        assert held == kept[max(0, number - 1) : number + 1]
    assert frames._bytes == 14 * 2**20


# What waits for nothing, and what waits for company.


def proven(*frames: Frame) -> Finalize:
    """These are final by a certificate for the last of them."""
    heads = tuple(frame.head for frame in frames)
    return Finalize(heads=heads, certificate=certify(heads[-1]), is_own=True)


def decision() -> Persist:
    """A step that has decided something, and keeps no frame."""
    story = Branching()
    return Persist(ballot=ballot_of(story.config, story.chain.tip.head))


@asynccontextmanager
async def blocked(world: World) -> AsyncIterator[None]:
    """Run the performer for the body; the disk is asked and does not answer yet."""
    world.disk = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.performer.run)
        yield
        world.disk.set()
        await world.performer.idle()
        nursery.cancel_scope.cancel()


async def test_what_a_certificate_proves_is_shown_and_settled_beside_its_transaction() -> None:
    """Its voters have it; only the message about it waits. Then nothing else is in a hurry."""
    frame = Branching().chain.random_commit()
    world = World()
    async with blocked(world):
        world.performer.put([decision(), proven(frame), send(1)])
        assert world.done == ["show_final"]
        await wait_all_tasks_blocked()
        assert world.done == ["show_final", "finalize", "keep"]
        assert not world.patience_s
    assert world.done == ["show_final", "finalize", "keep", "kept", "send 1"]


async def test_a_decision_that_nobody_waits_for_is_patient_until_somebody_comes() -> None:
    """It shares the transaction of what it settles."""
    frame = Branching().chain.random_commit()
    world = World()
    async with blocked(world):
        world.performer.put([decision(), proven(frame)])
        await wait_all_tasks_blocked()
        assert world.patience_s
        assert world.done == ["show_final", "finalize", "keep"]
        world.performer.put([send(1)])
        assert world.done[-1] == "hurry"


def make_undecided(kind: str, frame: Frame) -> list[Effect]:
    """What may stand in front of a proven `Finalize` of ``frame``, and speaks against showing."""
    match kind:
        case "own frame":
            return [own(frame, 1)]
        case "vote":
            return [decision()]
        case "unproven":
            return [Persist(), Finalize(heads=(frame.head,), certificate=None, is_own=True)]
        case _:
            return [orphan(1)]


@pytest.mark.parametrize("kind", ["own frame", "vote", "unproven", "orphan"])
@pytest.mark.parametrize("is_begun", [True, False])
async def test_nothing_is_shown_before_what_it_could_rest_on(kind: str, *, is_begun: bool) -> None:
    """Whether that waits or is being synced."""
    frame = Branching().chain.random_commit()
    world = World()
    async with blocked(world):
        world.performer.put(make_undecided(kind, frame))
        if is_begun:
            await wait_all_tasks_blocked()
        world.performer.put([decision(), proven(frame), send(1)])
        await wait_all_tasks_blocked()
        assert "show_final" not in world.done
        world.orphan_may_end.set()
    assert world.done.count("show_final") == world.done.count("finalize")
    assert world.done[-3:] == ["show_final", "finalize", "send 1"] or kind == "orphan"
    assert "show_final" in world.done


async def test_own_frames_above_it_do_not_hold_it_up() -> None:
    """The next commit is on its way to the disk while the last one becomes final."""
    chain = Branching().chain
    one, two = chain.random_commit(), chain.random_commit()
    world = World()
    async with blocked(world):
        world.performer.put([own(two, 2)])
        await wait_all_tasks_blocked()
        world.performer.put([decision(), proven(one), send(1)])
        assert world.done[-1] == "show_final"
    assert world.done[-4:] == ["finalize", "keep", "kept", "send 1"]


async def test_an_epoch_does_not_end_early() -> None:
    """Whatever proves a CONFIG final, its effects come in their order."""
    story = Branching()
    (row,) = story.new_config()
    frame = cast("Frame", decode_frame(row.record))
    world = World()
    async with blocked(world):
        world.performer.put([decision(), proven(frame), send(1)])
        await wait_all_tasks_blocked()
        assert world.done == ["keep"]
    assert world.done == ["keep", "kept", "show_final", "finalize", "send 1"]


async def test_a_question_waits_for_nothing_but_its_frames() -> None:
    """It is asked while they are being synced; and in its order where something is undone."""
    frame = Branching().chain.random_commit()
    question = Judge(epoch=Epoch(1), view=View(0), heads=(frame.head,))
    world = World()
    async with blocked(world):
        world.performer.put([Persist(frames=(frame,), ballot=decision().ballot), send(1)])
        await wait_all_tasks_blocked()
        world.performer.put([question])
        assert world.done == ["keep", "judge"]
        world.performer.put([orphan(1), question])
        assert world.done == ["keep", "judge"]
        world.orphan_may_end.set()
    assert world.done[-1] == "judge"


async def test_frames_of_others_wait_for_the_vote_that_speaks_of_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One transaction keeps both; without a vote they wait a moment, and not beyond a megabyte."""
    del autojump_clock
    chain = Branching().chain
    frame = chain.random_commit()
    world = World()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.performer.run)
        world.performer.put([Persist(frames=(frame,))])
        world.performer.put([decision(), send(1)])
        await world.performer.idle()
        assert world.performer.persisted == 1
        (step,) = world.steps
        assert (len(step.frames), step.ballot is None) == (1, False)
        began = trio.current_time()
        world.performer.put([Persist(frames=(frame,))])
        await world.performer.idle()
        assert trio.current_time() > began
        began = trio.current_time()
        count = 2**20 // frame.head.payload_len + 1
        world.performer.put([Persist(frames=(frame,) * count)])
        await world.performer.idle()
        assert trio.current_time() == began
        nursery.cancel_scope.cancel()


async def test_own_commits_that_wait_share_the_transaction_that_is_about_to_be_made() -> None:
    """They are asked for when one is durable, before the next one is taken."""
    chain = Branching().chain
    world = World()
    waiting = [own(chain.random_commit(), number) for number in (1, 2)]

    def seal() -> None:
        if waiting and not world.performer.is_persisting:
            world.performer.put([waiting.pop(0)])

    world.performer.on_turn = seal
    async with blocked(world):
        world.performer.put([decision(), send(1)])
        await wait_all_tasks_blocked()
        world.performer.put([decision(), send(2)])
    first, second = world.steps
    assert [row.head.seq for row in first.frames] == [2]
    assert [row.head.seq for row in second.frames] == [3]
    assert second.ballot is not None
