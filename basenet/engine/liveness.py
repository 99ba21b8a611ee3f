"""What a shard's replica asks the lane of heartbeats, which all shards of a node share.

The lane (`engine.pulse`) never waits for a journal: it has no `Persist`. A shard that is led and
has nothing pending costs nothing here but one entry in its leader's list.
"""

from typing import Protocol

from basenet.engine.events import Instant
from basenet.units import Epoch, JournalId, Lineage, PublicKeyBytes, View

Member = tuple[PublicKeyBytes, JournalId]
"""Who somebody is: the key, and the journal that keeps its promises (P23)."""


class Liveness(Protocol):
    """The node's lane of heartbeats, as one shard's replica sees it."""

    def lead(  # noqa: PLR0917  (the facts of one leadership)
        self,
        lineage: Lineage,
        epoch: Epoch,
        view: View,
        followers: tuple[Member, ...],
        quorum: int,
        now: Instant,
    ) -> None:
        """Begin to lead: the shard stands in the lists that go to ``followers`` (all but me).

        ``quorum`` counts this node. Replaces an older (epoch, view) of the lineage.
        """
        ...

    def unlead(self, lineage: Lineage, now: Instant) -> None:
        """Stop leading: the lease of the shard is over from now.

        The next heartbeat says so and ends the promises of the followers: called before whatever
        hands the shard over.
        """
        ...

    def follow(
        self, lineage: Lineage, epoch: Epoch, view: View, leader: Member, now: Instant
    ) -> None:
        """Grant the lineage to the leader of (epoch, view), from now, and to no older one.

        A voter calls it when it has adopted the view of an established leader. Never called before
        an older promise has ended or been released.
        """
        ...

    def refuse(self, lineage: Lineage, now: Instant) -> None:
        """Grant the lineage to nobody from now (a view is being entered); promises given stand."""
        ...

    def release(self, lineage: Lineage) -> None:
        """Forget the promises given for the lineage: its leader gave the lease back by itself.

        Only for a message of the leader of the present (epoch, view), which has *durably* left
        that view before it said so: else it could resume it after a crash, and a `Release` that
        comes late would end a promise that it relies on.
        """
        ...

    def lease_until(self, lineage: Lineage, now: Instant) -> Instant:
        """Return until when a quorum promised to enter no other view; the past without a lease.

        The send time of the last heartbeat that a quorum acknowledged with a grant for the lineage
        in its present (epoch, view), plus LEASE, less the drift. With a quorum of one: for ever.
        """
        ...

    def promised_until(self, lineage: Lineage) -> Instant:
        """Return until when this node promised to enter no other view of the lineage.

        Includes the promises that it may have given before it restarted: one LEASE after boot,
        except where the shard has one voter. Survives an epoch switch.
        """
        ...

    def quorum_heard_at(self, lineage: Lineage, now: Instant) -> Instant:
        """Return when a quorum of the voters of a led shard last granted it (check-quorum)."""
        ...

    def leader_heard_at(self, lineage: Lineage) -> Instant | None:
        """Return when the followed leader last said that it leads (epoch, view); None: never."""
        ...
