"""The CERT record: the votes that made a frame final, for readers who hold only public keys.

::

    3 | phase u8 | epoch u64 | view u64 | height u64 | hash[32] | n u16 | (key[32] | sig[64]) * n

Signers ascend strictly by key. Epochs with a single voter need no certificate: the author's own
signature on the frame is the vote. Whether the signers are voters of that epoch, enough of them,
and their signatures right, is judged by who holds that epoch's CONFIG; `wire.segment` checks that a
certificate speaks of a frame of the object that carries it.
"""

import itertools
from dataclasses import dataclass
from typing import Final

from basenet.errors import SegmentCorrupt
from basenet.units import (
    HASH_BYTES,
    KEY_BYTES,
    SIGNATURE_BYTES,
    Epoch,
    FrameHash,
    PublicKeyBytes,
    Seq,
    View,
)
from basenet.wire.codec import Reader, u8, u16, u64
from basenet.wire.payload import VOTERS_MAX

CERT_RECORD_VERSION: Final = 3
_PHASE_MAX: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Who voted for the frame ``hash`` at ``height`` (its seq), and their signatures."""

    phase: int
    epoch: Epoch
    view: View
    height: Seq
    hash: FrameHash
    votes: tuple[tuple[PublicKeyBytes, bytes], ...]


def encode_certificate(certificate: Certificate) -> bytes:
    """Encode a CERT record."""
    keys = [key for key, _ in certificate.votes]
    assert _is_ascending(keys), "signers are sorted before they are encoded"
    return b"".join(
        (
            u8(CERT_RECORD_VERSION),
            u8(certificate.phase),
            u64(certificate.epoch),
            u64(certificate.view),
            u64(certificate.height),
            certificate.hash,
            u16(len(certificate.votes)),
            *(key + signature for key, signature in certificate.votes),
        )
    )


def decode_certificate(data: bytes | memoryview) -> Certificate:
    """Decode a CERT record; raise `SegmentCorrupt` if it is malformed."""
    reader = Reader(data, error=SegmentCorrupt, what="a CERT record")
    if reader.u8() != CERT_RECORD_VERSION:
        raise reader.fail("it is not a CERT record")
    phase, epoch, view, height = reader.u8(), reader.u64(), reader.u64(), reader.u64()
    digest, count = reader.take(HASH_BYTES), reader.u16()
    if phase > _PHASE_MAX:
        raise reader.fail(f"phase {phase} is unknown; upgrade basenet")
    if not 1 <= count <= VOTERS_MAX:
        raise reader.fail(f"{count} votes are not within 1..{VOTERS_MAX}")
    votes = tuple(
        (PublicKeyBytes(reader.take(KEY_BYTES)), reader.take(SIGNATURE_BYTES)) for _ in range(count)
    )
    reader.finish()
    if not _is_ascending([key for key, _ in votes]):
        raise reader.fail("its signers do not ascend strictly")
    return Certificate(
        phase=phase,
        epoch=Epoch(epoch),
        view=View(view),
        height=Seq(height),
        hash=FrameHash(digest),
        votes=votes,
    )


def _is_ascending(keys: list[PublicKeyBytes]) -> bool:
    return all(left < right for left, right in itertools.pairwise(keys))
