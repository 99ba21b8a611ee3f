"""Lanes of heartbeats with one rule broken each, to see that the tests would notice."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from basenet.engine.events import Instant
from basenet.engine.lease import Leases, _Beat, _Grant, _Led, _Peer
from basenet.engine.limits import Timing
from basenet.engine.liveness import Member
from basenet.engine.promise import Promises, _Leader
from basenet.engine.pulse import Pulse
from basenet.units import JournalId, Lineage, PublicKeyBytes
from basenet.wire.message import Heartbeat, HeartbeatAck
from tests.engine.pulse_world import IdealSigner, is_signed_ideally


class NegativeList(Promises):
    """Who never heard of a shard does not except it."""

    def _settle(self, leader: _Leader, changed: Iterable[Lineage], now: Instant) -> list[Lineage]:
        changed = list(changed)
        moved = super()._settle(leader, changed, now)
        leader.exceptions -= set(changed) - self._follows.keys()
        return moved


class EveryJournal(Leases):
    """A grant counts by the key alone."""

    def _grants(self, lineage: Lineage, led: _Led) -> Iterator[_Grant]:
        for key, _ in led.followers:
            if grant := self._peers[key].grant_of(lineage, led.since):
                yield grant


class AnyVersion(Leases):
    """A grant counts for shards that were begun after the question."""

    def _grants(self, lineage: Lineage, led: _Led) -> Iterator[_Grant]:
        for key, journal_id in led.followers:
            grant = self._peers[key].grant_of(lineage, 0)
            if grant and self._peers[key].journal_id == journal_id:
                yield grant


class LeaseFromArrival(Leases):
    """The lease runs from when the grant arrived."""

    def _grant(self, peer: _Peer, ack: HeartbeatAck, beat: _Beat, now: Instant) -> None:
        super()._grant(peer, ack, beat, now)
        peer.grant = _Grant(now, now)


class NoExceptions(Leases):
    """What the follower excepts is not read."""

    def _grant(self, peer: _Peer, ack: HeartbeatAck, beat: _Beat, now: Instant) -> None:
        super()._grant(peer, ack, beat, now)
        peer.exceptions = frozenset()


class QuorumMinusOne(Leases):
    """One grant is invented."""

    def _grants(self, lineage: Lineage, led: _Led) -> Iterator[_Grant]:
        yield from super()._grants(lineage, led)
        sent_at = self._peers[led.followers[0][0]].sent_at
        yield _Grant(sent_at, sent_at)


class NothingOwedAfterBoot(Promises):
    """A restarted node takes it that it has promised nothing."""

    @property
    def booted_until(self) -> Instant:
        return Instant(0)


class StillGranting(Promises):
    """A shard whose view is being left is not excepted."""

    def refuse(self, lineage: Lineage) -> None:
        pass


class OtherRunReleases(Promises):
    """A list of another run of the leader ends what was promised."""

    def _enter_run(self, sender: Member, boot_nonce: bytes, now: Instant) -> _Leader:
        owed = {lineage: follow.owed for lineage, follow in self._follows.items()}
        before = self._leaders.get(sender[0])
        leader = super()._enter_run(sender, boot_nonce, now)
        if leader is not before:
            for lineage, until in owed.items():
                self._follows[lineage].owed = until
        return leader


class OlderListReleases(Promises):
    """A heartbeat older than the newest is believed."""

    def heard(self, sender: Member, heartbeat: Heartbeat, now: Instant) -> list[Lineage] | None:
        if sender[0] in self._leaders:
            self._leaders[sender[0]].number = 0
        return super().heard(sender, heartbeat, now)


class NoNonceInAnswer(Leases):
    """An answer counts whichever run of this node asked."""

    def acknowledged(
        self, sender: PublicKeyBytes, journal_id: JournalId, ack: HeartbeatAck, now: Instant
    ) -> None:
        mine, self._boot_nonce = self._boot_nonce, ack.boot_nonce
        super().acknowledged(sender, journal_id, ack, now)
        self._boot_nonce = mine


class SharedOverExceptions(Leases):
    """Shards share a lease though one of them is excepted, or is not any more."""

    def _part_by(self, sender: PublicKeyBytes, peer: _Peer, ack: HeartbeatAck, beat: _Beat) -> None:
        pass


class SharedOverJournals(Leases):
    """Shards share a lease though their voter has another journal."""

    _is_keeping = False

    def acknowledged(
        self, sender: PublicKeyBytes, journal_id: JournalId, ack: HeartbeatAck, now: Instant
    ) -> None:
        peer = self._peers.get(sender)
        self._is_keeping = peer is not None and peer.journal_id != journal_id
        super().acknowledged(sender, journal_id, ack, now)
        self._is_keeping = False

    def _part_from(self, key: PublicKeyBytes, *, is_granting: bool) -> None:
        if not self._is_keeping:
            super()._part_from(key, is_granting=is_granting)


class SharedOverFirstGrants(Leases):
    """Shards share a lease though somebody more grants some of them."""

    def _part_from(self, key: PublicKeyBytes, *, is_granting: bool) -> None:
        if not is_granting:
            super()._part_from(key, is_granting=is_granting)


class SharedOverEnds(Leases):
    """A shard that is led no more, or anew, shares the lease that it had."""

    def _part(self, followers: tuple[Member, ...]) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """What is broken, and a seed of `tests.engine.pulse_world.step` that showed it."""

    name: str
    seed: int
    leases: type[Leases] = Leases
    promises: type[Promises] = Promises
    leaves_view: bool = True
    timing: Timing | None = None
    boot_nonce: bytes | None = None

    def make(self, me: Member, run: int, timing: Timing, now: Instant) -> Pulse:
        """Return a lane with the fault."""
        pulse = Pulse(
            me=me,
            signer=IdealSigner(me[0]),
            verify=is_signed_ideally,
            boot_nonce=self.boot_nonce or run.to_bytes(8, "big"),
            timing=timing,
            now=now,
        )
        pulse._leases.__class__ = self.leases
        pulse._promises.__class__ = self.promises
        return pulse


MUTANTS = [
    Mutant(name="no boot nonce", seed=129, boot_nonce=b"same run"),
    Mutant(name="an answer of another run counts", seed=72, leases=NoNonceInAnswer),
    Mutant(name="negative list", seed=1, promises=NegativeList),
    Mutant(name="no drift", seed=35, timing=Timing(drift_per_mille=0, drift_fixed=0)),
    Mutant(name="grant by a non-voter", seed=15, leases=EveryJournal),
    Mutant(name="grant for another version", seed=12, leases=AnyVersion),
    Mutant(name="lease from arrival", seed=24, leases=LeaseFromArrival),
    Mutant(name="exceptions not read", seed=1, leases=NoExceptions),
    Mutant(name="quorum minus one", seed=0, leases=QuorumMinusOne),
    Mutant(name="nothing owed after boot", seed=10, promises=NothingOwedAfterBoot),
    Mutant(name="still granting", seed=9, promises=StillGranting),
    Mutant(name="another run's list releases", seed=193, promises=OtherRunReleases),
    Mutant(name="an older list releases", seed=1095, promises=OlderListReleases),
    Mutant(name="released but not left", seed=1099, leaves_view=False),
]

SHARING_MUTANTS = [
    Mutant(name="shared over exceptions", seed=0, leases=SharedOverExceptions),
    Mutant(name="shared over journals", seed=0, leases=SharedOverJournals),
    Mutant(name="shared over first grants", seed=0, leases=SharedOverFirstGrants),
    Mutant(name="shared over ends", seed=0, leases=SharedOverEnds),
]
