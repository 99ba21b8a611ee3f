"""What the parts of a cluster node ask of each other; declarations only.

Everything is called in the event loop. What is not ``async`` returns at once.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import Protocol

from basenet.engine.lease import SharedLease
from basenet.engine.liveness import Liveness
from basenet.engine.placement import Membership
from basenet.units import FrameHash, JournalId, Lineage, PublicKeyBytes, ShardId
from basenet.wire.birth import BirthMessage
from basenet.wire.certificate import Certificate
from basenet.wire.hello import Hello
from basenet.wire.message import Message
from basenet.wire.payload import ConfigPayload
from basenet.wire.signature import AnySigner
from basenet.wire.transfer import TransferMessage


class ShardPort(Protocol):
    """One shard, as the lanes between nodes see it.

    ``peer`` is always the HELLO of the authenticated connection that brought the message. The next
    message about this shard of that peer and lane waits until an ``async`` call has returned. A
    call that takes a message raises `PeerError` to end the peer's connections.
    """

    @property
    def shard(self) -> ShardId:
        """Its id."""
        ...

    @property
    def lineage(self) -> Lineage | None:
        """The lineage that is known here; None before. Messages of another one never arrive."""
        ...

    def on_message(self, peer: Hello, message: Message) -> None:
        """Take a message of the protocol about the known lineage."""
        ...

    def take_frames(self, peer: Hello, records: tuple[bytes, ...]) -> bool:
        """Take encoded frames if that is done at once; False: give them to `on_frames`."""
        ...

    async def on_frames(self, peer: Hello, records: tuple[bytes, ...]) -> None:
        """Take encoded frames of the known lineage, in any order, not verified yet."""
        ...

    async def on_final(
        self, peer: Hello, records: tuple[bytes, ...], certificate: Certificate | None
    ) -> None:
        """Take a piece of the final history, ascending, not verified yet."""
        ...

    async def on_transfer(self, peer: Hello, message: TransferMessage) -> None:
        """Take a question for, or a piece of, the state of the database (`wire.transfer`)."""
        ...

    def on_birth(self, peer: Hello, message: BirthMessage) -> None:
        """Take a message of the birth, or of one who asks for the lineage."""
        ...

    def on_other_lineage(self, peer: Hello) -> None:
        """Answer a peer that spoke of another lineage than the known one, at most once a second.

        `cluster.birth.BirthDriver` has the answer. What the peer said is not processed.
        """
        ...

    def on_connected(self, peer: Hello) -> None:
        """Learn that this node can now send to ``peer``, which admitted its HELLO."""
        ...

    def on_lost(self, peer: Hello) -> None:
        """Learn that the connection to ``peer`` has ended."""
        ...

    def on_unreachable(self, peer: Hello) -> None:
        """Learn that a redial of ``peer`` was refused: its process is gone, as a hint (Q16)."""
        ...

    def on_members(self, members: Membership | str) -> None:
        """Learn the membership M, or why it is not complete."""
        ...

    def rouse(self) -> None:
        """Look at the time: something that the lane of heartbeats knows concerns this shard."""
        ...


class Peers(Protocol):
    """The other nodes, as a shard sees them. A message that cannot be sent is dropped."""

    @property
    def liveness(self) -> Liveness:
        """The lane of heartbeats (`engine.pulse.Pulse`)."""
        ...

    def shared_lease(self, lineage: Lineage) -> SharedLease | None:
        """Return the lease that a led shard shares with others; None while it has its own."""
        ...

    @property
    def signer(self) -> AnySigner:
        """This node's signing key."""
        ...

    @property
    def journal_id(self) -> JournalId:
        """The id of this node's journal."""
        ...

    @property
    def members(self) -> Membership | str:
        """M, or why it is not complete."""
        ...

    @property
    def connected(self) -> Mapping[PublicKeyBytes, Hello]:
        """Whom this node can send to now: by signing key, the HELLO of the present connection."""
        ...

    def may_vote(self, config: ConfigPayload) -> bool:
        """Return whether this node may vote, send a NewView or give a lease under ``config``.

        False until enough other voters have compared its HELLO (B50, Q9); whenever that may have
        changed, `ShardPort.rouse` is called.
        """
        ...

    def send(
        self, to: Iterable[PublicKeyBytes], shard: ShardId, lineage: Lineage, message: Message
    ) -> None:
        """Send a message of the protocol."""
        ...

    def send_birth(
        self, to: Iterable[PublicKeyBytes], shard: ShardId, message: BirthMessage
    ) -> None:
        """Send a message of the birth."""
        ...

    def send_frames(
        self,
        to: Iterable[PublicKeyBytes],
        shard: ShardId,
        lineage: Lineage,
        records: Mapping[FrameHash, bytes],
    ) -> None:
        """Send encoded frames: small packs in the ordinary lane, large ones (256 KiB) in bulk."""
        ...

    def is_coming(self, to: PublicKeyBytes, name: Hashable) -> bool:
        """Return whether a large thing is on its way to a peer, so that it need not be sent.

        ``name``: a frame's hash, or that of a stretch of the final history.
        """
        ...

    def send_final(
        self,
        to: PublicKeyBytes,
        shard: ShardId,
        lineage: Lineage,
        records: tuple[bytes, ...],
        certificate: Certificate | None,
        *,
        name: Hashable,
    ) -> bool:
        """Send one piece of the final history in bulk; False when there is no room for it now.

        ``name``: of the stretch that it is of, for `is_coming`.
        """
        ...

    def send_transfer(
        self, to: PublicKeyBytes, shard: ShardId, lineage: Lineage, message: TransferMessage
    ) -> bool:
        """Send a piece of, or a question for, the state: in bulk; False when there is no room."""
        ...

    def settle(self) -> None:
        """Read the lane's `wake_at` again: a replica was stepped."""
        ...
