"""The parts of the simulator: each checker can fail, and the world under the engine is as told."""

from typing import Any

import pytest

from basenet.engine.ballot import FIRST_EPOCH, Ballot
from basenet.engine.effects import OwnFrame, Persist, ReadReady
from basenet.engine.events import Instant, ReadWanted
from basenet.testing.simulator.checkers import NodeRecord, Truth, Violation, quorum_of
from basenet.testing.simulator.clock import LocalClock, Scheduler
from basenet.testing.simulator.disk import Disk, Row
from basenet.testing.simulator.faults import Noise, OneWayCut, Partition
from basenet.testing.simulator.network import ORDINARY, Network
from basenet.testing.simulator.scenario import Scenario
from basenet.testing.simulator.serving import final_pieces
from basenet.testing.simulator.signatures import IdealNotary, RealNotary
from basenet.testing.simulator.state import encode_commits, encode_part, root_after, wrong_root
from basenet.testing.simulator.suite import CONFIGURATIONS
from basenet.testing.simulator.world import SHARD, World
from basenet.units import ZERO_HASH, FrameHash, LocalNumber, Seq, StateRoot, TimestampNs, View
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Flag, Frame, Head, Kind, seal
from basenet.wire.message import Mark

MILLISECOND = 1_000_000


class Chain:
    """A chain of toy frames above the genesis of a world that never runs."""

    def __init__(self, nodes: int = 3) -> None:
        self.world = World(Scenario(nodes=nodes), 0, schedule=())
        self.signers = [self.world.notary.signer(number) for number in range(nodes)]

    @property
    def genesis(self) -> Frame:
        return self.world.genesis

    def after(self, before: Frame, *commits: int, root: StateRoot | None = None) -> Frame:
        head = before.head
        return seal(
            shard=SHARD,
            seq=Seq(head.seq + 1),
            timestamp_ns=TimestampNs(head.timestamp_ns + 1),
            salt=bytes(16),
            payload=encode_commits(list(commits)),
            kind=Kind.COMMIT,
            flags=Flag.NONE,
            epoch=FIRST_EPOCH,
            view=View(0),
            prev_hash=head.hash,
            state_root=root_after(head.state_root, list(commits)) if root is None else root,
            signer=self.signers[0],
        )

    def certify(self, head: Head, *voters: int, phase: int = 2) -> Certificate:
        message = self.world.scope.vote(FIRST_EPOCH, View(0), phase, head.seq, head.hash)
        votes = [
            (self.signers[number].public, self.signers[number].sign(message)) for number in voters
        ]
        return Certificate(
            phase=phase,
            epoch=FIRST_EPOCH,
            view=View(0),
            height=head.seq,
            hash=head.hash,
            votes=tuple(sorted(votes)),
        )


@pytest.fixture
def chain() -> Chain:
    return Chain()


@pytest.fixture
def truth(chain: Chain) -> Truth:
    return chain.world.truth


@pytest.fixture
def disk(chain: Chain) -> Disk:
    return chain.world.nodes[0].disk


@pytest.fixture
def record(truth: Truth) -> NodeRecord:
    return NodeRecord("n0", truth, Seq(1))


def ballot_of(disk: Disk, **changes: Any) -> Ballot:
    facts = {name: getattr(disk.ballot, name) for name in Ballot.__dataclass_fields__}
    return Ballot(**(facts | changes))


# The checkers.


def test_two_final_frames_at_one_height_are_seen(chain: Chain, truth: Truth) -> None:
    """Agreement, whoever says so."""
    truth.accept(chain.after(chain.genesis, 1), "n0")
    truth.accept(chain.after(chain.genesis, 1), "n1")
    with pytest.raises(Violation, match="agreement: n2"):
        truth.accept(chain.after(chain.genesis, 2), "n2")


def test_a_final_frame_without_its_predecessor_is_seen(chain: Chain, truth: Truth) -> None:
    """The final chain has no gap."""
    first = chain.after(chain.genesis, 1)
    with pytest.raises(Violation, match="chain: n0"):
        truth.accept(chain.after(first, 2), "n0")


def test_a_final_frame_with_a_wrong_root_is_seen(chain: Chain, truth: Truth) -> None:
    """The root is worked out from the commits, not believed."""
    root = wrong_root(chain.genesis.head.state_root)
    with pytest.raises(Violation, match="roots: n0"):
        truth.accept(chain.after(chain.genesis, 1, root=root), "n0")


def test_a_commit_that_is_final_twice_is_seen(chain: Chain, truth: Truth) -> None:
    """A commit is in one frame."""
    first = chain.after(chain.genesis, 1)
    truth.accept(first, "n0")
    with pytest.raises(Violation, match="local commits: 1 is final at 2 and 3"):
        truth.accept(chain.after(first, 1), "n0")


def test_a_certificate_needs_a_quorum_of_right_votes(chain: Chain, truth: Truth) -> None:
    """Two of three; one, a stranger's, a PREPARE, or one for another frame do not count."""
    frame = chain.after(chain.genesis, 1)
    truth.accept(frame, "n0")
    right = chain.certify(frame.head, 0, 1)
    truth.certify(right, frame.head, "n0")

    few = chain.certify(frame.head, 2)
    stranger = IdealNotary().signer(9)
    votes = (few.votes[0], (stranger.public, stranger.sign(b"anything")))
    forged = Certificate(
        phase=2,
        epoch=FIRST_EPOCH,
        view=View(1),
        height=Seq(2),
        hash=frame.head.hash,
        votes=tuple(sorted(votes)),
    )
    other = chain.after(chain.genesis, 2)
    truth._known.clear()
    for wrong in (None, few, forged, chain.certify(frame.head, 0, 1, phase=1)):
        with pytest.raises(Violation, match="certificates: n0"):
            truth.certify(wrong, frame.head, "n0")
    with pytest.raises(Violation, match="another frame"):
        truth.certify(chain.certify(other.head, 0, 1), frame.head, "n0")


def test_one_voter_needs_no_certificate() -> None:
    """Its signature on the frame is the vote."""
    chain = Chain(nodes=1)
    frame = chain.after(chain.genesis, 1)
    chain.world.truth.accept(frame, "n0")
    chain.world.truth.certify(None, frame.head, "n0")


def test_quorums_are_those_of_the_protocol() -> None:
    """Worked out a second time, so that a mistake in the engine is not shared."""
    sizes = {
        name: quorum_of(World(scenario, 0, schedule=()).config)
        for name, scenario in CONFIGURATIONS.items()
        if name in ("crash-1", "crash-2", "crash-3", "crash-5", "byzantine-4", "byzantine-7")
    }
    assert list(sizes.values()) == [1, 2, 2, 3, 3, 5]


def test_a_ballot_that_goes_back_is_seen(disk: Disk, record: NodeRecord) -> None:
    """Neither its view nor what is final in it."""
    final = Mark(0, Seq(5), FrameHash(bytes(32)))
    record.on_persist(Persist(ballot=ballot_of(disk, view=View(2), final=final)))
    with pytest.raises(Violation, match=r"durability: n0 persists \(1, 1\) after"):
        record.on_persist(Persist(ballot=ballot_of(disk, view=View(1), final=final)))
    with pytest.raises(Violation, match="durability: n0 persists final 1 after 5"):
        record.on_persist(Persist(ballot=ballot_of(disk, view=View(2))))


def test_a_final_frame_that_is_not_the_next_or_not_held_is_seen(
    chain: Chain, disk: Disk, record: NodeRecord
) -> None:
    """Final frames are told one by one, and lie in the journal."""
    first = chain.after(chain.genesis, 1)
    second = chain.after(first, 2)
    certificate = chain.certify(first.head, 0, 1)
    with pytest.raises(Violation, match="not held"):
        record.on_final((first.head,), certificate, disk)
    disk.persist(Persist(frames=(first, second)))
    with pytest.raises(Violation, match="order: n0 calls 3 final, but 1 was its last"):
        record.on_final((second.head,), certificate, disk)
    record.on_final((first.head,), certificate, disk)


def test_the_inside_of_a_run_is_never_final(chain: Chain, disk: Disk, record: NodeRecord) -> None:
    """P22: a run is one unit."""
    head = chain.genesis.head
    part = seal(
        shard=SHARD,
        seq=Seq(2),
        timestamp_ns=TimestampNs(head.timestamp_ns + 1),
        salt=bytes(16),
        payload=encode_part(1),
        kind=Kind.COMMIT,
        flags=Flag.PARTIAL,
        epoch=FIRST_EPOCH,
        view=View(0),
        prev_hash=head.hash,
        state_root=StateRoot(ZERO_HASH),
        signer=chain.signers[0],
    )
    disk.persist(Persist(frames=(part,)))
    with pytest.raises(Violation, match="inside of a run"):
        record.on_final((part.head,), chain.certify(part.head, 0, 1), disk)


def test_a_database_that_skips_a_frame_is_seen(
    chain: Chain, truth: Truth, record: NodeRecord
) -> None:
    """Apply is strictly plus one, and of final frames only."""
    first = chain.after(chain.genesis, 1)
    second = chain.after(first, 2)
    place = (chain.genesis.head.seq, chain.genesis.head.hash)
    with pytest.raises(Violation, match="not final"):
        record.on_apply(first, place)
    truth.accept(first, "n0")
    truth.accept(second, "n0")
    record.on_apply(first, place)
    with pytest.raises(Violation, match="order: n0 applies 3 on 1"):
        record.on_apply(second, place)


def test_undoing_what_is_final_is_seen(chain: Chain, truth: Truth, record: NodeRecord) -> None:
    """Neither by height nor by commit."""
    truth.accept(chain.after(chain.genesis, 1), "n0")
    record.final = Seq(2)
    with pytest.raises(Violation, match="rolls back to 1"):
        record.on_orphans({}, Seq(1), set())
    with pytest.raises(Violation, match="orphans 1, final at 2"):
        record.on_orphans({LocalNumber(1): 1}, Seq(2), set())


def test_a_lost_and_a_doubled_commit_are_seen(disk: Disk, record: NodeRecord) -> None:
    """Each local number is in exactly one place (Q14)."""
    disk.commits = [7]
    disk.capture()
    assert record.audit(disk)["waiting"] == 1
    disk.orphans[LocalNumber(1)] = 7
    disk.waiting.append(Row(number=LocalNumber(1), commit=7, parts=0))
    with pytest.raises(Violation, match="in 2 places"):
        record.audit(disk)
    disk.waiting.clear()
    disk.orphans.clear()
    with pytest.raises(Violation, match="in 0 places"):
        record.audit(disk)


def test_a_database_that_is_not_its_chain_is_seen(
    chain: Chain, disk: Disk, record: NodeRecord
) -> None:
    """What the file holds is what its place says, and then what waits."""
    frame = chain.after(chain.genesis, 1)
    disk.persist(Persist(frames=(frame,)))
    disk.apply(frame)
    record.audit(disk)
    disk.commits[0] = 2
    with pytest.raises(Violation, match="is not what its place says"):
        record.audit(disk)


def test_two_writers_at_one_instant_are_seen(chain: Chain) -> None:
    """In true time, whatever their clocks show."""
    first, second, _ = chain.world.nodes
    first.writable_until = 10
    chain.world.check_alone(first)
    with pytest.raises(Violation, match="fencing: n1 and n0"):
        chain.world.check_alone(second)
    chain.world.scheduler.run(10)
    chain.world.check_alone(second)


def test_a_read_that_is_too_old_is_seen(chain: Chain) -> None:
    """It waits for what was final when it was asked."""
    world = chain.world
    node = world.nodes[0]
    node.boot()
    world.readers._asked[b"n" * 16] = 5
    world.readers.answered(node, ReadReady(nonce=b"n" * 16, height=None))
    world.readers.answered(node, ReadReady(nonce=b"n" * 16, height=Seq(5)))
    with pytest.raises(Violation, match="reads: n0 lets a read begin at 4, but 5 was final"):
        world.readers.answered(node, ReadReady(nonce=b"n" * 16, height=Seq(4)))
    with pytest.raises(Violation, match="nobody asked"):
        world.readers.answered(node, ReadReady(nonce=b"x" * 16, height=Seq(5)))
    assert ReadWanted(nonce=b"n" * 16).nonce == b"n" * 16


# The world.


@pytest.mark.parametrize("drift", [-250_000, -4_950, 0, 7, 4_950, 250_000])
def test_a_clock_can_be_turned_back_into_true_time(drift: int) -> None:
    """The first instant at which it shows that much, to the nanosecond."""
    clock = LocalClock(123_456, drift)
    for true in (0, 1, 999_999, 10**9, 10**10 + 3):
        shown = clock.read(true)
        first = clock.true_time(shown)
        assert clock.read(first) >= shown > clock.read(first - 1)
        assert first <= true


def test_a_clock_goes_on_from_what_it_is_set_to() -> None:
    """A reboot changes what it shows, not how fast it runs."""
    clock = LocalClock(0, 10_000)
    clock.restart(1_000_000, 5)
    assert clock.read(1_000_000) == Instant(5)
    assert clock.read(2_000_000) == Instant(5 + 1_010_000)


def test_the_scheduler_keeps_time_and_then_order() -> None:
    """What is due first happens first; at one time, what was asked for first."""
    scheduler, seen = Scheduler(), list[str]()
    for when, name in ((5, "b"), (1, "a"), (5, "c"), (9, "d")):
        scheduler.at(when, seen.append, name)
    scheduler.run(9)
    assert (seen, scheduler.now, scheduler.events) == (["a", "b", "c"], 9, 3)
    scheduler.at(0, seen.append, "late")
    scheduler.run(10)
    assert seen[3:] == ["d", "late"]


@pytest.fixture
def network() -> tuple[Network, World]:
    world = World(Scenario(nodes=3), 1, schedule=())
    return world.network, world


def heard(network: Network, world: World, sender: int, to: int) -> int:
    seen: list[object] = []
    for _ in range(50):
        network.send(sender, to, ORDINARY, seen.append, "message")
    world.scheduler.run(world.scheduler.now + 5_000 * MILLISECOND)
    return len(seen)


def test_a_partition_cuts_both_ways_until_it_ends(network: tuple[Network, World]) -> None:
    """And hurts nobody within one side."""
    net, world = network
    net.begin(Partition(at=0, lasts=1_000 * MILLISECOND, sides=(0, 0, 1)))
    assert net.is_apart(0, 2)
    assert [heard(*network, 0, 1), world.scheduler.now >= 1_000 * MILLISECOND] == [50, True]
    assert heard(*network, 0, 2) == 50


def test_a_cut_is_one_way(network: tuple[Network, World]) -> None:
    """What goes back still comes."""
    net, _ = network
    net.begin(OneWayCut(at=0, lasts=60_000 * MILLISECOND, node=0, to=1))
    assert net.is_cut(0, 1)
    assert not net.is_cut(1, 0)
    assert heard(*network, 0, 1) == 0
    assert heard(*network, 1, 0) == 50


def test_noise_loses_and_doubles(network: tuple[Network, World]) -> None:
    """As its shares say."""
    net, world = network
    net.begin(Noise(at=0, lasts=4_000 * MILLISECOND, lost=1.0, doubled=0, late=0))
    assert heard(*network, 0, 1) == 0
    now = world.scheduler.now
    net.begin(Noise(at=now, lasts=4_000 * MILLISECOND, lost=0.0, doubled=1.0, late=0))
    assert heard(*network, 0, 1) == 100


def test_ideal_signatures_cannot_be_forged() -> None:
    """Only what the owner signed is signed, and only with what came out."""
    notary = IdealNotary()
    first, second = notary.signer(1), notary.signer(2)
    signature = first.sign(b"message")
    assert notary.verify(first.public, signature, b"message")
    assert not notary.verify(first.public, signature, b"another")
    assert not notary.verify(second.public, signature, b"message")
    assert not notary.verify(first.public, bytes(64), b"message")
    assert not notary.verify(b"x" * 32, signature, b"message")


def test_real_signatures_are_those_of_the_program() -> None:
    """The same key whenever it is asked for."""
    notary = RealNotary()
    signature = notary.signer(1).sign(b"message")
    assert notary.verify(notary.signer(1).public, signature, b"message")
    assert not notary.verify(notary.signer(2).public, signature, b"message")


def test_a_frame_absorbs_its_rows_in_its_own_transaction(chain: Chain, disk: Disk) -> None:
    """Before it they wait, after it they are in it; never both, never neither (Q14)."""
    disk.commits = [1, 2]
    assert disk.capture() == 2
    frame = chain.after(chain.genesis, 1)
    own = OwnFrame(frame=frame, local_first=LocalNumber(1), local_last=LocalNumber(1))
    disk.persist(Persist(own=(own,)))
    assert [row.commit for row in disk.waiting] == [2]
    assert disk.place == (2, frame.head.hash)
    assert disk.jcount == 1


def test_a_copy_of_a_disk_changes_by_itself(chain: Chain, disk: Disk) -> None:
    """What comes back is what was copied."""
    old = disk.copy()
    frame = chain.after(chain.genesis, 1)
    disk.persist(Persist(frames=(frame,)))
    disk.apply(frame)
    assert (old.jcount, old.commits, len(old.frames)) == (0, [], 1)


def test_history_is_served_in_certified_pieces(chain: Chain, disk: Disk) -> None:
    """Up to the last certified frame, from the first that is asked for."""
    first = chain.after(chain.genesis, 1)
    second = chain.after(first, 2)
    certificate = chain.certify(second.head, 0, 1)
    final = Mark(0, Seq(3), second.head.hash)
    disk.persist(
        Persist(
            frames=(first, second),
            ballot=ballot_of(disk, final=final, certificate=certificate),
        )
    )
    key = chain.signers[0].public
    (piece,) = final_pieces(disk, key, Seq(1))
    assert (piece.frames, piece.certificate) == ((first, second), certificate)
    (piece,) = final_pieces(disk, key, Seq(2))
    assert piece.frames == (second,)
    assert list(final_pieces(disk, key, Seq(3))) == []
