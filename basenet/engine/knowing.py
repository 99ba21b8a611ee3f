"""A node that knows the shard's lineage: tells it to those who ask, and follows no other by itself.

Theory of operation
===================

Voters of the genesis are told at once, others only when the lineage is *settled*: a quorum of its
voters know it, so that no loss of one disk can undo what a learner has built on. Until then this
node tells the voters again and again and asks each whether it knows; afterwards it is silent and
only answers.

A message about another lineage changes nothing here. If it is a FORCED one (Q5) the operator is
told once, ``forced lineage HEX by NODE``, and `members accept` follows it: first what this node
holds beyond its parent goes into an orphan bundle, then the record changes. Any other one is a fork
that a human must look at.
"""

from dataclasses import replace
from typing import Final

from basenet.engine.birth_events import (
    BirthEffect,
    BirthReceived,
    Born,
    ForcedAccepted,
    KeepOrphans,
    LineageForced,
    PeerConnected,
    ReportBirth,
)
from basenet.engine.birth_record import BirthRecord, FileFate, KnownLineage
from basenet.engine.cradle import Cradle
from basenet.engine.genesis import Genesis, check_complete, read_genesis
from basenet.errors import CorruptionError
from basenet.units import FrameHash, Lineage, PublicKeyBytes, Seq
from basenet.wire.birth import BirthAnswer, BirthAsk, GenesisOffer, LineageKnown
from basenet.wire.quorum import quorum_size

OTHER_LINEAGES_MAX: Final = 8
"""Of how many other lineages a node remembers that it told the operator; more are not told."""


class Knowing:
    """The phase after the birth."""

    def __init__(self, cradle: Cradle) -> None:
        known = cradle.record.known
        assert known is not None, "a lineage that is not known"
        newborn = cradle.newborn
        self._cradle = cradle
        self.known = known
        self.genesis = read_genesis(known.genesis, newborn.shard, newborn.verify)
        self._knowing = {cradle.key}
        self._others: dict[Lineage, Genesis] = {}

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing left to do but answer."""
        return self.known.is_settled

    def announce(self) -> list[BirthEffect]:
        """Return what the driver must do now that the lineage is known, or again after boot."""
        return [
            Born(
                genesis=self.genesis,
                certificate=self.known.certificate,
                file=self.known.file,
                is_author=self.genesis.author == self._cradle.key,
            )
        ]

    def tell_voters(self) -> list[BirthEffect]:
        """Tell the voters that may not know yet, and ask whether they do."""
        if self.is_settled:
            return []
        missing = set(self.genesis.voters) - self._knowing
        return [*self._cradle.send(missing, self._message(is_asking=True))]

    def on_connected(self, event: PeerConnected) -> list[BirthEffect]:
        """Tell a voter that may not know yet, and everybody about a forced lineage."""
        key = event.peer.key
        self._knowing.discard(key)
        is_due = key in self.genesis.voters and not self.is_settled
        if is_due or self.genesis.config.is_forced:
            return [*self._cradle.send({key}, self._message(is_asking=is_due))]
        return []

    def on_received(self, event: BirthReceived) -> list[BirthEffect]:
        """Answer who does not know; take note of who does."""
        message = event.message
        if isinstance(message, (BirthAsk, BirthAnswer, GenesisOffer)):
            self._knowing.discard(event.sender)
            return self._tell(event.sender)
        if not isinstance(message, LineageKnown):
            return []  # a promise or withdrawal from before the lineage was known
        effects: list[BirthEffect] = []
        if message.genesis == self.known.genesis:
            effects += self.note_knowing(event.sender)
        else:
            effects += self._on_other_lineage(event.sender, message)
        if message.is_asking:
            effects += self._tell(event.sender)
        return effects

    def note_knowing(self, key: PublicKeyBytes) -> list[BirthEffect]:
        """Take note that ``key`` knows the lineage; the quorum of voters that do settles it."""
        self._knowing.add(key)
        count = len(self._knowing.intersection(self.genesis.voters))
        if self.is_settled or count < quorum_size(len(self.genesis.voters)):
            return []
        self.known = replace(self.known, is_settled=True)
        keep = self._cradle.keep(replace(self._cradle.record, known=self.known))
        waiting = set(self._cradle.connected) - self._knowing
        return [keep, *self._cradle.send(waiting, self._message())]

    def on_forced(self, event: LineageForced) -> list[BirthEffect]:
        """Begin the forced lineage that the operator asked of this node."""
        parent = event.genesis.config.parent
        assert parent is not None, "a forced lineage continues one"
        assert parent[0] == self.genesis.lineage, "a forced lineage continues another one"
        assert event.genesis.author == self._cradle.key, "somebody else's forced lineage"
        effects = self._move_to(event.genesis, FileFate.ADOPTED)
        everybody = set(self._cradle.connected)
        return [*effects, *self.announce(), *self._cradle.send(everybody, self._message())]

    def on_accepted(self, event: ForcedAccepted) -> list[BirthEffect]:
        """Follow a forced lineage because the operator says so, and keep what it lacks."""
        genesis = self._others.get(event.lineage)
        if genesis is None or not genesis.config.is_forced or genesis.config.parent is None:
            what = f"no node has announced a forced lineage {event.lineage.hex()}: nothing accepted"
            return [ReportBirth(what=what)]
        _, parent_seq, parent_hash = genesis.config.parent
        orphans = KeepOrphans(
            lineage=self.genesis.lineage,
            parent_seq=Seq(parent_seq),
            parent_hash=FrameHash(parent_hash),
        )
        return [orphans, *self._move_to(genesis, FileFate.REPAIRED), *self.announce()]

    def _move_to(self, genesis: Genesis, file: FileFate) -> list[BirthEffect]:
        """Leave the present lineage for ``genesis``."""
        record = self._cradle.record
        self.known = KnownLineage(
            genesis=genesis.record, certificate=None, file=file, is_settled=True
        )
        left = (*record.left, self.genesis.lineage)
        self.genesis = genesis
        self._others.pop(genesis.lineage, None)
        return [self._cradle.keep(replace(record, known=self.known, left=left))]

    def _tell(self, key: PublicKeyBytes) -> list[BirthEffect]:
        if self.is_settled or key in self.genesis.voters:
            return [*self._cradle.send({key}, self._message())]
        return []

    def _message(self, *, is_asking: bool = False) -> LineageKnown:
        return LineageKnown(
            genesis=self.known.genesis, certificate=self.known.certificate, is_asking=is_asking
        )

    def _on_other_lineage(self, sender: PublicKeyBytes, message: LineageKnown) -> list[BirthEffect]:
        newborn = self._cradle.newborn
        try:
            genesis = read_genesis(message.genesis, newborn.shard, newborn.verify)
            check_complete(genesis, message.certificate, newborn.verify)
        except CorruptionError as error:
            return [ReportBirth(what=str(error), peer=sender)]
        lineage = genesis.lineage
        is_old = lineage in self._cradle.record.left or lineage in self._others
        if is_old or len(self._others) >= OTHER_LINEAGES_MAX:
            return []
        self._others[lineage] = genesis
        author = genesis.config.voters[0].node_id
        if genesis.config.is_forced:
            what = (
                f"forced lineage {lineage.hex()} by {author}: it is followed only after `members "
                f"accept {lineage.hex()}`"
            )
        else:
            what = (
                f"two lineages of {newborn.shard}: this node follows {self.genesis.lineage.hex()}, "
                f"a peer {lineage.hex()} by {author}; empty the data directory of the one to drop"
            )
        return [ReportBirth(what=what, peer=sender)]


def adopt(
    record: BirthRecord, message: LineageKnown, file: FileFate, *, is_settled: bool
) -> BirthRecord:
    """Return the record of a node that now knows the lineage of ``message``."""
    known = KnownLineage(
        genesis=message.genesis,
        certificate=message.certificate,
        file=file,
        is_settled=is_settled,
    )
    return replace(record, promise=None, known=known)
