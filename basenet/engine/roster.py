"""Journals that came back from a backup: recognised by those who remember, before they can vote.

Theory of operation
===================

A voter's promises are worth as much as the journal that keeps them. A journal that was restored at
block level has its old id and has forgotten its newest votes; with it the voter could vote twice at
one height. Nothing in such a journal can tell, so others must (Q9):

- Every journal counts its transactions (`jcount`). HELLO and each acknowledgement carry the count,
  and every node remembers the highest per (key, journal id), durable at HELLO and then at most once
  a minute.
- At HELLO, and only there, the count is compared with what is remembered: an older acknowledgement
  may arrive late, an older HELLO cannot. Fewer than remembered: the connection is refused, the
  peer is answered ROLLED_BACK, and it takes a new journal id. It is a learner from then on.
- A voter sends no vote, no NewView and no lease-giving acknowledgement of a shard before q - 1
  other voters of it have compared its HELLO, so that a quorum stands behind its count. Once is
  enough for a run, since the count only grows in it.

What remains: those q - 1 may all be voters that did not hear its newest vote, or have lost what
they heard in the minute before they restarted. With one voter only the archive can tell.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from basenet.engine.events import Instant
from basenet.engine.limits import SECOND
from basenet.engine.liveness import Member
from basenet.units import PublicKeyBytes
from basenet.wire.payload import ConfigPayload
from basenet.wire.quorum import quorum_size
from basenet.wire.rollback import RolledBack

KEEP_PAUSE: Final = 60 * SECOND
"""How often what acknowledgements say is made durable."""
JOURNALS_MAX: Final = 4_096
"""How many journals are remembered; those not heard of for longest go first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRoster:
    """Make these counts durable, all of them, before anything after it."""

    counts: tuple[tuple[Member, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The HELLO is in order: go on with the connection."""

    member: Member


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseRolledBack:
    """Answer with ``message`` and end the connection; count it (`base_journal_rollbacks_total`)."""

    member: Member
    message: RolledBack


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeNewJournalId:
    """This journal was rolled back: vote no more, take a new journal id, be a learner."""

    remembered: int
    mine: int


RosterEffect = KeepRoster | Welcome | RefuseRolledBack | TakeNewJournalId


class Roster:
    """What this node remembers of others' journals, and who has compared its own.

    One for a node, whatever the number of its shards.
    """

    def __init__(
        self, me: Member, counts: Mapping[Member, int], *, doubters_needed: int = 1
    ) -> None:
        """Begin with the ``counts`` of the last `KeepRoster`.

        ``doubters_needed``: so many peers must say ROLLED_BACK before this node believes it: f + 1
        where peers may lie (Byzantine faults), else 1.
        """
        assert doubters_needed >= 1, "nobody needs to say it"
        self._me = me
        # In the order of when they were last heard of.
        self._counts = dict(counts)
        self._greeted: set[Member] = set()
        self._doubters: set[PublicKeyBytes] = set()
        self._doubters_needed = doubters_needed
        self._kept_at: Instant | None = None
        self._is_dirty = False
        self.is_rolled_back = False

    def remembered(self, member: Member) -> int:
        """Return the highest count that is remembered of a journal; 0 of an unknown one."""
        return self._counts.get(member, 0)

    def on_hello(self, member: Member, count: int, now: Instant) -> list[RosterEffect]:
        """Compare the count in a peer's HELLO with what is remembered of that journal."""
        remembered = self.remembered(member)
        if count < remembered:
            message = RolledBack(journal_id=member[1], count=remembered)
            return [RefuseRolledBack(member=member, message=message)]
        self._remember(member, count)
        return [*self._keep(now), Welcome(member=member)]

    def on_acknowledged(self, member: Member, count: int, now: Instant) -> list[RosterEffect]:
        """Raise what is remembered; an older acknowledgement that comes late says nothing."""
        if count <= self.remembered(member):
            return []
        self._remember(member, count)
        if self._kept_at is not None and now < self._kept_at + KEEP_PAUSE:
            self._is_dirty = True
            return []
        return self._keep(now)

    def on_greeted(self, member: Member) -> None:
        """Take note that a peer went on after our HELLO: it has compared our count."""
        if not self.is_rolled_back:
            self._greeted.add(member)

    def on_rolled_back(
        self, sender: PublicKeyBytes, message: RolledBack, count: int
    ) -> list[RosterEffect]:
        """Take in that a peer refused our HELLO, which said ``count``.

        A message about another journal, or that remembers no more than the HELLO said, is wrong.
        """
        if message.journal_id != self._me[1] or message.count <= count or self.is_rolled_back:
            return []
        self._doubters.add(sender)
        if len(self._doubters) < self._doubters_needed:
            return []
        self.is_rolled_back = True
        self._greeted.clear()
        return [TakeNewJournalId(remembered=message.count, mine=count)]

    def tick(self, now: Instant) -> list[RosterEffect]:
        """Make durable what acknowledgements said, when its time has come."""
        return self._keep(now) if self.is_due(now) else []

    def is_due(self, now: Instant) -> bool:
        """Return whether `tick` has something to do."""
        return self._is_dirty and (self._kept_at is None or now >= self._kept_at + KEEP_PAUSE)

    def may_vote(self, config: ConfigPayload) -> bool:
        """Return whether this node may vote, send a NewView or give a lease under ``config``."""
        if self.is_rolled_back:
            return False
        return (
            len(self._compared_by(config))
            >= quorum_size(len(config.voters), config.fault_model) - 1
        )

    def _compared_by(self, config: ConfigPayload) -> set[Member]:
        voters = {(voter.key, voter.journal_id) for voter in config.voters}
        return (self._greeted & voters) - {self._me}

    def _remember(self, member: Member, count: int) -> None:
        self._counts.pop(member, None)
        self._counts[member] = count
        while len(self._counts) > JOURNALS_MAX:
            del self._counts[next(iter(self._counts))]

    def _keep(self, now: Instant) -> list[RosterEffect]:
        self._kept_at, self._is_dirty = now, False
        return [KeepRoster(counts=tuple(self._counts.items()))]


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalPlace:
    """Where a journal file lies: what a copy or a file-level restore of it has not.

    ``device``, ``inode``: st_dev and st_ino. ``born_ns``: its birth time by statx, 0 where the file
    system does not tell. ``machine_id``: of the machine.
    """

    device: int
    inode: int
    born_ns: int
    machine_id: str


def is_same_journal(recorded: JournalPlace, found: JournalPlace) -> bool:
    """Return whether a journal may keep its id; False: it is a copy, and takes a new one (Q9)."""
    return recorded == found
