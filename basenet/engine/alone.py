"""The lane of heartbeats of a node that has no peers: nothing to promise and nobody to hear.

A shard with one voter needs no lease from anybody, so its leader may write for as long as it leads.
"""

from typing import Final

from basenet.engine.events import Instant
from basenet.engine.liveness import Member
from basenet.units import Epoch, Lineage, View

_FOREVER: Final = Instant(2**63 - 1)
_LONG_AGO: Final = Instant(0)


class Alone:
    """Implements `Liveness` for shards whose only voter is this node."""

    __slots__ = ("_led",)

    def __init__(self) -> None:
        self._led: set[Lineage] = set()

    def lead(  # noqa: PLR0917  (the facts of one leadership, as `Liveness` has them)
        self,
        lineage: Lineage,
        epoch: Epoch,  # noqa: ARG002  (of `Liveness`)
        view: View,  # noqa: ARG002
        followers: tuple[Member, ...],
        quorum: int,
        now: Instant,  # noqa: ARG002
    ) -> None:
        """Lead: there is nobody to ask."""
        assert not followers, "a node without peers leads nobody"
        assert quorum == 1, "a quorum that one node cannot be"
        self._led.add(lineage)

    def unlead(self, lineage: Lineage, now: Instant) -> None:  # noqa: ARG002
        """Stop leading."""
        self._led.discard(lineage)

    def follow(
        self,
        lineage: Lineage,  # noqa: ARG002
        epoch: Epoch,  # noqa: ARG002
        view: View,  # noqa: ARG002
        leader: Member,  # noqa: ARG002
        now: Instant,  # noqa: ARG002
    ) -> None:
        """Follow nobody: a shard with a leader elsewhere needs `engine.pulse`."""
        raise AssertionError("a node without peers follows nobody")

    def refuse(self, lineage: Lineage, now: Instant) -> None:
        """Grant nothing, as ever."""

    def release(self, lineage: Lineage) -> None:
        """Forget promises, of which there are none."""

    def lease_until(self, lineage: Lineage, now: Instant) -> Instant:  # noqa: ARG002
        """Return "for ever" for a shard that is led."""
        return _FOREVER if lineage in self._led else _LONG_AGO

    def promised_until(self, lineage: Lineage) -> Instant:  # noqa: ARG002
        """Return the past: nobody was promised anything."""
        return _LONG_AGO

    def quorum_heard_at(self, lineage: Lineage, now: Instant) -> Instant:  # noqa: ARG002
        """Return now: this node is its own quorum."""
        return now

    def leader_heard_at(self, lineage: Lineage) -> Instant | None:  # noqa: ARG002
        """Return None: no leader is followed."""
        return None
