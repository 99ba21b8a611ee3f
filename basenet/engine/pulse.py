"""The lane of heartbeats of a node: who leads what, who granted it, and who is silent (Q7, Q16).

Theory of operation
===================

One `Pulse` serves all shards of a node; replicas call it as their `Liveness`. Two nodes exchange
heartbeats only while one of them leads a shard of which the other is a voter, and then one per
beat, however many shards there are. An idle shard costs one entry in a list and no work at all.

The lane has no `Persist`: nothing here ever waits for a journal, and nothing here needs one. What
a restart forgets is made good by time (`engine.promise`) and by the boot nonce (`engine.lease`).
Leases fence the application; the safety of the chain never rests on them.

The driver calls `tick` when `wake_at` has come, and reads `wake_at` again after every step of a
replica, since a shard that begins or ends is told to its followers at once. It performs the
effects in order, beside those of the shards, never behind them:

`SendPulse`
    is sent, or dropped where there is no connection: every heartbeat makes good for lost ones.
`Rouse`
    names shards for which something changed that a replica cannot know by itself: its leader was
    not heard for the lower bound of ELECTION, or no longer says that it leads, another node says
    so, or a quorum was lost. The driver gives a `Ticked` to the replicas that it has of them.

*The clock* must run while the machine sleeps (CLOCK_BOOTTIME; P18), and two nodes' clocks may
differ in rate by at most the drift of `Timing`. A node whose journal does not answer must stop its
heartbeats: its driver then drops them.
"""

from dataclasses import dataclass

from basenet.engine.events import Instant
from basenet.engine.leadlist import Term
from basenet.engine.lease import Leases, SharedLease, Verify, hash_exceptions
from basenet.engine.limits import Timing
from basenet.engine.liveness import Member
from basenet.engine.promise import Promises
from basenet.units import Epoch, JournalId, Lineage, PublicKeyBytes, View
from basenet.wire.message import Heartbeat, HeartbeatAck
from basenet.wire.signature import AnySigner
from basenet.wire.tuples import BOOT_NONCE_BYTES, acknowledgement


@dataclass(frozen=True, slots=True, kw_only=True)
class SendPulse:
    """Send this to a node, in the lane of heartbeats."""

    to: PublicKeyBytes
    message: Heartbeat | HeartbeatAck


@dataclass(frozen=True, slots=True, kw_only=True)
class Rouse:
    """Give a `Ticked` to the replicas of these lineages, where there are any. Never empty."""

    lineages: tuple[Lineage, ...]


PulseEffect = SendPulse | Rouse


class Pulse:
    """The heartbeats, grants and promises of one run of one node; implements `Liveness`.

    ``boot_nonce``: 8 random bytes that no other run of this node has.
    """

    def __init__(
        self,
        *,
        me: Member,
        signer: AnySigner,
        verify: Verify,
        boot_nonce: bytes,
        timing: Timing,
        now: Instant,
    ) -> None:
        assert len(boot_nonce) == BOOT_NONCE_BYTES, "a boot nonce of another length"
        assert signer.public == me[0], "a signer with another key"
        self._me = me[0]
        self._signer = signer
        self._leases = Leases(me=me[0], verify=verify, boot_nonce=boot_nonce, timing=timing)
        self._promises = Promises(timing=timing, now=now)

    # What the replicas say.

    def lead(  # noqa: PLR0917  (the facts of one leadership, as `Liveness` has them)
        self,
        lineage: Lineage,
        epoch: Epoch,
        view: View,
        followers: tuple[Member, ...],
        quorum: int,
        now: Instant,
    ) -> None:
        """Begin to lead: the shard stands in the lists that go to ``followers`` (all but me)."""
        self._leases.lead(lineage, (epoch, view), followers, quorum, now)

    def unlead(self, lineage: Lineage, now: Instant) -> None:
        """Stop leading: the lease is over from now, and the next heartbeat ends the promises."""
        self._leases.unlead(lineage, now)

    def follow(
        self, lineage: Lineage, epoch: Epoch, view: View, leader: Member, now: Instant
    ) -> None:
        """Grant the lineage to the leader of (epoch, view), from its next heartbeat on."""
        self._promises.follow(lineage, (epoch, view), leader, now)

    def refuse(self, lineage: Lineage, now: Instant) -> None:  # noqa: ARG002  (of `Liveness`)
        """Grant the lineage to nobody from now; promises given stand."""
        self._promises.refuse(lineage)

    def release(self, lineage: Lineage) -> None:
        """Forget the promises given for the lineage: its leader durably left the view.

        What may have been promised before a restart stays promised.
        """
        self._promises.release(lineage)

    # What the replicas ask.

    def lease_until(self, lineage: Lineage, now: Instant) -> Instant:  # noqa: ARG002  (of `Liveness`)
        """Return until when a quorum promised to enter no other view; the past without a lease."""
        return self._leases.lease_until(lineage)

    def shared_lease(self, lineage: Lineage) -> SharedLease | None:
        """Return the lease that a led shard has in common with others; None while it has its own.

        No replica asks for it, but whoever keeps all shards of a node writable.
        """
        return self._leases.shared_lease(lineage)

    def promised_until(self, lineage: Lineage) -> Instant:
        """Return until when this node promised to enter no other view of the lineage."""
        promised = self._promises.promised_until(lineage)
        if self._leases.needs_no_promise(lineage):
            return promised
        return max(promised, self._promises.booted_until)

    def quorum_heard_at(self, lineage: Lineage, now: Instant) -> Instant:
        """Return when a quorum last granted a led shard, at first when it began to be led."""
        return self._leases.quorum_heard_at(lineage, now)

    def leader_heard_at(self, lineage: Lineage) -> Instant | None:
        """Return when the followed leader last said that it leads (epoch, view); None: never."""
        return self._promises.leader_heard_at(lineage)

    def claimed(self, lineage: Lineage) -> tuple[Term, PublicKeyBytes] | None:
        """Return the highest (epoch, view) in which a node says that it leads, and its key.

        A claim of whoever sent it and no more: good enough to ask that node what it knows.
        """
        return self._promises.claimed(lineage)

    def followed(self, leader: PublicKeyBytes) -> tuple[Lineage, ...]:
        """Return the shards that follow ``leader``: for them a `PeerLost` is news."""
        return self._promises.followed(leader)

    # What the driver does.

    @property
    def wake_at(self) -> Instant | None:
        """When `tick` has something to do; None: not before something else happens."""
        return min(
            (at for at in (self._leases.wake_at, self._promises.wake_at) if at is not None),
            default=None,
        )

    def due_at(self, key: PublicKeyBytes) -> Instant | None:
        """Return when the next heartbeat to ``key`` is due; None while none goes there."""
        return self._leases.due_at(key)

    def tick(self, now: Instant) -> list[PulseEffect]:
        """Return the heartbeats that are due, and who is to be roused."""
        effects: list[PulseEffect] = [
            SendPulse(to=key, message=heartbeat) for key, heartbeat in self._leases.beat(now)
        ]
        lost = self._leases.find_lost(now) + self._promises.find_silent(now)
        return effects + _rouse(lost)

    def received(
        self,
        sender: PublicKeyBytes,
        journal_id: JournalId,
        message: Heartbeat | HeartbeatAck,
        now: Instant,
    ) -> list[PulseEffect]:
        """Take in what ``sender`` said, whom the connection names; return what follows."""
        if isinstance(message, HeartbeatAck):
            self._leases.acknowledged(sender, journal_id, message, now)
            return []
        moved = self._promises.heard((sender, journal_id), message, now)
        if moved is None:
            return []
        return [SendPulse(to=sender, message=self._acknowledge(sender, message)), *_rouse(moved)]

    def _acknowledge(self, sender: PublicKeyBytes, heartbeat: Heartbeat) -> HeartbeatAck:
        version, digest, is_granting, exceptions = self._promises.answer(sender, heartbeat)
        signed = acknowledgement(
            self._me,
            sender,
            heartbeat.boot_nonce,
            heartbeat.number,
            version,
            digest,
            int(is_granting),
            hash_exceptions(exceptions),
        )
        return HeartbeatAck(
            boot_nonce=heartbeat.boot_nonce,
            number=heartbeat.number,
            held_version=version,
            list_hash=digest,
            is_granting=is_granting,
            exceptions=exceptions,
            signature=self._signer.sign(signed),
        )


def _rouse(lineages: list[Lineage]) -> list[PulseEffect]:
    return [Rouse(lineages=tuple(dict.fromkeys(lineages)))] if lineages else []
