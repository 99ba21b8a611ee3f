"""The follower's half of the lane of heartbeats: what this node promised, and to whom.

Theory of operation
===================

Each leader's heartbeat names its lead list. A node that holds that list in full answers with a
*grant* for all of it, except the shards that it does not follow there: those of which it never
heard, those in which it is in another (epoch, view), those that it left. So whoever knows nothing
grants nothing (Q7). To grant is to promise: no other view of the shard is entered for one LEASE
from the answer. The answer excepts at most `EXCEPTIONS_MAX` shards, else it grants none.

*A promise* ends by time; or when a later heartbeat **of the same run** of its leader no longer
names the shard in that (epoch, view). For the leader had ended its lease before it sent that, and
what it begins again is named in a later version, which no older answer grants. A list of another
run ends nothing: it may be older, or of the time after a crash. Or a promise ends with the message
`Release` of a leader that durably left the view before it sent that; one that could still resume
the view after a crash would lose what it relies on to a message that comes late.

A node that restarted has forgotten what it promised, so it counts as having promised everything
until one LEASE after its boot. A promise is of the lineage: it survives an epoch switch.

Nothing is done per shard in a heartbeat that says nothing new. ``granted_at`` of a leader's list
stands for all shards granted by it; a shard's own ``given`` is written when it leaves that list.
"""

from collections.abc import Iterable
from typing import Final

from basenet.engine.events import Instant
from basenet.engine.leadlist import LeadList, Term, make_record
from basenet.engine.lease import LONG_AGO
from basenet.engine.limits import Timing
from basenet.engine.liveness import Member
from basenet.units import ZERO_HASH, Lineage, PublicKeyBytes
from basenet.wire.message import EXCEPTIONS_MAX, Heartbeat

NEVER: Final = LONG_AGO


class _Follow:
    """Whom this node follows in one shard, and what it promised there.

    ``record``: what its leader's list must say. ``given``: until when to this leader's present
    run; ``owed``: until when to older leaders and runs. ``heard_at``: when this leader last named
    the shard, where it names it no more.
    """

    __slots__ = ("given", "heard_at", "is_granting", "leader", "owed", "record")

    def __init__(self, record: bytes, leader: Member, owed: Instant) -> None:
        self.record = record
        self.leader = leader
        self.owed = owed
        self.given = NEVER
        self.heard_at: Instant | None = None
        self.is_granting = True


class _Leader:
    """One run of one node that sends heartbeats, and its list as held here.

    ``exceptions``: the listed shards that are not granted. ``number``: of its newest heartbeat.
    """

    __slots__ = (
        "boot_nonce",
        "exceptions",
        "granted_at",
        "heard_at",
        "is_silent",
        "leads",
        "member",
        "number",
    )

    def __init__(self, member: Member, boot_nonce: bytes) -> None:
        self.member = member
        self.boot_nonce = boot_nonce
        self.number = 0
        self.leads = LeadList()
        self.exceptions: set[Lineage] = set()
        self.granted_at: Instant | None = None
        self.heard_at: Instant | None = None
        self.is_silent = True  # nothing was heard that could cease

    @property
    def held_hash(self) -> bytes:
        """The hash of the list that is held in full, zeros for none."""
        return self.leads.digest() if self.leads.version else ZERO_HASH


class Promises:
    """What this node granted to the leaders of its shards."""

    def __init__(self, *, timing: Timing, now: Instant) -> None:
        self._timing = timing
        self._booted_until = timing.promise_from(now)
        self._follows: dict[Lineage, _Follow] = {}
        self._leaders: dict[PublicKeyBytes, _Leader] = {}
        # Shards whose leader does not name them, yet or any more, and when that is too late; times
        # ascend.
        self._unheard: dict[Lineage, Instant] = {}

    # What the replicas say and ask.

    def follow(self, lineage: Lineage, term: Term, leader: Member, now: Instant) -> None:
        """Grant ``lineage`` to ``leader`` in ``term`` from its next heartbeat on."""
        before, record = self._follows.get(lineage), make_record(lineage, term)
        if before is not None and (before.record, before.leader) == (record, leader):
            before.is_granting = True
        else:
            # An older promise stands beside the new one until it ends.
            owed = NEVER if before is None else self._owed(lineage, before)
            self._follows[lineage] = _Follow(record, leader, owed)
        self._except_anew(lineage)
        self._unheard.pop(lineage, None)
        if not self._is_named(lineage, self._follows[lineage]):
            self._expect(lineage, now)

    def refuse(self, lineage: Lineage) -> None:
        """Grant ``lineage`` to nobody; what was promised stands."""
        follow = self._follows.get(lineage)
        self._unheard.pop(lineage, None)
        if follow is not None:
            follow.given = self._given(lineage, follow)
            follow.is_granting = False
            self._except_anew(lineage)

    def release(self, lineage: Lineage) -> None:
        """Grant ``lineage`` to nobody, and owe nothing of it to anybody."""
        self.refuse(lineage)
        follow = self._follows.get(lineage)
        if follow is not None:
            follow.given = follow.owed = NEVER

    def promised_until(self, lineage: Lineage) -> Instant:
        """Return until when no other view of ``lineage`` may be entered, but for boot."""
        follow = self._follows.get(lineage)
        return NEVER if follow is None else self._owed(lineage, follow)

    @property
    def booted_until(self) -> Instant:
        """Until when this node may have promised anything before it restarted."""
        return self._booted_until

    def leader_heard_at(self, lineage: Lineage) -> Instant | None:
        """Return when the followed leader last named ``lineage`` in the term followed."""
        follow = self._follows.get(lineage)
        if follow is None:
            return None
        if self._is_named(lineage, follow):
            return self._leaders[follow.leader[0]].heard_at
        return follow.heard_at

    def followed(self, leader: PublicKeyBytes) -> tuple[Lineage, ...]:
        """Return the shards in which this node follows ``leader``."""
        return tuple(
            lineage for lineage, follow in self._follows.items() if follow.leader[0] == leader
        )

    def claimed(self, lineage: Lineage) -> tuple[Term, PublicKeyBytes] | None:
        """Return the highest term in which a node says that it leads ``lineage``, and its key."""
        claims = (
            (term, key)
            for key, leader in self._leaders.items()
            if (term := leader.leads.get(lineage)) is not None
        )
        return max(claims, default=None)

    def _is_named(self, lineage: Lineage, follow: _Follow) -> bool:
        """Return whether the list of its leader names the shard as it is followed."""
        leader = self._leaders.get(follow.leader[0])
        return (
            leader is not None
            and leader.leads.record(lineage) == follow.record
            and leader.member == follow.leader
        )

    def _given(self, lineage: Lineage, follow: _Follow) -> Instant:
        """Return until when the shard is promised to its leader's present run."""
        if not (follow.is_granting and self._is_named(lineage, follow)):
            return follow.given
        granted_at = self._leaders[follow.leader[0]].granted_at
        if granted_at is None:
            return follow.given
        return max(follow.given, self._timing.promise_from(granted_at))

    def _owed(self, lineage: Lineage, follow: _Follow) -> Instant:
        return max(follow.owed, self._given(lineage, follow))

    def _except_anew(self, lineage: Lineage) -> None:
        """Write down with each leader that lists the shard whether it is granted to it."""
        follow = self._follows[lineage]
        is_granted = follow.is_granting and self._is_named(lineage, follow)
        for leader in self._leaders.values():
            if lineage not in leader.leads or (is_granted and leader.member == follow.leader):
                leader.exceptions.discard(lineage)
            else:
                leader.exceptions.add(lineage)

    def _expect(self, lineage: Lineage, now: Instant) -> None:
        """Have the shard looked at unless its leader names it within the lower bound of ELECTION.

        A replica that heard of its leader a moment ago does nothing when it learns that it is not
        named any more, and an idle one has no timer: without this it would wait for ever.
        """
        self._unheard.pop(lineage, None)
        self._unheard[lineage] = Instant(now + self._timing.election_min)

    # What time does.

    @property
    def wake_at(self) -> Instant | None:
        """When `find_silent` has something to do; None: never."""
        due = [self._silent_at(leader) for leader in self._leaders.values() if not leader.is_silent]
        due += [next(iter(self._unheard.values()))] if self._unheard else []
        return min(due, default=None)

    def find_silent(self, now: Instant) -> list[Lineage]:
        """Return the shards whose leader was not heard for the lower bound of ELECTION.

        Each silence is told once.
        """
        silent: dict[Lineage, None] = {}
        for leader in self._leaders.values():
            if not leader.is_silent and self._silent_at(leader) <= now:
                leader.is_silent = True
                silent |= dict.fromkeys(leader.leads)
        while self._unheard and (first := next(iter(self._unheard))):
            if self._unheard[first] > now:
                break
            del self._unheard[first]
            silent[first] = None
        return [lineage for lineage in silent if lineage in self._follows]

    def _silent_at(self, leader: _Leader) -> Instant:
        assert leader.heard_at is not None, "who was never heard cannot fall silent"
        return Instant(leader.heard_at + self._timing.election_min)

    # What leaders say.

    def heard(self, sender: Member, heartbeat: Heartbeat, now: Instant) -> list[Lineage] | None:
        """Take in a heartbeat; return the shards of which it said something that matters.

        None for one that is older than what was heard: it is not answered.
        """
        leader = self._enter_run(sender, heartbeat.boot_nonce, now)
        if heartbeat.number <= leader.number:
            return None
        leader.number = heartbeat.number
        leads = self._read_list(leader, heartbeat)
        if leads is None:
            return []
        changed = _list_changes(leader.leads, leads, heartbeat)
        self._remember(leader, changed)
        leader.leads = leads
        moved = self._settle(leader, changed, now)
        leader.heard_at, leader.is_silent = now, not leads
        if len(leader.exceptions) <= EXCEPTIONS_MAX:
            leader.granted_at = now
        return moved

    def answer(
        self, sender: PublicKeyBytes, heartbeat: Heartbeat
    ) -> tuple[int, bytes, bool, tuple[Lineage, ...]]:
        """Return what is said to a heartbeat that was heard.

        The version and hash of the list that is held, whether it is granted, and the exceptions.
        """
        leader = self._leaders[sender]
        held = (leader.leads.version, leader.held_hash)
        is_held = held == (heartbeat.list_version, heartbeat.list_hash)
        is_granting = is_held and len(leader.exceptions) <= EXCEPTIONS_MAX
        return *held, is_granting, tuple(sorted(leader.exceptions)) if is_granting else ()

    def _enter_run(self, sender: Member, boot_nonce: bytes, now: Instant) -> _Leader:
        """Return the sender's run; what was promised to another run of it stays owed."""
        leader = self._leaders.get(sender[0])
        if leader is not None and (leader.member, leader.boot_nonce) == (sender, boot_nonce):
            return leader
        if leader is not None:
            for lineage, follow in self._follows.items():
                if follow.leader[0] == sender[0]:
                    if self._is_named(lineage, follow):
                        follow.heard_at = leader.heard_at
                        self._expect(lineage, now)
                    follow.owed, follow.given = self._owed(lineage, follow), NEVER
        leader = self._leaders[sender[0]] = _Leader(sender, boot_nonce)
        return leader

    def _read_list(self, leader: _Leader, heartbeat: Heartbeat) -> LeadList | None:
        """Return the list that the heartbeat names; None if it is not known in full."""
        if heartbeat.list_version == leader.leads.version:
            return leader.leads if heartbeat.list_hash == leader.held_hash else None
        if heartbeat.base_version == 0:
            leads = LeadList()
        elif heartbeat.base_version == leader.leads.version:
            leads = leader.leads.copy()
        else:
            return None
        leads.apply(heartbeat.led, heartbeat.unled)
        leads.version = heartbeat.list_version
        return leads if leads.digest() == heartbeat.list_hash else None

    def _remember(self, leader: _Leader, changed: Iterable[Lineage]) -> None:
        """Write down what the old list says of the shards that change in it."""
        for lineage in changed:
            follow = self._follows.get(lineage)
            if follow is not None and follow.leader == leader.member:
                follow.given = self._given(lineage, follow)
                if self._is_named(lineage, follow):
                    follow.heard_at = leader.heard_at

    def _settle(self, leader: _Leader, changed: Iterable[Lineage], now: Instant) -> list[Lineage]:
        """Judge the shards that the new list says something else of; return those that matter."""
        moved = []
        for lineage in changed:
            leader.exceptions.discard(lineage)
            follow = self._follows.get(lineage)
            if follow is not None and follow.leader == leader.member:
                if self._is_named(lineage, follow):
                    self._unheard.pop(lineage, None)
                    if not follow.is_granting:
                        leader.exceptions.add(lineage)
                    continue
                # The leader gave its lease back, and says so itself in the same run.
                follow.given = NEVER
                self._expect(lineage, now)
            if lineage in leader.leads:
                leader.exceptions.add(lineage)
            moved.append(lineage)
        return moved


def _list_changes(old: LeadList, new: LeadList, heartbeat: Heartbeat) -> list[Lineage]:
    """Return the shards of which ``new`` says something else than ``old``."""
    if new is old:
        return []
    if heartbeat.base_version:
        named = dict.fromkeys([*(shard.lineage for shard in heartbeat.led), *heartbeat.unled])
    else:
        named = dict.fromkeys([*old, *new])
    return [lineage for lineage in named if old.record(lineage) != new.record(lineage)]
