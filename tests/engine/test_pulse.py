"""The lane of heartbeats: one lease of a shard at a time, and nothing done for idle shards."""

import random
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from basenet.engine.events import Instant
from basenet.engine.leadlist import LeadList
from basenet.engine.lease import FOREVER, LONG_AGO
from basenet.engine.limits import MILLISECOND, PULSE_GAP, Timing
from basenet.engine.pulse import Pulse, Rouse, SendPulse
from basenet.errors import UsageError
from basenet.units import ZERO_HASH, Epoch, JournalId, Lineage, View
from basenet.wire.message import EXCEPTIONS_MAX, Heartbeat, HeartbeatAck, LedShard
from basenet.wire.signature import Signer, is_signed
from tests.engine.pulse_mutants import MUTANTS, SHARING_MUTANTS, Mutant
from tests.engine.pulse_world import (
    EPOCH,
    LINEAGES,
    RATES,
    OverlapError,
    SharedError,
    World,
    make_pulse,
    member_of,
    step,
)

TIMING = Timing()
BEAT, LEASE = TIMING.heartbeat, TIMING.lease
SILENT = TIMING.election_min
START = Instant(7_000 * MILLISECOND)
A, B, C = member_of(0), member_of(1), member_of(2)
ONE, TWO, THREE = LINEAGES
SEED_STEPS = 400
SEED_BUDGET = 1_500


# Safety: at no true instant two leases.


def run_seed(seed: int, mutant: Mutant | None = None) -> World:
    """Return the world after a random story; raises `OverlapError`."""
    chance = random.Random(seed)
    rates = [RATES[chance.randrange(3)] for _ in range(3)]
    world = World(
        rates,
        timing=mutant.timing if mutant else None,
        make=mutant.make if mutant else make_pulse,
        leaves_view=mutant.leaves_view if mutant else True,
        compares_shared=mutant not in MUTANTS,
    )
    for lineage in LINEAGES:
        world.establish(lineage, 0)
    for _ in range(SEED_STEPS):
        step(world, chance.randrange)
    return world


def test_many_random_stories_never_show_two_leases() -> None:
    """Sentence H1 of docs/protocol/heartbeats.md.

    H1. At no instant do two nodes hold the lease of one shard in two views of an epoch.

    And they do show leases, and views that change: the property is not empty.
    """
    worlds = [run_seed(seed) for seed in range(40)]
    assert sum(world.leases_seen for world in worlds) > 5_000
    assert sum(len(world.established) for world in worlds) > 1_000


def test_every_story_can_end_well() -> None:
    """Once nothing is lost any more, each leader has its lease within a few beats."""
    for seed in range(30):
        world = run_seed(seed)
        world.net.clear()
        for lineage in LINEAGES:
            world.elect(lineage, world.voters, is_patient=True)
            for process in world.voters:
                world.adopt(process, lineage)
        for _ in range(4):
            for process in world.voters:
                world.beat(process)
                world.flush(world.voters)
        assert [len(world.holders(lineage)) for lineage in LINEAGES] == [1, 1, 1]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_rule_shows_two_leases(mutant: Mutant) -> None:
    """Found by the seed that is written down, or by another of the budget."""
    for seed in (mutant.seed, *range(SEED_BUDGET)):
        try:
            run_seed(seed, mutant)
        except OverlapError:
            return
    pytest.fail(f"{mutant.name} was not noticed in {SEED_BUDGET} seeds")


def test_many_random_stories_share_leases() -> None:
    """The comparison in `World.check` is not empty."""
    assert sum(run_seed(seed).shared_seen for seed in range(20)) > 5_000


@pytest.mark.parametrize("mutant", SHARING_MUTANTS, ids=lambda mutant: mutant.name)
def test_a_lease_that_is_shared_for_too_long_is_noticed(mutant: Mutant) -> None:
    """Each event that parts shards is missed once."""
    for seed in (mutant.seed, *range(SEED_BUDGET)):
        try:
            run_seed(seed, mutant)
        except SharedError:
            return
    pytest.fail(f"{mutant.name} was not noticed in {SEED_BUDGET} seeds")


class Leasing(RuleBasedStateMachine):
    """Every step of `World` in any order, with three clocks of different rates."""

    world: World

    @initialize(rates=st.lists(st.sampled_from(RATES), min_size=3, max_size=3))
    def begin(self, rates: list[int]) -> None:
        self.world = World(rates)
        for lineage in LINEAGES:
            self.world.establish(lineage, 0)

    @rule(data=st.data())
    def anything(self, data: st.DataObject) -> None:
        step(self.world, lambda below: data.draw(st.integers(0, below - 1)))

    @rule(lineage=st.sampled_from(LINEAGES), mask=st.integers(1, 15), is_patient=st.booleans())
    def elect(self, lineage: Lineage, mask: int, is_patient: bool) -> None:  # noqa: FBT001
        group = self.group(mask)
        self.world.elect(lineage, group, is_patient=is_patient)
        for process in group:
            self.world.adopt(process, lineage)

    @rule(number=st.integers(0, 3), mask=st.integers(1, 15))
    def beat(self, number: int, mask: int) -> None:
        self.world.beat(self.world.processes[number])
        self.world.flush(self.group(mask))

    @rule(number=st.integers(0, 3), is_slow=st.booleans())
    def restart(self, number: int, is_slow: bool) -> None:  # noqa: FBT001
        self.world.restart(self.world.processes[number], is_slow=is_slow)

    def group(self, mask: int) -> list[Any]:
        return [process for bit, process in enumerate(self.world.processes) if mask >> bit & 1]


TestLeasing = Leasing.TestCase
TestLeasing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# One pair of nodes, told from top to bottom.


def pulse_of(number: int, *, run: int = 1, now: Instant = START) -> Pulse:
    return make_pulse(member_of(number), run, TIMING, now)


def later(milliseconds: int) -> Instant:
    return Instant(START + milliseconds * MILLISECOND)


def heartbeats(effects: list[Any]) -> dict[bytes, Heartbeat]:
    return {
        effect.to: effect.message
        for effect in effects
        if isinstance(effect, SendPulse) and isinstance(effect.message, Heartbeat)
    }


def roused(effects: list[Any]) -> set[Lineage]:
    return {
        lineage for effect in effects if isinstance(effect, Rouse) for lineage in effect.lineages
    }


def answer(follower: Pulse, me: Any, beat: Heartbeat, now: Instant) -> HeartbeatAck:
    (ack,) = (
        effect.message
        for effect in follower.received(*me, beat, now)
        if isinstance(effect, SendPulse)
    )
    assert isinstance(ack, HeartbeatAck)
    return ack


def lead(pulse: Pulse, lineage: Lineage, now: Instant, *, view: int = 0) -> None:
    pulse.lead(lineage, EPOCH, View(view), (B, C), 2, now)


def follow(pulse: Pulse, lineage: Lineage, now: Instant, *, view: int = 0) -> None:
    pulse.follow(lineage, EPOCH, View(view), A, now)


def exchange(leader: Pulse, follower: Pulse, now: Instant) -> HeartbeatAck:
    """One heartbeat of A to B and its answer, at one instant."""
    ack = answer(follower, A, heartbeats(leader.tick(now))[B[0]], now)
    leader.received(*B, ack, now)
    return ack


def make_pair(*lineages: Lineage) -> tuple[Pulse, Pulse]:
    leader, follower = pulse_of(0), pulse_of(1)
    for lineage in lineages:
        lead(leader, lineage, START)
        follow(follower, lineage, START)
    return leader, follower


def test_the_lease_runs_from_when_the_heartbeat_was_sent() -> None:
    """Sentences H2 and H3 of docs/protocol/heartbeats.md.

    H2. A lease runs from when the newest heartbeat was sent that a quorum granted, the leader
    included, for one LEASE less the drift of clocks.

    H3. To grant is to promise: no other view of the shard is entered for one LEASE from the
    answer.

    LEASE less the drift; the promise runs from when it was given, and is LEASE long.
    """
    leader, follower = make_pair(ONE)
    beat = heartbeats(leader.tick(START))[B[0]]
    assert leader.lease_until(ONE, START) <= START
    ack = answer(follower, A, beat, later(30))
    leader.received(*B, ack, later(60))
    assert leader.lease_until(ONE, later(60)) == START + LEASE - TIMING.drift
    assert follower.promised_until(ONE) == later(30) + LEASE
    assert TIMING.drift == 15 * MILLISECOND
    assert leader.quorum_heard_at(ONE, later(60)) == later(60)
    assert follower.leader_heard_at(ONE) == later(30)


def test_the_list_is_sent_whole_once_and_then_only_what_changed() -> None:
    """Sentence H8 of docs/protocol/heartbeats.md.

    H8. The list of led shards is sent in full once and then as changes, and each version of it
    has a number and a hash.

    A heartbeat that says nothing new carries no shard, however many are led.
    """
    leader, follower = make_pair(ONE, TWO)
    first = heartbeats(leader.tick(START))[B[0]]
    assert (first.base_version, len(first.led)) == (0, 2)
    leader.received(*B, answer(follower, A, first, START), START)
    idle = heartbeats(leader.tick(later(100)))[B[0]]
    assert (idle.base_version, idle.led, idle.unled) == (first.list_version, (), ())
    leader.received(*B, answer(follower, A, idle, later(100)), later(100))
    lead(leader, THREE, later(100))
    leader.unlead(ONE, later(100))
    change = heartbeats(leader.tick(later(110)))[B[0]]
    assert change.led == (LedShard(THREE, EPOCH, View(0)),)
    assert change.unled == (ONE,)
    ack = answer(follower, A, change, later(110))
    assert (ack.held_version, ack.list_hash) == (change.list_version, change.list_hash)
    assert ack.exceptions == (THREE,)


def test_a_lost_change_costs_a_beat_and_no_lease() -> None:
    """Sentence H9 of docs/protocol/heartbeats.md.

    H9. A change that is lost costs a beat: the answer names the version that is held, and the
    next heartbeat goes on from there.

    The answer names what is held and grants nothing; from there the next one goes on.
    """
    leader, follower = make_pair(ONE, TWO)
    exchange(leader, follower, START)
    lead(leader, THREE, later(50))
    follow(follower, THREE, later(50))
    lost = heartbeats(leader.tick(later(60)))[B[0]]
    assert lost.led == (LedShard(THREE, EPOCH, View(0)),)
    ack = exchange(leader, follower, later(160))
    assert (ack.is_granting, ack.exceptions) == (False, ())
    assert ack.held_version < lost.list_version
    assert leader.lease_until(ONE, later(160)) == TIMING.lease_from(START)
    again = heartbeats(leader.tick(later(260)))[B[0]]
    assert (again.base_version, again.led) == (ack.held_version, lost.led)
    leader.received(*B, answer(follower, A, again, later(260)), later(260))
    assert leader.lease_until(THREE, later(260)) == TIMING.lease_from(later(260))


def test_a_follower_that_restarted_gets_the_whole_list() -> None:
    """Sentence H22 of docs/protocol/heartbeats.md.

    H22. A node that restarted counts as having promised everything until one LEASE after its
    boot.

    It holds none, says so, and owes one LEASE from its boot.
    """
    leader, follower = make_pair(ONE, TWO)
    exchange(leader, follower, START)
    follower = pulse_of(1, run=2, now=later(50))
    follow(follower, ONE, later(50))
    assert follower.promised_until(ONE) == later(50) + LEASE
    assert follower.promised_until(TWO) == later(50) + LEASE
    ack = exchange(leader, follower, later(100))
    assert (ack.held_version, ack.list_hash, ack.is_granting) == (0, ZERO_HASH, False)
    whole = heartbeats(leader.tick(later(200)))[B[0]]
    assert (whole.base_version, len(whole.led)) == (0, 2)
    assert answer(follower, A, whole, later(200)).exceptions == (TWO,)


def test_refusals_that_were_under_way_ask_for_the_list_only_once() -> None:
    """With a long round trip several answers say the same."""
    leader, follower = make_pair(ONE)
    heartbeats(leader.tick(START))
    acks = [
        answer(follower, A, heartbeats(leader.tick(later(at)))[B[0]], later(at))
        for at in (100, 200)
    ]
    leader.received(*B, acks[0], later(210))
    assert heartbeats(leader.tick(later(300)))[B[0]].base_version == 0
    leader.received(*B, acks[1], later(310))
    assert heartbeats(leader.tick(later(400)))[B[0]].base_version > 0


def test_an_answer_before_a_crash_never_counts() -> None:
    """Sentence H12 of docs/protocol/heartbeats.md.

    H12. An answer to another run of the leader never counts: each run has a boot nonce of its
    own.

    Mistake 12: number and version are in use again, the boot nonce is not.
    """
    before, follower = make_pair(ONE)
    ack = answer(follower, A, heartbeats(before.tick(START))[B[0]], START)
    resumed = pulse_of(0, run=2, now=later(300))
    lead(resumed, ONE, later(300))
    beat = heartbeats(resumed.tick(later(300)))[B[0]]
    assert (beat.number, beat.list_version, beat.list_hash) == (
        ack.number,
        ack.held_version,
        ack.list_hash,
    )
    resumed.received(*B, ack, later(310))
    assert resumed.lease_until(ONE, later(310)) <= later(310)


@pytest.mark.parametrize(
    "change",
    [
        {"list_hash": b"h" * 32},
        {"held_version": 9},
        {"number": 9},
        {"is_granting": False},
        {"exceptions": (ONE,)},
        {"signature": b"s" * 64},
        {"boot_nonce": b"another."},
    ],
)
def test_an_answer_that_says_anything_else_grants_nothing(change: dict[str, Any]) -> None:
    """Sentence H11 of docs/protocol/heartbeats.md.

    H11. An answer that names another version or hash than the heartbeat of its number grants
    nothing.

    Each of its fields is signed or compared (Q7).
    """
    leader, follower = make_pair(ONE)
    ack = answer(follower, A, heartbeats(leader.tick(START))[B[0]], START)
    fields = {name: getattr(ack, name) for name in ack.__struct_fields__}
    leader.received(*B, HeartbeatAck(**fields | change), START)
    assert leader.lease_until(ONE, START) <= START
    leader.received(*B, ack, START)
    assert leader.lease_until(ONE, START) > START


def test_a_voters_key_with_another_journal_grants_nothing() -> None:
    """Sentence H15 of docs/protocol/heartbeats.md.

    H15. Only a voter grants, and a voter is its key and its journal id.

    P23: the journal that made the promises is part of who votes.
    """
    leader, follower = make_pair(ONE)
    exchange(leader, follower, START)
    ack = answer(follower, A, heartbeats(leader.tick(later(100)))[B[0]], later(100))
    leader.received(B[0], JournalId(b"another journal!"), ack, later(100))
    assert leader.lease_until(ONE, later(100)) <= later(100)
    # A stranger has sent nothing that could be answered.
    leader.received(member_of(9)[0], JournalId(b"j" * 16), ack, later(100))
    assert leader.lease_until(ONE, later(100)) <= later(100)


def test_who_never_heard_of_a_shard_grants_nothing() -> None:
    """Sentence H13 of docs/protocol/heartbeats.md.

    H13. Who never heard of a shard, follows another leader in it, or is in another epoch or view
    of it, does not grant it.

    Q7: grants are positive. Nor does who follows another view or another leader.
    """
    leader, follower = make_pair(ONE, TWO, THREE)
    follower.follow(TWO, EPOCH, View(1), B, START)
    follower.follow(THREE, Epoch(2), View(0), A, START)
    lead(leader, Lineage(b"z" * 16), START)
    ack = exchange(leader, follower, START)
    assert ack.exceptions == (TWO, THREE, Lineage(b"z" * 16))
    assert leader.lease_until(ONE, START) > START
    assert leader.lease_until(TWO, START) <= START
    assert leader.lease_until(Lineage(b"z" * 16), START) <= START


def test_too_many_exceptions_grant_nothing_at_all() -> None:
    """Sentence H14 of docs/protocol/heartbeats.md.

    H14. An answer excepts at most 1,000 shards; where it would have to except more, it grants
    none.

    At most `EXCEPTIONS_MAX` are named; the list is confirmed all the same.
    """
    leader, follower = make_pair(ONE)
    strangers = [Lineage(number.to_bytes(16, "big")) for number in range(EXCEPTIONS_MAX + 1)]
    for lineage in strangers:
        lead(leader, lineage, START)
    ack = exchange(leader, follower, START)
    assert (ack.is_granting, ack.exceptions) == (False, ())
    assert follower.promised_until(ONE) == START + LEASE  # of its boot, and no later
    follow(follower, strangers[0], later(50))
    ack = exchange(leader, follower, later(100))
    assert ack.is_granting
    assert len(ack.exceptions) == EXCEPTIONS_MAX
    assert leader.lease_until(ONE, later(100)) == TIMING.lease_from(later(100))
    assert follower.promised_until(ONE) == later(100) + LEASE


def test_a_view_that_is_left_is_excepted_and_the_promise_stands() -> None:
    """Sentence H17 of docs/protocol/heartbeats.md.

    H17. A view that is left is excepted first, and what was promised stands.

    Q7: the grant of before stays with the leader until it ends by itself.
    """
    leader, follower = make_pair(ONE, TWO)
    exchange(leader, follower, START)
    follower.refuse(ONE, later(10))
    assert follower.promised_until(ONE) == START + LEASE
    assert exchange(leader, follower, later(100)).exceptions == (ONE,)
    assert leader.lease_until(ONE, later(100)) == TIMING.lease_from(START)
    assert leader.lease_until(TWO, later(100)) == TIMING.lease_from(later(100))
    assert exchange(leader, follower, later(200)).exceptions == (ONE,)
    assert leader.lease_until(ONE, later(200)) == TIMING.lease_from(START)
    follow(follower, ONE, later(210))
    assert exchange(leader, follower, later(300)).exceptions == ()
    assert leader.lease_until(ONE, later(300)) == TIMING.lease_from(later(300))


def test_an_answer_that_was_overtaken_is_no_news() -> None:
    """The newest one says what is granted."""
    leader, follower = make_pair(ONE)
    first = answer(follower, A, heartbeats(leader.tick(START))[B[0]], START)
    follower.refuse(ONE, later(50))
    second = answer(follower, A, heartbeats(leader.tick(later(100)))[B[0]], later(100))
    leader.received(*B, second, later(110))
    leader.received(*B, first, later(120))
    assert leader.lease_until(ONE, later(120)) <= later(120)


def test_what_is_begun_again_is_not_granted_by_an_older_answer() -> None:
    """Sentence H16 of docs/protocol/heartbeats.md.

    H16. A shard that was begun, or begun again, after a heartbeat is not granted by the answer to
    it.

    The shard stands in the list since a later version than the one that was granted.
    """
    leader, follower = make_pair(ONE)
    ack = answer(follower, A, heartbeats(leader.tick(START))[B[0]], START)
    leader.unlead(ONE, later(1))
    lead(leader, ONE, later(2))
    leader.received(*B, ack, later(3))
    assert leader.lease_until(ONE, later(3)) <= later(3)


def test_to_lead_again_what_is_led_changes_nothing() -> None:
    """A replica may say it as often as it likes."""
    leader, follower = make_pair(ONE)
    exchange(leader, follower, START)
    lead(leader, ONE, later(10))
    assert leader.lease_until(ONE, later(10)) == TIMING.lease_from(START)
    assert leader.wake_at == START + BEAT
    leader.unlead(TWO, later(10))
    assert leader.wake_at == START + BEAT


def test_a_lease_given_back_ends_the_promise_with_the_next_heartbeat() -> None:
    """Sentence H18 of docs/protocol/heartbeats.md.

    H18. A promise ends when a later heartbeat of the same run no longer names the shard in that
    epoch and view.

    Sent at once, where there is no `Release` because the node stops.
    """
    leader, follower = make_pair(ONE, TWO)
    exchange(leader, follower, later(2_000))
    leader.unlead(ONE, later(2_001))
    assert leader.lease_until(ONE, later(2_001)) <= later(2_001)
    assert leader.wake_at == later(2_000) + PULSE_GAP
    beat = heartbeats(leader.tick(later(2_010)))[B[0]]
    effects = follower.received(*A, beat, later(2_010))
    assert roused(effects) == {ONE}
    assert follower.promised_until(ONE) <= later(2_010)
    assert follower.promised_until(TWO) == later(2_010) + LEASE
    assert follower.leader_heard_at(ONE) == later(2_000)


def test_a_release_ends_the_promise_at_once_but_not_that_of_a_restart() -> None:
    """Sentence H21 of docs/protocol/heartbeats.md.

    H21. A Release ends the promise at once, because its leader durably left the view before it
    sent it.

    Its leader has durably left the view; what was promised before boot is not known.
    """
    leader, follower = make_pair(ONE, TWO)
    exchange(leader, follower, later(2_000))
    follower.release(ONE)
    assert follower.promised_until(ONE) == START + LEASE
    assert follower.promised_until(TWO) == later(2_000) + LEASE
    assert exchange(leader, follower, later(2_100)).exceptions == (ONE,)
    assert follower.promised_until(ONE) == START + LEASE


def test_promises_survive_an_epoch_switch() -> None:
    """Sentence H23 of docs/protocol/heartbeats.md.

    H23. A promise is of the lineage: it survives an epoch switch.

    They are of the lineage; a new leader is granted beside what is still owed.
    """
    leader, follower = make_pair(ONE)
    exchange(leader, follower, later(2_000))
    follower.follow(ONE, Epoch(2), View(0), C, later(2_050))
    assert follower.promised_until(ONE) == later(2_000) + LEASE
    assert follower.leader_heard_at(ONE) is None
    assert follower.followed(C[0]) == (ONE,)
    assert follower.followed(A[0]) == ()


def test_a_restarted_leader_does_not_end_what_was_promised_to_its_last_run() -> None:
    """Sentence H19 of docs/protocol/heartbeats.md.

    H19. A list of another run of the leader ends no promise.

    Nor does a list of its last run that comes late end what was promised to this one.
    """
    leader, follower = make_pair(ONE)
    old = heartbeats(leader.tick(later(2_000)))[B[0]]
    answer(follower, A, old, later(2_000))
    resumed = pulse_of(0, run=2, now=later(2_100))
    lead(resumed, TWO, later(2_100))
    beat = heartbeats(resumed.tick(later(2_100)))[B[0]]
    follower.received(*A, beat, later(2_100))
    assert follower.promised_until(ONE) == later(2_000) + LEASE
    assert follower.leader_heard_at(ONE) == later(2_000)


def test_an_older_or_repeated_heartbeat_is_not_answered() -> None:
    """Sentence H20 of docs/protocol/heartbeats.md.

    H20. A heartbeat that is older than the newest, or the same, is not answered and changes
    nothing.

    Its sender has newer news on the way.
    """
    leader, follower = make_pair(ONE)
    first = heartbeats(leader.tick(START))[B[0]]
    second = heartbeats(leader.tick(later(100)))[B[0]]
    answer(follower, A, first, later(100))
    answer(follower, A, second, later(101))
    assert follower.received(*A, first, later(102)) == []
    assert follower.received(*A, second, later(102)) == []


def test_a_list_that_has_another_hash_is_not_held() -> None:
    """Q7: whatever went wrong with it grants nothing; the next whole list makes it good."""
    leader, follower = make_pair(ONE)
    beat = heartbeats(leader.tick(START))[B[0]]
    fields = {name: getattr(beat, name) for name in beat.__struct_fields__}
    wrong = Heartbeat(**fields | {"list_hash": b"w" * 32})
    assert not answer(follower, A, wrong, START).is_granting
    wrong = Heartbeat(**fields | {"number": 2, "base_version": 7})
    assert not answer(follower, A, wrong, START).is_granting
    assert answer(follower, A, Heartbeat(**fields | {"number": 3}), START).is_granting
    wrong = Heartbeat(**fields | {"number": 4, "list_hash": b"w" * 32})
    assert not answer(follower, A, wrong, START).is_granting


def test_real_signatures_and_bytes_make_a_lease() -> None:
    """As the program has them: Ed25519, and msgspec between the nodes."""
    signers = [Signer(bytes([number]) * 32) for number in (1, 2)]
    members = [(signer.public, JournalId(b"j" * 16)) for signer in signers]
    leader, follower = (
        Pulse(
            me=me,
            signer=signer,
            verify=is_signed,
            boot_nonce=b"run-0001",
            timing=TIMING,
            now=START,
        )
        for me, signer in zip(members, signers, strict=True)
    )
    decoder = msgspec.msgpack.Decoder(Heartbeat | HeartbeatAck)
    leader.lead(ONE, EPOCH, View(0), (members[1],), 2, START)
    follower.follow(ONE, EPOCH, View(0), members[0], START)
    (sent,) = leader.tick(START)
    assert isinstance(sent, SendPulse)
    assert sent.to == members[1][0]
    beat = decoder.decode(msgspec.msgpack.encode(sent.message))
    (answered,) = follower.received(*members[0], beat, START)
    assert isinstance(answered, SendPulse)
    ack = decoder.decode(msgspec.msgpack.encode(answered.message))
    leader.received(*members[1], ack, later(1))
    assert leader.lease_until(ONE, later(1)) == TIMING.lease_from(START)
    assert follower.promised_until(ONE) == START + LEASE


# Who is told what.


def test_a_silent_leader_rouses_its_shards_once() -> None:
    """Sentence H24 of docs/protocol/heartbeats.md.

    H24. A follower whose leader was not heard for the lower bound of ELECTION is roused, once a
    silence.

    At the lower bound of ELECTION after its last heartbeat, and again after the next silence.
    """
    leader, follower = make_pair(ONE, TWO)
    exchange(leader, follower, START)
    assert follower.wake_at == START + SILENT
    assert follower.tick(Instant(START + SILENT - 1)) == []
    assert roused(follower.tick(Instant(START + SILENT))) == {ONE, TWO}
    assert follower.tick(Instant(START + 2 * SILENT)) == []
    assert follower.wake_at is None
    exchange(leader, follower, later(4_000))
    assert follower.wake_at == later(4_000) + SILENT


def test_a_leader_that_never_names_the_shard_rouses_it_once() -> None:
    """Also when it is alive and names others."""
    leader, follower = make_pair(ONE)
    exchange(leader, follower, START)
    follow(follower, TWO, later(10))
    assert follower.leader_heard_at(TWO) is None
    exchange(leader, follower, later(1_200))
    assert follower.tick(Instant(later(10) + SILENT - 1)) == []
    assert roused(follower.tick(Instant(later(10) + SILENT))) == {TWO}
    follow(follower, THREE, later(2_000))
    follower.refuse(THREE, later(2_001))
    assert roused(follower.tick(later(9_000))) == {ONE}  # of the silence since 1,200


def test_a_claim_of_another_leader_rouses_who_does_not_follow_it() -> None:
    """Sentence H26 of docs/protocol/heartbeats.md.

    H26. A follower is roused when its leader no longer names the shard, or another node does.

    A replica that missed a view learns whom to ask.
    """
    other, follower = pulse_of(2), pulse_of(1)
    follow(follower, ONE, START)
    other.lead(ONE, EPOCH, View(2), (A, B), 2, START)
    effects = follower.received(*C, heartbeats(other.tick(START))[B[0]], START)
    assert roused(effects) == {ONE}
    assert follower.claimed(ONE) == ((EPOCH, View(2)), C[0])
    assert follower.claimed(TWO) is None


@pytest.mark.parametrize("is_restarted", [False, True])
def test_who_is_not_named_any_more_is_roused_once_more(*, is_restarted: bool) -> None:
    """Sentence H27 of docs/protocol/heartbeats.md.

    H27. A follower whose shard is not named again within the lower bound of ELECTION is roused once
    more, also by another run of its leader.

    What it heard a moment ago lets it wait, and an idle replica has no timer: a voter that was put
    out of the CONFIG while it slept waited for ever (seed 485 of crash-3-config).
    """
    leader, follower = make_pair(ONE, TWO)
    exchange(leader, follower, START)
    if is_restarted:
        leader = pulse_of(0, run=2)
        lead(leader, TWO, later(50))
    else:
        leader.unlead(ONE, later(50))
    exchange(leader, follower, later(100))
    gone_at = later(100)
    exchange(leader, follower, later(1_000))
    assert follower.tick(Instant(gone_at + SILENT - 1)) == []
    assert roused(follower.tick(Instant(gone_at + SILENT))) == {ONE}
    exchange(leader, follower, later(2_000))
    assert follower.wake_at == later(2_000) + SILENT


def test_a_lost_quorum_rouses_the_leader_once() -> None:
    """Sentence H25 of docs/protocol/heartbeats.md.

    H25. A leader that no quorum granted for the lower bound of ELECTION is roused.

    One follower is enough of three; when it falls silent, too, the leader must know.
    """
    leader, follower = make_pair(ONE)
    third = pulse_of(2)
    follow(third, ONE, START)
    beats = heartbeats(leader.tick(START))
    for member, pulse in ((B, follower), (C, third)):
        leader.received(*member, answer(pulse, A, beats[member[0]], START), START)
    for at in range(100, 2_000, 100):
        exchange(leader, follower, later(at))
    assert roused(leader.tick(later(2_000))) == set()
    assert leader.quorum_heard_at(ONE, later(2_000)) == later(1_900)
    assert roused(leader.tick(Instant(later(1_900) + SILENT))) == {ONE}
    assert roused(leader.tick(Instant(later(1_900) + 2 * SILENT))) == set()


def test_a_shard_that_nobody_grants_rouses_its_leader() -> None:
    """Its followers are alive and grant other shards."""
    leader, follower = make_pair(ONE)
    lead(leader, TWO, START)
    for at in range(0, 1_300, 100):
        exchange(leader, follower, later(at))
    assert roused(leader.tick(Instant(START + SILENT))) == {TWO}
    assert leader.quorum_heard_at(TWO, later(1_300)) == START


def test_a_quorum_of_one_is_for_ever_and_sends_nothing() -> None:
    """Sentence H6 of docs/protocol/heartbeats.md.

    H6. A quorum of one has its lease for ever, asks nobody, and waits for nothing at boot.

    n=1: no lease to wait for, at boot neither; nobody to ask.
    """
    pulse = pulse_of(0)
    pulse.lead(ONE, EPOCH, View(0), (), 1, START)
    assert pulse.lease_until(ONE, START) == FOREVER
    assert pulse.promised_until(ONE) <= START
    assert pulse.quorum_heard_at(ONE, later(99)) == later(99)
    assert (pulse.wake_at, pulse.tick(later(99))) == (None, [])


def test_shards_that_are_granted_alike_share_a_lease() -> None:
    """Sentence H28 of docs/protocol/heartbeats.md.

    H28. Shards with the same followers and quorum that the same followers grant share one lease: it
    ends when an answer excepts others than the one before, when a voter comes with another journal,
    when one that granted none of them grants, and when one of them is led no more.
    """
    leader, follower = make_pair(ONE, TWO)
    ack = exchange(leader, follower, later(1))
    assert ack.is_granting
    shared = leader.shared_lease(ONE)
    assert shared is not None
    assert shared is leader.shared_lease(TWO)
    assert shared.until == leader.lease_until(ONE, later(2)) == TIMING.lease_from(later(1))
    exchange(leader, follower, later(101))
    assert shared.until == TIMING.lease_from(later(101))
    # Another one is begun: it is granted by nobody yet, and changes nothing for the others.
    lead(leader, THREE, later(102))
    assert leader.shared_lease(THREE) is not shared
    exchange(leader, follower, later(112))  # excepts it
    assert shared.until == LONG_AGO
    shared = leader.shared_lease(ONE)
    assert shared is not None
    assert shared.until == TIMING.lease_from(later(112))
    assert leader.shared_lease(THREE) is not shared
    leader.unlead(TWO, later(113))
    assert shared.until == LONG_AGO
    assert leader.shared_lease(TWO) is None


def test_nobody_has_a_lease_of_what_it_does_not_lead() -> None:
    """Asked all the same, it says so."""
    pulse = pulse_of(0)
    assert pulse.lease_until(ONE, START) <= START
    assert pulse.quorum_heard_at(ONE, START) <= START
    assert pulse.leader_heard_at(ONE) is None
    pulse.refuse(ONE, START)
    pulse.release(ONE)


# What it costs.


def test_heartbeats_flow_only_between_nodes_that_share_a_led_shard() -> None:
    """Sentence H7 of docs/protocol/heartbeats.md.

    H7. Two nodes exchange one heartbeat a beat, however many shards they share, and none while
    neither leads one of which the other is a voter.

    After the last one they end: when the follower knows, or when it does not answer.
    """
    leader, follower = make_pair(ONE)
    exchange(leader, follower, START)
    leader.unlead(ONE, later(50))
    beats = heartbeats(leader.tick(later(60)))
    assert beats.keys() == {B[0], C[0]}
    leader.received(*B, answer(follower, A, beats[B[0]], later(60)), later(60))
    assert heartbeats(leader.tick(later(160))).keys() == {C[0]}
    assert heartbeats(leader.tick(later(2_000))) == {}
    assert leader.wake_at is None
    assert roused(follower.tick(later(9_000))) == {ONE}
    assert follower.wake_at is None


def test_news_of_many_shards_goes_in_one_heartbeat() -> None:
    """Sentence H10 of docs/protocol/heartbeats.md.

    H10. A shard that is begun or given back is told at once, but never within 10 ms of the last
    heartbeat.

    At once, but never within `PULSE_GAP` of the last one; all peers share a timer.
    """
    leader, _ = make_pair(ONE)
    assert leader.wake_at == START
    heartbeats(leader.tick(START))
    for lineage in (TWO, THREE):
        lead(leader, lineage, later(1))
    assert leader.tick(later(2)) == []
    assert leader.wake_at == START + PULSE_GAP
    beats = heartbeats(leader.tick(Instant(START + PULSE_GAP)))
    assert [len(beat.led) for beat in beats.values()] == [2, 2]
    assert leader.wake_at == START + PULSE_GAP + BEAT


def test_a_peer_that_is_nearly_due_goes_along() -> None:
    """Two peers that were met at different times come to share one timer."""
    leader = pulse_of(0)
    leader.lead(ONE, EPOCH, View(0), (B,), 2, START)
    leader.tick(START)
    leader.lead(TWO, EPOCH, View(0), (C,), 2, later(80))
    assert heartbeats(leader.tick(later(80))).keys() == {B[0], C[0]}
    assert leader.wake_at == later(180)


def test_an_unanswered_list_is_not_sent_again_and_again() -> None:
    """A dead peer costs an empty heartbeat a beat."""
    leader, _ = make_pair(ONE, TWO)
    sizes = [len(heartbeats(leader.tick(later(at)))[B[0]].led) for at in range(0, 3_000, 100)]
    assert sizes == [2] + [0] * 29


def test_more_changes_than_shards_are_sent_as_the_whole_list() -> None:
    """Which is then the shorter one."""
    leader, follower = make_pair(ONE, TWO, THREE)
    exchange(leader, follower, START)
    leader.unlead(TWO, later(1))
    leader.unlead(THREE, later(1))
    beat = heartbeats(leader.tick(later(20)))[B[0]]
    assert (beat.base_version, len(beat.led), beat.unled) == (0, 1, ())
    assert answer(follower, A, beat, later(20)).is_granting


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 3)), max_size=40))
def test_a_list_has_one_hash_however_it_came_about(changes: list[tuple[int, int]]) -> None:
    """SHA-256 of the sorted records; a copy goes its own way."""
    leads, model = LeadList(), dict[Lineage, int]()
    for number, view in changes:
        lineage = Lineage(bytes([number]) * 16)
        before = leads.copy()
        frozen = before.digest()
        if view < 0:
            leads.remove(lineage)
            model.pop(lineage, None)
        else:
            leads.put(lineage, (EPOCH, View(view)))
            model[lineage] = view
        assert before.digest() == frozen
    records = b"".join(
        lineage + EPOCH.to_bytes(8, "big") + view.to_bytes(8, "big")
        for lineage, view in sorted(model.items())
    )
    assert leads.digest() == sha256(records).digest()
    assert dict.fromkeys(leads) == dict.fromkeys(model)
    assert len(leads) == len(leads.entries()) == len(model)
    assert all((shard.lineage in leads) for shard in leads.entries())


# What must fit together.


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"lease": 1_250 * MILLISECOND}, "below the election timeout of 1250 ms"),
        ({"election_max": 1_000 * MILLISECOND}, "below the election timeout"),
        ({"lease": 100 * MILLISECOND}, "too short for a heartbeat"),
        ({"heartbeat": 0}, "too short for a heartbeat"),
    ],
)
def test_times_that_do_not_fit_together_are_refused(change: dict[str, int], problem: str) -> None:
    """Sentence H4 of docs/protocol/heartbeats.md.

    H4. LEASE is below the lower bound of ELECTION, and that is checked at start.

    LEASE is below the lower bound of ELECTION, or a lease would outlive its leader's view.
    """
    with pytest.raises(UsageError, match=problem):
        Timing(**change)


@pytest.mark.parametrize("leader_rate", RATES)
@pytest.mark.parametrize("follower_rate", RATES)
def test_no_pair_of_clocks_lets_a_lease_outlive_its_promise(
    leader_rate: int, follower_rate: int
) -> None:
    """Sentence H5 of docs/protocol/heartbeats.md.

    H5. Two clocks differ in rate by at most 1 %, so a lease ends before the promises that it
    rests on.

    In true time, at the drift that is allowed: 1 % between two clocks.
    """
    lease = (LEASE - TIMING.drift) / leader_rate
    assert lease < LEASE / follower_rate
