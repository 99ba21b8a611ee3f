"""What can happen to a shard: the only way by which facts enter the engine.

Every event comes with the time at which it is handled: `Instant`, nanoseconds of a clock that never
steps and also runs while the machine sleeps (CLOCK_BOOTTIME; P18).
"""

from dataclasses import dataclass
from typing import NewType

from basenet.units import (
    Epoch,
    FrameHash,
    JournalId,
    Lineage,
    LocalNumber,
    PublicKeyBytes,
    Seq,
    StateRoot,
    TimestampNs,
    View,
)
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Flag, Frame
from basenet.wire.message import Message
from basenet.wire.payload import ConfigPayload

Instant = NewType("Instant", int)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameCaptured:
    """Commits of the application were read from its WAL (or from its file, with a flag).

    Given only while `Replica.can_seal` holds; until then captured commits wait with the driver.
    ``payload`` is an encoded COMMIT; ``state_root`` is the root after it, 32 zero bytes for a
    PARTIAL. ``local_first`` .. ``local_last`` are the numbers of the captured commits in it;
    an empty range (first = last + 1) says that it carries none that could be counted.
    """

    payload: bytes
    flags: Flag
    state_root: StateRoot
    timestamp_ns: TimestampNs
    salt: bytes
    local_first: LocalNumber
    local_last: LocalNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class FramesCaptured:
    """Several at once: one proposal, one vote. Never empty; may end inside a PARTIAL run."""

    frames: tuple[FrameCaptured, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigWanted:
    """The operator or the daemon wants this CONFIG; taken only by a leader that is open.

    ``state_root``: of the tip. ``salt``: 16 random bytes.
    """

    config: ConfigPayload
    state_root: StateRoot
    timestamp_ns: TimestampNs
    salt: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A message of one peer about this shard, by an authenticated connection.

    ``sender`` and ``journal_id`` are those of the connection: what a peer says of itself inside a
    message never counts. ``lineage`` is the envelope's.
    """

    sender: PublicKeyBytes
    journal_id: JournalId
    lineage: Lineage
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class FramesReceived:
    """Decoded frames (form and checksum verified, signatures not), in any cut and order."""

    sender: PublicKeyBytes
    frames: tuple[Frame, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalReceived:
    """A piece of the final history, from a peer or the archive: frames and what certifies the last.

    ``certificate`` is None where the epoch has one voter. The frames ascend without a gap and never
    cross from one epoch into the next.
    """

    sender: PublicKeyBytes | None
    frames: tuple[Frame, ...]
    certificate: Certificate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The driver computed the state roots of a `Judge` effect.

    ``wrong``: the first frame whose root differs from what its pages give, None when all are right.
    Void when (``epoch``, ``view``) have moved on.
    """

    epoch: Epoch
    view: View
    hash: FrameHash
    wrong: FrameHash | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The database of this node holds the chain up to ``seq`` exactly."""

    seq: Seq


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferWanted:
    """This leader shall hand over to ``target``, as soon as all is final."""

    target: PublicKeyBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyWanted:
    """This leader shall find out how far the voters are that it has not heard of in this view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadWanted:
    """A read asks how far it must wait; ``nonce``: 16 random bytes that name it."""

    nonce: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLost:
    """All connections to ``peer`` ended, a redial was refused: a hint, no promise moves (Q16)."""

    peer: PublicKeyBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked:
    """Time passed: the moment that `Replica.wake_at` named has come."""


Event = (
    FrameCaptured
    | FramesCaptured
    | ConfigWanted
    | Received
    | FramesReceived
    | FinalReceived
    | Judged
    | Applied
    | TransferWanted
    | SurveyWanted
    | ReadWanted
    | PeerLost
    | Ticked
)
