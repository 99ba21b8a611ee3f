"""In a stream of commits the next proposal carries the certificate of the one before."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from basenet.daemon.cluster.rhythm import BEAT_S, Rhythm
from basenet.daemon.cluster.signing import RememberingSigner
from basenet.engine.effects import Effect, Finalize, OwnFrame, Persist, Send, SendFrames
from basenet.units import Epoch, LocalNumber, PublicKeyBytes, Seq, View
from basenet.wire.certificate import COMMIT, PREPARE, Certificate
from basenet.wire.frame import Frame
from basenet.wire.message import Certified, Mark, Message, Propose
from basenet.wire.signature import is_signed
from tests.daemon.cluster.test_perform import World, decision
from tests.fakes.branching import Branching, certify
from tests.fakes.chain import signer

ONE, TWO, LEARNER = (PublicKeyBytes(letter * 32) for letter in (b"p", b"q", b"r"))
OFTEN_S = BEAT_S / 2


class Teller(World):
    """Writes down whom a message went to."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[tuple[PublicKeyBytes, ...], Message]] = []

    def send(  # type: ignore[override]
        self, to: tuple[PublicKeyBytes, ...], _shard: object, _lineage: object, message: Message
    ) -> None:
        self.sent.append((to, message))
        self.done.append(type(message).__name__)

    def certified(self) -> list[tuple[tuple[PublicKeyBytes, ...], Seq]]:
        """Whom which height was shown as final, by a message of its own."""
        return [
            (to, message.certificate.height)
            for to, message in self.sent
            if isinstance(message, Certified)
        ]


@dataclass
class Leader:
    """Whose effects are those of a node that seals one commit after the other."""

    world: Teller
    story: Branching
    newest: Certificate | None = None
    count: int = 0

    def seal(self, *to: PublicKeyBytes) -> Frame:
        """A commit is sealed and proposed, with the newest certificate."""
        frame = self.story.chain.random_commit()
        self.count += 1
        local = LocalNumber(self.count)
        place = Mark(0, frame.head.seq, frame.head.hash)
        proposal = Propose(
            epoch=Epoch(1),
            view=View(0),
            prev_height=frame.head.prev_seq,
            prev_hash=frame.head.prev_hash,
            end_height=frame.head.seq,
            end_hash=frame.head.hash,
            anchor=place,
            justification=None,
            prepared=None,
            final=self.newest,
            signature=bytes(64),
        )
        peers = to or (ONE, TWO)
        self.world.performer.put(
            [
                Persist(own=(OwnFrame(frame=frame, local_first=local, local_last=local),)),
                SendFrames(to=peers, heads=(frame.head,)),
                Send(to=peers, message=proposal),
            ]
        )
        return frame

    def decide(self, frame: Frame, *to: PublicKeyBytes, phase: int = COMMIT) -> None:
        """A quorum has voted for ``frame``."""
        self.newest = certify(frame.head, phase)
        effects: list[Effect] = [decision()]
        if phase == COMMIT:
            effects.append(Finalize(heads=(frame.head,), certificate=self.newest, is_own=True))
        message = Certified(epoch=Epoch(1), certificate=self.newest)
        self.world.performer.put([*effects, Send(to=to or (ONE, TWO), message=message)])


@asynccontextmanager
async def leading() -> AsyncIterator[Leader]:
    world = Teller()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.performer.run)
        yield Leader(world, Branching())
        await world.performer.idle()
        nursery.cancel_scope.cancel()


async def stream(leader: Leader) -> Frame:
    """Two commits, one soon after the other; return the second, which is about to be final."""
    leader.decide(leader.seal())
    await trio.sleep(OFTEN_S)
    frame = leader.seal()
    await leader.world.performer.idle()
    leader.world.sent.clear()
    leader.world.done.clear()
    return frame


async def test_a_certificate_in_a_stream_goes_with_the_next_proposal(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is shown here at once; the decision shares the next transaction, and no message."""
    del autojump_clock
    async with leading() as leader:
        world, before = leader.world, leader.world.performer.persisted
        frame = await stream(leader)
        leader.decide(frame)
        assert world.done == ["show_final"]
        await trio.sleep(OFTEN_S)
        assert world.done == ["show_final"]
        following = leader.seal()
        await world.performer.idle()
        assert world.performer.persisted - before == 3
        assert world.certified() == []
        step = world.steps[-1]
        assert (len(step.frames), step.ballot is None) == (1, False)
        assert world.done == ["show_final", "finalize", "keep", "kept", "frames [4]", "Propose"]
        proposal = world.sent[-1][1]
        assert isinstance(proposal, Propose)
        assert proposal.final == certify(frame.head)
        assert proposal.end_hash == following.head.hash


async def test_a_decision_that_waits_for_company_holds_up_no_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What the next certificate proves is shown while both decisions are on their way to the disk.

    But not what an own frame up to it, which is not durable yet, could be a part of.
    """
    del autojump_clock
    async with leading() as leader:
        world = leader.world
        frame = await stream(leader)
        await trio.sleep(OFTEN_S)
        following = leader.seal()
        await world.performer.idle()
        leader.decide(frame)
        world.disk, world.done = trio.Event(), []
        last = leader.seal()
        await wait_all_tasks_blocked()
        assert world.done == ["finalize", "keep"]
        leader.decide(following)
        assert world.done[-1] == "show_final"
        leader.decide(last)
        assert world.done.count("show_final") == 1
        world.disk.set()
        await world.performer.idle()
        assert world.done.count("show_final") == 2


async def test_the_last_certificate_of_a_stream_goes_by_itself(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nothing came that could carry it."""
    del autojump_clock
    async with leading() as leader:
        frame = await stream(leader)
        began = trio.current_time()
        leader.decide(frame)
        await leader.world.performer.idle()
        assert leader.world.certified() == [((ONE, TWO), frame.head.seq)]
        assert 0 < trio.current_time() - began <= BEAT_S


async def test_what_a_lone_commit_led_to_waits_for_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Also the first after a stream."""
    del autojump_clock
    async with leading() as leader:
        await stream(leader)
        await trio.sleep(2 * BEAT_S)
        for _ in range(2):
            frame = leader.seal()
            began = trio.current_time()
            leader.decide(frame)
            await leader.world.performer.idle()
            assert leader.world.certified()[-1] == ((ONE, TWO), frame.head.seq)
            assert trio.current_time() == began
            await trio.sleep(2 * BEAT_S)


async def test_a_certificate_that_others_wait_for_is_not_held_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A lock of the Byzantine mode is the first half of a commit; votes follow it."""
    del autojump_clock
    async with leading() as leader:
        frame = await stream(leader)
        began = trio.current_time()
        leader.decide(frame, phase=PREPARE)
        await leader.world.performer.idle()
        assert trio.current_time() == began
        assert leader.world.certified() == [((ONE, TWO), frame.head.seq)]


async def test_only_those_whom_a_proposal_tells_as_much_are_left_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Who is no voter gets no proposal, and one that a proposal does not bring is sent."""
    del autojump_clock
    async with leading() as leader:
        world = leader.world
        frame = await stream(leader)
        leader.decide(frame, ONE, LEARNER)
        leader.seal()
        await world.performer.idle()
        assert world.certified() == [((LEARNER,), frame.head.seq)]

        world.sent.clear()
        following = leader.seal(ONE)
        leader.decide(following)
        leader.seal(ONE)
        await world.performer.idle()
        assert world.certified() == [((TWO,), following.head.seq)]

        world.sent.clear()
        final = leader.seal()
        leader.decide(final)
        newest, leader.newest = leader.newest, certify(following.head)
        leader.seal()  # with an older certificate
        assert newest is not None
        leader.newest = msgspec.structs.replace(newest, epoch=Epoch(2))
        leader.seal()  # with one of another epoch
        await world.performer.idle()
        assert world.certified() == [((ONE, TWO), final.head.seq)]


@pytest.mark.parametrize(
    ("times", "now", "is_stream"),
    [
        ([], 0.0, False),
        ([0.0], 0.0, False),
        ([0.0, OFTEN_S], OFTEN_S, True),
        ([0.0, OFTEN_S], OFTEN_S + 2 * BEAT_S, False),
        ([0.0, 2 * BEAT_S], 2 * BEAT_S, False),
        ([0.0, 2 * BEAT_S, 3 * BEAT_S - OFTEN_S], 3 * BEAT_S, True),
    ],
)
def test_two_that_come_soon_after_one_another_are_a_stream(
    times: list[float], now: float, *, is_stream: bool
) -> None:
    """Until for a beat nothing came."""
    rhythm = Rhythm()
    for time in times:
        rhythm.beat(time)
    assert rhythm.is_stream(now) is is_stream


def test_an_own_signature_is_known_again_and_every_other_is_verified() -> None:
    """Whoever claims to be us, whatever was changed, however long ago it was."""
    me, other = signer(0), signer(1)
    asked: list[bytes] = []

    def verify(key: PublicKeyBytes, signature: bytes, message: bytes) -> bool:
        asked.append(message)
        return is_signed(key, signature, message)

    ours = RememberingSigner(me, verify)
    assert ours.public == me.public
    mine = ours.sign(b"vote")
    assert is_signed(me.public, mine, b"vote")
    assert ours.verify(me.public, mine, b"vote")
    assert not asked
    assert ours.verify(other.public, other.sign(b"vote"), b"vote")
    assert not ours.verify(other.public, mine, b"vote")
    assert not ours.verify(me.public, bytes(64), b"vote")
    assert not ours.verify(me.public, mine, b"other vote")
    assert len(asked) == 4
    for number in range(1_000):
        ours.sign(b"%d" % number)
    assert ours.verify(me.public, mine, b"vote")
    assert len(asked) == 5
