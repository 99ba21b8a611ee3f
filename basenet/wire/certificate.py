"""The CERT record: the votes that made a frame final, for readers who hold only public keys.

::

    3 | phase u8 | epoch u64 | view u64 | height u64 | hash[32] | n u16 | (key[32] | sig[64]) * n

Signers ascend strictly by key. Epochs with a single voter need no certificate: the author's own
signature on the frame is the vote. Decoding judges the form alone, and `wire.segment` that a
certificate speaks of a frame of the object that carries it. `verify_certificate` judges the votes,
for which it needs the CONFIG of their epoch, and public keys alone.

A *final* certificate is one of COMMIT votes, in both fault models. PREPARE votes, the first phase
of the Byzantine one, bind their voters and prove no finality. Phase 0 is the consent of all voters
to a genesis, over another tuple (`wire.finality`).
"""

import itertools
from collections.abc import Callable
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from basenet.errors import CertificateInvalid, SegmentCorrupt
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
from basenet.wire.fields import (
    EpochField,
    FrameHashField,
    KeyField,
    SeqField,
    SignatureField,
    ViewField,
)
from basenet.wire.payload import VOTERS_MAX, ConfigPayload
from basenet.wire.quorum import quorum_size
from basenet.wire.signature import is_signed
from basenet.wire.tuples import Scope

CERT_RECORD_VERSION: Final = 3
CONSENT: Final = 0
PREPARE: Final = 1
COMMIT: Final = 2
PHASE_MAX: Final = COMMIT

Verify = Callable[[PublicKeyBytes, bytes, bytes], bool]
"""Whether ``public`` made ``signature`` for ``message``."""


class Certificate(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True
):
    """Who voted for the frame ``hash`` at ``height`` (its seq), and their signatures.

    A struct with bounds, since it also travels inside messages; in an archive it is a record.
    """

    phase: Annotated[int, Meta(ge=0, le=PHASE_MAX)]
    epoch: EpochField
    view: ViewField
    height: SeqField
    hash: FrameHashField
    votes: Annotated[tuple[tuple[KeyField, SignatureField], ...], Meta(max_length=VOTERS_MAX)]


def encode_certificate(certificate: Certificate) -> bytes:
    """Encode a CERT record."""
    assert is_ascending(certificate), "signers are sorted before they are encoded"
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
    if phase > PHASE_MAX:
        raise reader.fail(f"phase {phase} is unknown; upgrade basenet")
    if not 1 <= count <= VOTERS_MAX:
        raise reader.fail(f"{count} votes are not within 1..{VOTERS_MAX}")
    votes = tuple(
        (PublicKeyBytes(reader.take(KEY_BYTES)), reader.take(SIGNATURE_BYTES)) for _ in range(count)
    )
    reader.finish()
    certificate = Certificate(
        phase=phase,
        epoch=Epoch(epoch),
        view=View(view),
        height=Seq(height),
        hash=FrameHash(digest),
        votes=votes,
    )
    if not is_ascending(certificate):
        raise reader.fail("its signers do not ascend strictly")
    return certificate


def is_ascending(certificate: Certificate) -> bool:
    """Return whether its signers ascend strictly by key, as they must in a record."""
    return all(left[0] < right[0] for left, right in itertools.pairwise(certificate.votes))


def verify_certificate(
    certificate: Certificate,
    *,
    scope: Scope,
    epoch: Epoch,
    config: ConfigPayload,
    phase: int = COMMIT,
    verify: Verify = is_signed,
) -> None:
    """Raise `CertificateInvalid` unless a quorum of ``config``'s voters signed, and nobody else.

    ``config`` is the CONFIG in force in ``epoch`` of the lineage that ``scope`` names; the quorum
    is that of its fault model. ``phase``: COMMIT for finality. That the certificate speaks of the
    frame in question is the caller's to compare.
    """
    assert config.lineage == scope.lineage, "the CONFIG of another lineage"
    quorum = quorum_size(len(config.voters), config.fault_model)
    check_voters(certificate, config, quorum, phase, epoch)
    message = scope.vote(epoch, certificate.view, phase, certificate.height, certificate.hash)
    check_signatures(certificate, message, verify)


def check_voters(
    certificate: Certificate, config: ConfigPayload, quorum: int, phase: int, epoch: Epoch
) -> None:
    """Raise `CertificateInvalid` unless it has ``quorum`` votes of this phase and epoch.

    All by different voters of ``config``; the signatures are not verified here.
    """
    keys = {key for key, _ in certificate.votes}
    strangers = keys - {voter.key for voter in config.voters}
    if (certificate.phase, certificate.epoch) != (phase, epoch):
        problem = f"is of phase {certificate.phase}, not of phase {phase} in epoch {epoch}"
    elif len(keys) != len(certificate.votes):
        problem = "counts a voter twice"
    elif not is_ascending(certificate):
        problem = "does not name its signers in ascending order"
    elif strangers:
        problem = f"has a vote of {min(strangers).hex()}, which is no voter of the epoch"
    elif len(keys) < quorum:
        problem = f"has {len(keys)} of the {quorum} votes that it takes"
    else:
        return
    raise CertificateInvalid(f"{describe_certificate(certificate)} {problem}")


def check_signatures(certificate: Certificate, message: bytes, verify: Verify) -> None:
    """Raise `CertificateInvalid` unless every signature in it is of ``message``."""
    for key, signature in certificate.votes:
        if not verify(key, signature, message):
            raise CertificateInvalid(
                f"{describe_certificate(certificate)} has a vote that {key.hex()} did not sign"
            )


def describe_certificate(certificate: Certificate) -> str:
    """Return what an error calls it."""
    return f"the certificate of frame {certificate.height} in epoch {certificate.epoch}"
