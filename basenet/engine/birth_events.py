"""What can happen to a shard without a lineage, and what the driver must then do, in order.

The contract is that of `engine.effects`: a `KeepBirth` is durable before anything after it begins.
Messages and `PeerConnected` of one peer are given in the order in which they happened, and what an
older connection of a peer still brings is dropped once a newer one has said HELLO.
"""

from dataclasses import dataclass

from basenet.engine.birth_record import BirthRecord, FileFate
from basenet.engine.genesis import Genesis
from basenet.engine.placement import Membership, Peer
from basenet.units import (
    FrameHash,
    JournalId,
    Lineage,
    PublicKeyBytes,
    Seq,
    StateRoot,
    TimestampNs,
)
from basenet.wire.birth import BirthMessage, FileFacts
from basenet.wire.certificate import Certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class MembersKnown:
    """Configuration gives this membership now; a sentence where it is not complete."""

    members: Membership | str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileScanned:
    """The file was read under the fence; None: there is none, or it has no page."""

    file: FileFacts | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConnected:
    """A node said HELLO on a new connection, and accepted ours."""

    peer: Peer
    journal_id: JournalId


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerGone:
    """The last connection to a peer ended."""

    key: PublicKeyBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BirthReceived:
    """A message; ``sender`` and ``journal_id`` are those of the connection."""

    sender: PublicKeyBytes
    journal_id: JournalId
    message: BirthMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedParent:
    """The leaf of the archive, which the birth continues as a child lineage (Q3, Q4).

    ``is_forced``: this node's key was no voter of the leaf at that frame.
    """

    lineage: Lineage
    seq: Seq
    hash: FrameHash
    state_root: StateRoot
    page_size: int
    timestamp_ns: TimestampNs
    is_forced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveSurveyed:
    """The answer to `SurveyArchive`.

    ``parent``: None where the archive has nothing of the shard, or there is no archive.
    ``problem``: why there is no birth now (not reachable; a lineage is there, the file is missing
    and BASE_RESTORE_IF_MISSING is off), as a sentence. ``file``: the facts after a restore, or as
    they were. ``lineage`` and ``salt``: 16 random bytes each, for the genesis.
    """

    parent: ArchivedParent | None
    problem: str | None
    file: FileFacts | None
    lineage: Lineage
    salt: bytes
    timestamp_ns: TimestampNs


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorDecided:
    """The operator ran `members init --from` this node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageForced:
    """The operator ran `members force` on this node, and `engine.forced` made this genesis."""

    genesis: Genesis


@dataclass(frozen=True, slots=True, kw_only=True)
class ForcedAccepted:
    """The operator ran `members accept` for this lineage."""

    lineage: Lineage


@dataclass(frozen=True, slots=True, kw_only=True)
class BirthTicked:
    """The moment that `Birth.wake_at` named has come."""


BirthEvent = (
    MembersKnown
    | FileScanned
    | PeerConnected
    | PeerGone
    | BirthReceived
    | ArchiveSurveyed
    | AuthorDecided
    | LineageForced
    | ForcedAccepted
    | BirthTicked
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceFile:
    """Lock the application out, then read the file and answer `FileScanned`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepBirth:
    """Make the record durable."""

    record: BirthRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class SendBirth:
    """Send a message to these peers."""

    to: tuple[PublicKeyBytes, ...]
    message: BirthMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyArchive:
    """List the archive of the shard, restore its leaf where that is allowed: `ArchiveSurveyed`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Born:
    """The lineage is known: begin its first epoch, unless this journal has begun it already.

    The genesis is final. It is stored with the first ballot, and archived with ``certificate``
    beside it. ``file``: what becomes of the file. ``is_author``: this node captures what its file
    holds beyond a parent.
    """

    genesis: Genesis
    certificate: Certificate | None
    file: FileFate
    is_author: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepOrphans:
    """Before a forced lineage is followed: keep what it may not contain, as an orphan bundle.

    Which frames those are, `forced.compute_orphans` tells from the journal. Durable before the next
    effect begins.
    """

    lineage: Lineage
    parent_seq: Seq
    parent_hash: FrameHash


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJournalNeeded:
    """This journal has forgotten what it signed: take a new journal id and begin again (Q9)."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportBirth:
    """Tell the operator; ``peer``: whom it is about."""

    what: str
    peer: PublicKeyBytes | None = None


BirthEffect = (
    FenceFile
    | KeepBirth
    | SendBirth
    | SurveyArchive
    | Born
    | KeepOrphans
    | NewJournalNeeded
    | ReportBirth
)
