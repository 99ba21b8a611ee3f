"""Log objects: a batch of frames, sealed with epoch and signature under the name it will have.

Sealing is a function of the batch, the archive epoch and the key: Ed25519 signatures are not
random. So an object whose upload is undecided can be sealed again later and is the same bytes.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from basenet.archive.backlog import Batch
from basenet.archive.names import LogName, ShardNames
from basenet.errors import ConflictError, CorruptionError
from basenet.units import Lineage, Seq, TimestampNs
from basenet.wire.certificate import encode_certificate
from basenet.wire.frame import Flag, Frame, Head, decode_frame, decode_head_of
from basenet.wire.segment import (
    EpochRecord,
    Role,
    decode_segment,
    encode_epoch,
    encode_segment,
    pack_frames,
    service_hash,
)
from basenet.wire.signature import Signer


class TwoHistories(ConflictError):  # noqa: N818  (the field's word; the kind is in the base)
    """The archive holds other frames under the numbers that ours have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """What turns frames of one shard and lineage into signed objects."""

    names: ShardNames
    lineage: Lineage
    signer: Signer

    def epoch_record(self, archive_epoch: int, role: Role) -> bytes:
        """Return the encoded EPOCH record that begins every object."""
        return encode_epoch(
            EpochRecord(
                archive_epoch=archive_epoch,
                lineage=self.lineage,
                writer=self.signer.public,
                role=role,
                service_hash=service_hash(self.names.service),
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedLog:
    """A log object before its upload.

    ``last_ns``: the timestamp of its last frame. ``tip``: the head of its last frame that ends a
    commit, None when it lies within a PARTIAL run.
    """

    name: str
    log: LogName
    data: bytes
    archive_epoch: int
    last_ns: TimestampNs
    tip: Head | None


def seal_log(batch: Batch, seal: Seal, archive_epoch: int, *, level: int = 0) -> SealedLog:
    """Return the log object of ``batch``; ``level`` is above 0 if it was merged from others.

    Raises `CorruptionError` if the batch's bytes are not the frames that they are meant to be.
    """
    first = _decode(batch, 0, seal)
    last = first if len(batch.frames) == 1 else _decode(batch, len(batch.frames) - 1, seal)
    name = LogName(
        lineage=seal.lineage,
        start=batch.start,
        end=batch.end,
        nanos=first.timestamp_ns,
        level=level,
    )
    data = encode_segment(
        shard=seal.names.shard,
        start_seq=batch.start,
        count=len(batch.frames),
        records=(
            seal.epoch_record(archive_epoch, Role.LOG),
            *pack_frames(batch.frames),
            *map(encode_certificate, batch.proofs),
        ),
        signer=seal.signer,
    )
    return SealedLog(
        name=seal.names.log(name),
        log=name,
        data=data,
        archive_epoch=archive_epoch,
        last_ns=last.timestamp_ns,
        tip=_last_whole(batch, last, seal),
    )


def _last_whole(batch: Batch, last: Head, seal: Seal) -> Head | None:
    head = last
    for index in reversed(range(len(batch.frames))):
        if not head.flags & Flag.PARTIAL:
            return head
        if index:
            head = _decode(batch, index - 1, seal)
    return None


def _decode(batch: Batch, index: int, seal: Seal) -> Head:
    """Return a frame's head; its payload is megabytes, and was hashed when it was made."""
    head = decode_head_of(batch.frames[index])
    seq = batch.start + index
    if head.shard != seal.names.shard or head.seq != seq:
        raise CorruptionError(
            f"the journal gave another frame where frame {seq} of shard {seal.names.shard} was "
            "asked for: the journal is damaged"
        )
    return head


def check_same_frames(
    batch: Batch, sealed: SealedLog, stored: bytes, trusted: AbstractSet[bytes]
) -> None:
    """Raise `TwoHistories` unless the object ``stored`` under our name holds our frames.

    Certificates, the writer's key and the signature may differ (Q17); only frames count.
    """
    try:
        segment = decode_segment(stored, trusted=trusted, what=f"object {sealed.name}")
    except CorruptionError as error:
        raise TwoHistories(
            f"{error} It lies where a log object of ours belongs: find out who wrote it, then "
            "move it away"
        ) from error
    theirs = {frame.head.seq: frame.head.hash for frame in segment.frames}
    for index, encoded in enumerate(batch.frames):
        seq = Seq(batch.start + index)
        ours = decode_frame(encoded)
        assert isinstance(ours, Frame), "checked when it was sealed"
        if theirs.get(seq) != ours.head.hash:
            raise TwoHistories(
                f"two histories: object {sealed.name} holds another frame {seq} than ours; two "
                "nodes wrote this lineage, so stop one and restart the other with an empty "
                "data directory, which starts a child lineage"
            )
