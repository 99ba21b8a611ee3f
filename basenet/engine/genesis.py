"""The first frame of a lineage: written, read, signed by all its voters, judged.

A genesis is a CONFIG frame that its author signs like any other frame. What makes it more than a
proposal is its *certificate*: the signature of every voter that it names, n of n and not a quorum,
in phase 0 of epoch 1 and view 0, over the tuple `genesis` of `wire.tuples` (Q2). A reader with
public keys alone can check it. A genesis of one voter needs none: its author is all the voters.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from basenet.engine.ballot import FIRST_EPOCH, FIRST_VIEW
from basenet.errors import ChainBroken, FrameCorrupt
from basenet.units import (
    FrameHash,
    Lineage,
    PublicKeyBytes,
    Seq,
    ShardId,
    StateRoot,
    TimestampNs,
)
from basenet.wire.certificate import CONSENT, Certificate, Verify
from basenet.wire.chain import check_genesis
from basenet.wire.finality import found
from basenet.wire.frame import (
    Flag,
    Frame,
    Head,
    Kind,
    decode_frame,
    encode_frame,
    genesis_prev_hash,
    seal,
)
from basenet.wire.payload import ConfigPayload, decode_config, encode_config
from basenet.wire.signature import AnySigner
from basenet.wire.tuples import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Genesis:
    """A genesis as its author encoded it, and what is in it; its form and signature are right."""

    record: bytes
    frame: Frame
    config: ConfigPayload

    @property
    def head(self) -> Head:
        """The frame's head."""
        return self.frame.head

    @property
    def hash(self) -> FrameHash:
        """The frame's hash."""
        return self.frame.head.hash

    @property
    def author(self) -> PublicKeyBytes:
        """Who wrote it: the first voter."""
        return self.frame.head.author

    @property
    def lineage(self) -> Lineage:
        """The lineage that it founds."""
        return self.config.lineage

    @property
    def voters(self) -> tuple[PublicKeyBytes, ...]:
        """The keys of its voters, in their order."""
        return tuple(voter.key for voter in self.config.voters)

    @property
    def message(self) -> bytes:
        """What each of its voters signs."""
        return Scope(self.lineage, self.head.shard).genesis(self.hash)

    @property
    def withdrawal(self) -> bytes:
        """What its author signs who takes it back."""
        return Scope(self.lineage, self.head.shard).withdraw(self.hash)


def write_genesis(
    config: ConfigPayload,
    *,
    shard: ShardId,
    state_root: StateRoot,
    timestamp_ns: TimestampNs,
    salt: bytes,
    signer: AnySigner,
) -> Genesis:
    """Return the genesis of ``config``, whose first voter is ``signer``.

    ``state_root``: of the adopted file, or of the parent's frame. ``salt``: 16 random bytes.
    """
    assert config.voters[0].key == signer.public, "the author of a genesis is its first voter"
    payload = encode_config(config)
    frame = seal(
        shard=shard,
        seq=Seq(config.parent[1] + 1 if config.parent else 1),
        timestamp_ns=timestamp_ns,
        salt=salt,
        payload=payload,
        kind=Kind.CONFIG,
        flags=Flag.NONE,
        epoch=FIRST_EPOCH,
        view=FIRST_VIEW,
        prev_hash=genesis_prev_hash(payload),
        state_root=state_root,
        signer=signer,
    )
    return Genesis(record=encode_frame(frame), frame=frame, config=config)


def read_genesis(record: bytes, shard: ShardId, verify: Verify) -> Genesis:
    """Return the genesis in ``record``.

    Raises `FrameCorrupt` or `ChainBroken` unless it is a genesis of ``shard``, signed by an author
    who is its first voter. Whether its voters agree is told by its certificate.
    """
    frame = decode_frame(record)
    if not isinstance(frame, Frame):
        raise FrameCorrupt("a genesis is a frame of version 2, and this one is older")
    head = frame.head
    if head.kind != Kind.CONFIG or head.shard != shard:
        raise ChainBroken(f"frame {head.seq} of {head.shard!r} is no genesis of {shard!r}")
    config = decode_config(frame.payload)
    check_genesis(head, config, None)
    if (head.epoch, head.view) != (FIRST_EPOCH, FIRST_VIEW):
        raise ChainBroken(f"the genesis of {shard!r} is of epoch {head.epoch}, view {head.view}")
    if head.author != config.voters[0].key:
        raise ChainBroken(f"the author of the genesis of {shard!r} is not its first voter")
    if config.is_forced and config.parent is None:
        raise ChainBroken(f"the genesis of {shard!r} is FORCED but continues no lineage")
    if not verify(head.author, head.signature, head.signed_message):
        raise ChainBroken(f"nobody signed the genesis of {shard!r}")
    return Genesis(record=bytes(record), frame=frame, config=config)


def certify(genesis: Genesis, promises: Mapping[PublicKeyBytes, bytes]) -> Certificate:
    """Return the certificate of ``genesis`` from the signatures of all its voters."""
    assert set(genesis.voters) <= set(promises), "a genesis without the consent of all its voters"
    return Certificate(
        phase=CONSENT,
        epoch=FIRST_EPOCH,
        view=FIRST_VIEW,
        height=genesis.head.seq,
        hash=genesis.hash,
        votes=tuple((key, promises[key]) for key in sorted(genesis.voters)),
    )


def check_complete(genesis: Genesis, certificate: Certificate | None, verify: Verify) -> None:
    """Raise `ChainBroken` or `CertificateInvalid` unless all voters of ``genesis`` signed it."""
    found(genesis.head, genesis.config, certificate, verify=verify)
