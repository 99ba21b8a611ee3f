"""The leader's half of the lane of heartbeats: which shards this node leads, and until when it may.

Theory of operation
===================

To every node that is a voter of some shard led here goes one `Heartbeat` in every beat, however
many shards there are. It names the version and hash of a *lead list*: the whole list the first
time, afterwards what changed. Its acknowledgement grants all shards of that list at once, except
those that it names.

A grant is the promise of its giver to enter no other view for one LEASE after it gave it. So the
*lease* of a shard runs from when the newest heartbeat was **sent** that a quorum granted, less the
drift of clocks. What makes a grant count:

1. The acknowledgement is signed, and of this run of this node: the boot nonce is in it. One from
   before a crash never counts, though its number may be in use again (mistake 12).
2. It names the version and hash of the list that the heartbeat of that number carried. An
   acknowledgement for another list, or for none, grants nothing (Q7).
3. The shard stood in that version in its present (epoch, view): each led shard knows *since* which
   version. So a late answer never grants what was begun, or begun again, after the question.
4. The giver is a voter by key *and* journal id (P23), and did not except the shard.

Only the newest granting answer of a peer counts. A shard that it excepts keeps the grant that it
had before, which ends by itself. Nothing here is done per shard in a beat: the questions
`lease_until` and `quorum_heard_at` compute when asked.

Shards with the same followers and quorum that the same ones of these grant by their newest answer
have the same lease, and may be a thousand. Whoever keeps them all writable asks for their
`SharedLease` and asks that one question from then on. It ends for all of them, for good, with
whatever could make one of them differ: an answer that excepts others than the one before, a voter
with another journal, the first grant of whoever granted none of them, and one that is led no more.
Then each is asked about again.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from basenet.engine.events import Instant
from basenet.engine.leadlist import LeadList, Term
from basenet.engine.limits import PULSE_GAP, Timing
from basenet.engine.liveness import Member
from basenet.units import JournalId, Lineage, PublicKeyBytes
from basenet.wire.message import Heartbeat, HeartbeatAck
from basenet.wire.tuples import acknowledgement

FOREVER: Final = Instant(2**63 - 1)
LONG_AGO: Final = Instant(0)

Verify = Callable[[bytes, bytes, bytes], bool]
"""Whether ``public`` made ``signature`` for ``message``."""


@dataclass(frozen=True, slots=True)
class _Grant:
    """When the heartbeat was sent that was granted, and when the grant arrived."""

    sent_at: Instant
    heard_at: Instant


@dataclass(frozen=True, slots=True)
class _Beat:
    """A heartbeat that is not answered yet."""

    sent_at: Instant
    version: int
    digest: bytes


class SharedLease:
    """The lease of many led shards at once. Made by `Leases.shared_lease`."""

    __slots__ = ("_leases", "_seen", "_until", "followers", "granting", "quorum")

    def __init__(
        self,
        leases: "Leases",
        followers: tuple[Member, ...],
        quorum: int,
        granting: tuple[PublicKeyBytes, ...],
    ) -> None:
        """``granting``: those of ``followers`` whose newest grants count for all the shards."""
        self.followers = followers
        self.quorum = quorum
        self.granting = granting
        self._leases: Leases | None = leases
        self._seen = -1
        self._until = LONG_AGO

    @property
    def until(self) -> Instant:
        """What `Leases.lease_until` returns for each of the shards; the past once they differ."""
        if self._leases is None:
            return LONG_AGO
        changes = self._leases.changes
        if self._seen != changes:
            self._seen = changes
            self._until = self._leases.granted_until(self.granting, self.quorum)
        return self._until

    def end(self) -> None:
        """Stand for no shard any more."""
        self._leases = None


class _Led:
    """A shard that this node leads.

    ``sent_at``, ``heard_at``: of the newest grants of a quorum as they were at ``seen``, a count of
    changes: a busy shard asks for them far more often than anybody grants anything.
    """

    __slots__ = ("followers", "heard_at", "led_at", "quorum", "seen", "sent_at", "since", "term")

    def __init__(
        self, term: Term, followers: tuple[Member, ...], quorum: int, since: int, now: Instant
    ) -> None:
        self.term = term
        self.followers = followers
        self.quorum = quorum
        self.since = since
        self.led_at = now
        self.seen = -1
        self.sent_at: Instant | None = None
        self.heard_at: Instant | None = None


class _Peer:
    """What goes to one follower, and what it answered.

    ``base``: the version that it holds as far as is known; sending makes it hopeful, a refusal
    sets it back. ``confirmed``: the last version that it said it holds, and ``changed`` what
    changed since then. ``refused_from``: answers to heartbeats below this number say nothing new
    about what it holds. ``quiet_from``: since when its silence counts.
    """

    __slots__ = (
        "base",
        "beats",
        "changed",
        "changed_at",
        "confirmed",
        "confirmed_digest",
        "earlier",
        "exceptions",
        "grant",
        "granted_number",
        "granted_version",
        "is_silent",
        "journal_id",
        "leads",
        "next_at",
        "quiet_from",
        "refused_from",
        "sent_at",
    )

    def __init__(self, now: Instant) -> None:
        self.leads = LeadList()
        self.beats: dict[int, _Beat] = {}
        self.base = 0
        self.confirmed = 0
        self.confirmed_digest = b""
        self.changed: dict[Lineage, int] = {}
        self.changed_at = now
        self.refused_from = 0
        self.next_at = now
        self.sent_at = Instant(now - PULSE_GAP)
        self.is_silent = False
        self.journal_id: JournalId | None = None
        self.forget_grants(now)

    def forget_grants(self, now: Instant) -> None:
        """Start anew: nothing of what was granted counts."""
        self.grant: _Grant | None = None
        self.granted_number = 0
        self.granted_version = 0
        self.exceptions: frozenset[Lineage] = frozenset()
        self.earlier: dict[Lineage, _Grant] = {}
        self.quiet_from = now

    def grant_of(self, lineage: Lineage, since: int) -> _Grant | None:
        """Return the newest grant for a shard that is in the list since the version ``since``."""
        if self.granted_version < since:
            return None
        if lineage in self.exceptions:
            return self.earlier.get(lineage)
        return self.grant

    @property
    def is_settled(self) -> bool:
        """Whether it knows that nothing is led here any more."""
        return not self.leads and self.confirmed == self.leads.version


_Alike = tuple[tuple[Member, ...], int, tuple[PublicKeyBytes, ...]]
"""What shards have in common whose lease is the same: followers, quorum, and who grants them."""


class Leases:
    """The shards that this node leads, and the grants of their followers."""

    def __init__(
        self, *, me: PublicKeyBytes, verify: Verify, boot_nonce: bytes, timing: Timing
    ) -> None:
        self._me = me
        self._verify = verify
        self._boot_nonce = boot_nonce
        self._timing = timing
        self._number = 0
        self._version = 0
        self._changes = 0
        self._led: dict[Lineage, _Led] = {}
        self._shared: dict[_Alike, SharedLease] = {}
        self._peers: dict[PublicKeyBytes, _Peer] = {}
        # Shards whose quorum is looked at once, at these times; the times ascend.
        self._watched: dict[Lineage, Instant] = {}

    # What the replicas say and ask.

    def lead(
        self, lineage: Lineage, term: Term, followers: tuple[Member, ...], quorum: int, now: Instant
    ) -> None:
        """Begin to lead ``lineage`` in ``term``; to say it again changes nothing."""
        before = self._led.get(lineage)
        if before is not None and (before.term, before.followers) == (term, followers):
            if before.quorum != quorum:
                self._part(followers)
            before.quorum = quorum
            return
        self.unlead(lineage, now)
        self._version += 1
        self._led[lineage] = _Led(term, followers, quorum, self._version, now)
        for key, _ in followers:
            peer = self._peers.get(key)
            if peer is None:
                peer = self._peers[key] = _Peer(now)
            peer.leads.put(lineage, term)
            self._note_change(peer, lineage, now)
        if quorum > 1:
            self._watch(lineage, now)

    def unlead(self, lineage: Lineage, now: Instant) -> None:
        """Stop leading ``lineage``, and tell its followers soon."""
        led = self._led.pop(lineage, None)
        if led is None:
            return
        self._version += 1
        self._watched.pop(lineage, None)
        self._part(led.followers)
        for key, _ in led.followers:
            peer = self._peers[key]
            peer.leads.remove(lineage)
            peer.earlier.pop(lineage, None)
            self._note_change(peer, lineage, now)

    def lease_until(self, lineage: Lineage) -> Instant:
        """Return until when a quorum promised to enter no other view; `LONG_AGO` without one."""
        led = self._led.get(lineage)
        if led is None:
            return LONG_AGO
        if led.quorum == 1:
            return FOREVER
        self._look(lineage, led)
        return LONG_AGO if led.sent_at is None else self._timing.lease_from(led.sent_at)

    def shared_lease(self, lineage: Lineage) -> SharedLease | None:
        """Return the lease that ``lineage`` has in common with others; None while it has its own.

        It is the same object for all shards that are alike.
        """
        led = self._led.get(lineage)
        if led is None:
            return None
        granting: list[PublicKeyBytes] = []
        for key, journal_id in led.followers:
            peer = self._peers[key]
            grant = peer.grant_of(lineage, led.since)
            if grant is None or peer.journal_id != journal_id:
                continue
            if grant is not peer.grant:
                return None  # an earlier one, of a shard that is excepted
            granting.append(key)
        alike = (led.followers, led.quorum, tuple(granting))
        shared = self._shared.get(alike)
        if shared is None:
            shared = self._shared[alike] = SharedLease(self, *alike)
        return shared

    @property
    def changes(self) -> int:
        """A count of what may have changed a lease that is shared."""
        return self._changes

    def granted_until(self, granting: Iterable[PublicKeyBytes], quorum: int) -> Instant:
        """Return until when the newest grants of ``granting`` are a lease with ``quorum``."""
        if quorum == 1:
            return FOREVER
        grants = [self._peers[key].grant for key in granting]
        sent_at = _newest([grant.sent_at for grant in grants if grant is not None], quorum - 1)
        return LONG_AGO if sent_at is None else self._timing.lease_from(sent_at)

    def _part(self, followers: tuple[Member, ...]) -> None:
        """End the leases that shards with these followers share: one of them may differ now."""
        for alike in [alike for alike in self._shared if alike[0] == followers]:
            self._shared.pop(alike).end()

    def _part_from(self, key: PublicKeyBytes, *, is_granting: bool) -> None:
        """End the shared leases of who follows here; all but those that it grants anyway."""
        for alike in list(self._shared):
            followers, _, granting = alike
            if key in dict(followers) and not (is_granting and key in granting):
                self._shared.pop(alike).end()

    def quorum_heard_at(self, lineage: Lineage, now: Instant) -> Instant:
        """Return when a quorum last granted ``lineage``, or when this node began to lead it."""
        led = self._led.get(lineage)
        if led is None:
            return LONG_AGO
        if led.quorum == 1:
            return now
        self._look(lineage, led)
        return led.led_at if led.heard_at is None else led.heard_at

    def needs_no_promise(self, lineage: Lineage) -> bool:
        """Return whether this node alone is the quorum of ``lineage``."""
        led = self._led.get(lineage)
        return led is not None and led.quorum == 1

    def _look(self, lineage: Lineage, led: _Led) -> None:
        """See anew what a quorum granted, if anything has changed."""
        if led.seen == self._changes:
            return
        led.seen = self._changes
        grants = list(self._grants(lineage, led))
        led.sent_at = _newest([grant.sent_at for grant in grants], led.quorum - 1)
        led.heard_at = _newest([grant.heard_at for grant in grants], led.quorum - 1)

    def _grants(self, lineage: Lineage, led: _Led) -> Iterable[_Grant]:
        for key, journal_id in led.followers:
            peer = self._peers[key]
            grant = peer.grant_of(lineage, led.since)
            if grant is not None and peer.journal_id == journal_id:
                yield grant

    def _note_change(self, peer: _Peer, lineage: Lineage, now: Instant) -> None:
        peer.leads.version = self._version
        peer.changed.pop(lineage, None)
        peer.changed[lineage] = self._version
        peer.changed_at = now
        peer.next_at = min(peer.next_at, Instant(peer.sent_at + PULSE_GAP))

    def _watch(self, lineage: Lineage, now: Instant) -> None:
        self._watched.pop(lineage, None)
        self._watched[lineage] = Instant(now + self._timing.election_min)

    # What time does.

    @property
    def wake_at(self) -> Instant | None:
        """When `beat` or `find_lost` has something to do; None: while nothing is led, never."""
        due = [peer.next_at for peer in self._peers.values()]
        due += [self._silent_at(peer) for peer in self._peers.values() if not peer.is_silent]
        due += [next(iter(self._watched.values()))] if self._watched else []
        return min(due, default=None)

    def due_at(self, key: PublicKeyBytes) -> Instant | None:
        """Return when the next heartbeat to ``key`` is due; None while none goes there."""
        peer = self._peers.get(key)
        return None if peer is None else peer.next_at

    def beat(self, now: Instant) -> list[tuple[PublicKeyBytes, Heartbeat]]:
        """Return the heartbeats that are due, by the key of who gets them."""
        self._drop_settled(now)
        if all(peer.next_at > now for peer in self._peers.values()):
            return []
        # Those that are nearly due go along, so that all peers come to share one timer.
        soon = now + self._timing.heartbeat // 4
        return [
            (key, self._make_heartbeat(peer, now))
            for key, peer in self._peers.items()
            if peer.next_at <= soon and peer.sent_at + PULSE_GAP <= now
        ]

    def _drop_settled(self, now: Instant) -> None:
        """Forget the peers with whom nothing is shared any more, once they know it or are gone."""
        patience = self._timing.election_max
        gone = [
            key
            for key, peer in self._peers.items()
            if peer.is_settled or (not peer.leads and peer.changed_at + patience <= now)
        ]
        for key in gone:
            del self._peers[key]

    def _make_heartbeat(self, peer: _Peer, now: Instant) -> Heartbeat:
        self._number += 1
        leads = peer.leads
        changed = [lineage for lineage, since in peer.changed.items() if since > peer.base]
        is_whole = peer.base == 0 or len(changed) > len(leads)
        heartbeat = Heartbeat(
            boot_nonce=self._boot_nonce,
            number=self._number,
            list_version=leads.version,
            list_hash=leads.digest(),
            base_version=0 if is_whole else peer.base,
            led=leads.entries()
            if is_whole
            else tuple(leads.entry(lineage) for lineage in changed if lineage in leads),
            unled=() if is_whole else tuple(lineage for lineage in changed if lineage not in leads),
        )
        peer.base = leads.version
        peer.sent_at = now
        peer.next_at = Instant(now + self._timing.heartbeat)
        # An answer that comes after a LEASE could give no lease any more.
        for number in [
            number
            for number, beat in peer.beats.items()
            if beat.sent_at + self._timing.lease <= now
        ]:
            del peer.beats[number]
        peer.beats[self._number] = _Beat(now, leads.version, heartbeat.list_hash)
        return heartbeat

    def find_lost(self, now: Instant) -> list[Lineage]:
        """Return the shards that were granted by no quorum for the lower bound of ELECTION.

        Each loss is told once. A quorum is lost when a peer falls silent, or in a shard of its own
        when it was begun or excepted: these are looked at, and no others.
        """
        lost: dict[Lineage, None] = {}
        for peer in self._peers.values():
            if not peer.is_silent and self._silent_at(peer) <= now:
                peer.is_silent = True
                lost |= dict.fromkeys(peer.leads)
        while self._watched and (first := next(iter(self._watched))):
            if self._watched[first] > now:
                break
            del self._watched[first]
            lost[first] = None
        limit = now - self._timing.election_min
        return [lineage for lineage in lost if self.quorum_heard_at(lineage, now) <= limit]

    def _silent_at(self, peer: _Peer) -> Instant:
        heard = peer.quiet_from if peer.grant is None else peer.grant.heard_at
        return Instant(heard + self._timing.election_min)

    # What followers answer.

    def acknowledged(
        self, sender: PublicKeyBytes, journal_id: JournalId, ack: HeartbeatAck, now: Instant
    ) -> None:
        """Take in an answer; one that does not fit what was asked changes nothing."""
        peer = self._peers.get(sender)
        if peer is None or ack.boot_nonce != self._boot_nonce:
            return
        beat = peer.beats.get(ack.number)
        if beat is None or not self._is_signed(sender, ack):
            return
        self._changes += 1
        if peer.journal_id != journal_id:
            peer.journal_id = journal_id
            peer.forget_grants(now)
            peer.is_silent = False
            self._part_from(sender, is_granting=False)
        if (ack.held_version, ack.list_hash) != (beat.version, beat.digest):
            self._send_anew(peer, ack)
            return
        self._confirm(peer, beat)
        if ack.is_granting and ack.number > peer.granted_number:
            self._part_by(sender, peer, ack, beat)
            self._grant(peer, ack, beat, now)

    def _part_by(self, sender: PublicKeyBytes, peer: _Peer, ack: HeartbeatAck, beat: _Beat) -> None:
        """End the shared leases of which a granting answer may leave out, or take in, a shard."""
        if peer.exceptions != frozenset(ack.exceptions):
            self._part_from(sender, is_granting=False)
        elif beat.version > peer.granted_version:
            self._part_from(sender, is_granting=True)

    def _is_signed(self, sender: PublicKeyBytes, ack: HeartbeatAck) -> bool:
        signed = acknowledgement(
            sender,
            self._me,
            ack.boot_nonce,
            ack.number,
            ack.held_version,
            ack.list_hash,
            int(ack.is_granting),
            hash_exceptions(ack.exceptions),
        )
        return self._verify(sender, ack.signature, signed)

    def _send_anew(self, peer: _Peer, ack: HeartbeatAck) -> None:
        """Go back to what the peer says it holds, where that is known, else to nothing."""
        if ack.number < peer.refused_from:
            return
        peer.refused_from = self._number + 1
        held = (ack.held_version, ack.list_hash)
        is_known = held == (peer.confirmed, peer.confirmed_digest)
        peer.base = peer.confirmed if is_known else 0

    def _confirm(self, peer: _Peer, beat: _Beat) -> None:
        if beat.version <= peer.confirmed:
            return
        peer.confirmed, peer.confirmed_digest = beat.version, beat.digest
        peer.changed = {
            lineage: version for lineage, version in peer.changed.items() if version > beat.version
        }

    def _grant(self, peer: _Peer, ack: HeartbeatAck, beat: _Beat, now: Instant) -> None:
        exceptions = frozenset(ack.exceptions)
        for lineage in exceptions - peer.exceptions:
            led = self._led.get(lineage)
            earlier = None if led is None else peer.grant_of(lineage, led.since)
            if earlier is not None:
                peer.earlier[lineage] = earlier
            if led is not None and led.quorum > 1:
                self._watch(lineage, now)
        for lineage in peer.exceptions - exceptions:
            peer.earlier.pop(lineage, None)
        peer.exceptions = exceptions
        peer.granted_number, peer.granted_version = ack.number, beat.version
        peer.grant = _Grant(beat.sent_at, now)
        peer.is_silent = False


def hash_exceptions(exceptions: Sequence[Lineage]) -> bytes:
    """Return the SHA-256 of the shards that an acknowledgement excepts, in its order."""
    return sha256(b"".join(exceptions)).digest()


def _newest(times: list[Instant], count: int) -> Instant | None:
    """Return the time that ``count`` of ``times`` reach, None when there are fewer."""
    return sorted(times, reverse=True)[count - 1] if count <= len(times) else None
