"""What the phases of a birth share at one node: who I am, who is there, and the durable record."""

from collections.abc import Container
from dataclasses import dataclass, field

from basenet.engine.birth_events import KeepBirth, PeerConnected, SendBirth
from basenet.engine.birth_record import BirthRecord
from basenet.engine.placement import Peer
from basenet.units import JournalId, PublicKeyBytes, ShardId
from basenet.wire.birth import BirthMessage, MemberRole
from basenet.wire.certificate import Verify
from basenet.wire.payload import FaultModel
from basenet.wire.signature import AnySigner


@dataclass(frozen=True, slots=True, kw_only=True)
class Newborn:
    """A shard to be born and this node's configuration for it.

    ``replication``: BASE_REPLICATION. ``writer``: BASE_WRITER. ``fault_model``: what this node asks
    for as the author; with fewer than 4 voters it is crash. ``verify``: (key, signature, message).
    """

    shard: ShardId
    me: Peer
    journal_id: JournalId
    role: MemberRole
    replication: int
    writer: str | None
    fault_model: FaultModel
    signer: AnySigner
    verify: Verify


@dataclass(slots=True, kw_only=True)
class Cradle:
    """The durable record and the connections, shared by the phases of a birth.

    ``record``: as of the last `KeepBirth` given out. ``connected``: HELLO was exchanged.
    """

    newborn: Newborn
    record: BirthRecord
    connected: dict[PublicKeyBytes, PeerConnected] = field(default_factory=dict)

    @property
    def key(self) -> PublicKeyBytes:
        """This node's key."""
        return self.newborn.me.key

    def keep(self, record: BirthRecord) -> KeepBirth:
        """Change the record; the effect makes it durable."""
        self.record = record
        return KeepBirth(record=record)

    def send(self, keys: Container[PublicKeyBytes], message: BirthMessage) -> list[SendBirth]:
        """Send ``message`` to those of ``keys`` that are connected, in a fixed order."""
        to = tuple(key for key in sorted(self.connected) if key in keys)
        return [SendBirth(to=to, message=message)] if to else []
