"""What an object of the archive says, once it is whole and is what its name claims.

Theory of operation
===================

Opening an object proves two things: that nothing in it changed since it was signed, and that it was
signed *as this object*: with this role, for this service, shard and lineage, over these seqs. The
signature is checked against the key that stands in the object. That shows integrity, never
authority: whether the key is one to believe is the question of `basenet.archive.trust`, and every
reader asks it (with `Signed`) before it uses what an object holds.

=============  =====================================================
`open_log`     a log object: frames
`open_set`     a page set's manifest: where it stands, and its parts
`open_tip`     the TIP: how far the archive reached at least
=============  =====================================================

`LogFacts` is the little that planning needs of a log object: 49 bytes a frame, so that a plan over
many objects stays small.
"""

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from basenet.archive.names import LogName, SetName, ShardNames
from basenet.errors import CorruptionError, PageSetCorrupt, SegmentCorrupt
from basenet.units import (
    HASH_BYTES,
    KEY_BYTES,
    SIGNATURE_BYTES,
    FrameHash,
    Lineage,
    PublicKeyBytes,
    TimestampNs,
)
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Flag, Frame, Head, Kind
from basenet.wire.pageset import SNAPSHOT_LEVEL, PageSet, decode_manifest
from basenet.wire.segment import (
    EpochRecord,
    Role,
    Segment,
    check_identity,
    decode_segment,
)

_SEGMENT_BYTES_MIN: Final = KEY_BYTES + SIGNATURE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """Who vouches for an object: the key that signed it, which its EPOCH record also names."""

    name: str
    archive_epoch: int
    signer: PublicKeyBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFacts:
    """A log object without its pages.

    ``hashes``: 32 bytes a frame; ``flags``: one byte a frame; ``configs``: its CONFIG frames whole,
    ``proofs``: the certificates of those. ``certified_to``: the highest frame that has a
    certificate, not verified here; 0: none has.
    """

    signed: Signed
    log: LogName
    hashes: bytes
    timestamps_ns: "array[int]"
    epochs: "array[int]"
    flags: bytes
    configs: tuple[Frame, ...]
    proofs: tuple[Certificate, ...] = ()
    certified_to: int = 0

    def hash(self, seq: int) -> FrameHash:
        """Return the hash of the frame ``seq``."""
        start = (seq - self.log.start) * HASH_BYTES
        return FrameHash(self.hashes[start : start + HASH_BYTES])

    def timestamp_ns(self, seq: int) -> TimestampNs:
        """Return when the frame ``seq`` was captured."""
        return TimestampNs(self.timestamps_ns[seq - self.log.start])

    def epoch(self, seq: int) -> int:
        """Return the epoch of CONFIG in which the frame ``seq`` was made."""
        return self.epochs[seq - self.log.start]

    def is_partial(self, seq: int) -> bool:
        """Return whether the frame ``seq`` is inside a run, so that no restore may end there."""
        return bool(self.flags[seq - self.log.start] & Flag.PARTIAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFacts:
    """A manifest: the frame that its pages stand at, and what is needed to read them."""

    signed: Signed
    set: SetName
    head: Head
    pages: PageSet
    proofs: tuple[Certificate, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TipFacts:
    """The TIP: a final frame that the archive held when it was written."""

    signed: Signed
    lineage: Lineage
    head: Head
    proofs: tuple[Certificate, ...] = ()


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Let every `CorruptionError` raised in the body begin with the object's name."""
    try:
        yield
    except CorruptionError as error:
        if name in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error


def get_signer(data: bytes, name: str) -> PublicKeyBytes:
    """Return the key that an object says it is signed by; nothing is verified."""
    if len(data) < _SEGMENT_BYTES_MIN:
        raise SegmentCorrupt(f"{name} has {len(data)} bytes, too few for an LBN2 object")
    return PublicKeyBytes(data[-_SEGMENT_BYTES_MIN:-SIGNATURE_BYTES])


def open_log(data: bytes, name: str, log: LogName, names: ShardNames) -> Segment:
    """Return the log object ``data``, verified to be the one that ``log`` names.

    Raises `CorruptionError`, which begins with ``name``.
    """
    with naming(name):
        segment, _ = _open(data, name, log.lineage, Role.LOG, names)
        head = segment.frames[0].head
        found, due = (segment.start_seq, segment.end_seq), (log.start, log.end)
        if found != due:
            raise SegmentCorrupt(
                f"{name} was signed for frames {found[0]}..{found[1]}, not {due[0]}..{due[1]}: "
                "it lies under a name that is not its own"
            )
        if head.timestamp_ns != log.nanos:
            raise SegmentCorrupt(f"{name} begins at {head.timestamp_ns} ns, not as its name says")
    return segment


def open_set(data: bytes, name: str, set_name: SetName, names: ShardNames) -> SetFacts:
    """Return the manifest ``data``, verified to be the one that ``set_name`` names.

    The signature of its head's author is verified, too. Raises `CorruptionError` with ``name``.
    """
    with naming(name):
        segment, epoch = _open(data, name, set_name.lineage, Role.PAGE_SET, names)
        head, pages = decode_manifest(segment, name)
        found = (pages.from_seq, pages.to_seq, SNAPSHOT_LEVEL)
        if found != (set_name.from_seq, set_name.to_seq, set_name.level):
            raise PageSetCorrupt(
                f"{name} holds a page set from {pages.from_seq} to {pages.to_seq}, which is not "
                "what its name says"
            )
        _check_head(head, name)
    return SetFacts(
        signed=_sign(segment, epoch, name),
        set=set_name,
        head=head,
        pages=pages,
        proofs=tuple(segment.certificates),
    )


def open_tip(data: bytes, names: ShardNames) -> TipFacts:
    """Return the TIP ``data``; the signature of its head's author is verified, too."""
    name = names.tip
    with naming(name):
        segment, epoch = _open(data, name, None, Role.TIP, names)
        head = segment.records[1]
        assert isinstance(head, Head), "the decoder of segments knows this role"
        _check_head(head, name)
    return TipFacts(
        signed=_sign(segment, epoch, name),
        lineage=epoch.lineage,
        head=head,
        proofs=tuple(segment.certificates),
    )


def sign_of(segment: Segment, name: str) -> Signed:
    """Return who vouches for an object that was opened."""
    assert segment.epoch is not None, "every opened object has an EPOCH record"
    return _sign(segment, segment.epoch, name)


def make_log_facts(segment: Segment, name: str, log: LogName) -> LogFacts:
    """Return the facts of a log object that `open_log` returned."""
    heads = [frame.head for frame in segment.frames]
    configs = tuple(frame for frame in segment.frames if frame.head.kind is Kind.CONFIG)
    hashes = {frame.head.hash for frame in configs}
    return LogFacts(
        signed=sign_of(segment, name),
        log=log,
        hashes=b"".join([head.hash for head in heads]),
        timestamps_ns=array("q", [head.timestamp_ns for head in heads]),
        epochs=array("Q", [head.epoch for head in heads]),
        flags=bytes(head.flags for head in heads),
        configs=configs,
        proofs=tuple(proof for proof in segment.certificates if proof.hash in hashes),
        certified_to=max((proof.height for proof in segment.certificates), default=0),
    )


def _open(
    data: bytes, name: str, lineage: Lineage | None, role: Role, names: ShardNames
) -> tuple[Segment, EpochRecord]:
    """Decode an object and check what binds it to its place; a TIP names its own lineage."""
    segment = decode_segment(data, trusted={get_signer(data, name)}, what=name)
    epoch = segment.epoch
    if epoch is None:
        raise SegmentCorrupt(f"{name} has no EPOCH record, so nothing says what it was written for")
    check_identity(
        segment,
        service=names.service,
        shard=names.shard,
        lineage=lineage or epoch.lineage,
        role=role,
        what=name,
    )
    if epoch.writer != segment.public:
        raise SegmentCorrupt(f"{name} is signed by another key than its EPOCH record names")
    return segment, epoch


def _sign(segment: Segment, epoch: EpochRecord, name: str) -> Signed:
    return Signed(name=name, archive_epoch=epoch.archive_epoch, signer=segment.public)


def _check_head(head: Head, name: str) -> None:
    if not head.is_signed_by_author():
        raise SegmentCorrupt(f"{name} holds a HEAD that its author did not sign")
