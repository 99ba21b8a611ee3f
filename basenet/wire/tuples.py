r"""The signed tuples: what a vote, a promise or a proposal says, as bytes.

::

    "basenet/<type>/1\0" || lineage[16] || sid_len u16 || shard || fixed-width fields

======== ============================================================================
type     fields (u64 unless noted; "no view" is 2^64 - 1)
======== ============================================================================
vote     epoch view phase:u8 height hash[32]
newview  epoch view high_view high_height high_hash[32] qc_hash[32]
propose  epoch view prev_height prev_hash[32] end_height end_hash[32]
         anchor_view anchor_height anchor_hash[32]
release  epoch view target
wish     epoch view
refuse   epoch height hash[32]
genesis  frame_hash[32]
withdraw frame_hash[32]
readindex epoch view height nonce[16]
======== ============================================================================

The type is the domain: a signature for one use can never pass for another. The lineage keeps what
was signed in one history out of every other one. Nodes are named by their keys, never by ids, and
no signature ever covers an encoding that could spell one value in two ways.

The acknowledgement of a heartbeat is between two nodes and for many shards, so it names no shard::

    "basenet/ack/1\0" || from key[32] || to key[32] || boot nonce[8] || round u64
    || list version u64 || SHA256(list)[32] || mode u8 || SHA256(exceptions)[32]
"""

from struct import Struct
from typing import Final

from basenet.units import (
    HASH_BYTES,
    KEY_BYTES,
    LINEAGE_BYTES,
    Epoch,
    FrameHash,
    Lineage,
    PublicKeyBytes,
    Seq,
    ShardId,
    View,
)
from basenet.wire.codec import shard_id as encode_shard_id

NO_VIEW_WIRE: Final = 2**64 - 1
NONCE_BYTES: Final = 16
BOOT_NONCE_BYTES: Final = 8

_VOTE: Final = Struct(">QQBQ32s")
_NEW_VIEW: Final = Struct(">QQQQ32s32s")
_PROPOSE: Final = Struct(">QQQ32sQ32sQQ32s")
_RELEASE: Final = Struct(">QQQ")
_WISH: Final = Struct(">QQ")
_REFUSE: Final = Struct(">QQ32s")
_READ_INDEX: Final = Struct(">QQQ16s")
_ACK: Final = Struct(">32s32s8sQQ32sB32s")


def _wire_view(view: int) -> int:
    return NO_VIEW_WIRE if view < 0 else view


class Scope:
    """One shard in one lineage: the prefix of everything that is signed for it."""

    __slots__ = (
        "_genesis",
        "_new_view",
        "_propose",
        "_read_index",
        "_refuse",
        "_release",
        "_vote",
        "_wish",
        "_withdraw",
        "lineage",
        "shard",
    )

    def __init__(self, lineage: Lineage, shard: ShardId) -> None:
        assert len(lineage) == LINEAGE_BYTES, "a lineage of another length"
        self.lineage = lineage
        self.shard = shard
        common = lineage + encode_shard_id(shard)
        self._vote = b"basenet/vote/1\0" + common
        self._new_view = b"basenet/newview/1\0" + common
        self._propose = b"basenet/propose/1\0" + common
        self._release = b"basenet/release/1\0" + common
        self._wish = b"basenet/wish/1\0" + common
        self._refuse = b"basenet/refuse/1\0" + common
        self._genesis = b"basenet/genesis/1\0" + common
        self._withdraw = b"basenet/withdraw/1\0" + common
        self._read_index = b"basenet/readindex/1\0" + common

    def vote(self, epoch: Epoch, view: View, phase: int, height: Seq, digest: FrameHash) -> bytes:
        """Return what a vote for the frame ``digest`` at ``height`` signs."""
        return self._vote + _VOTE.pack(epoch, view, phase, height, digest)

    def new_view(  # noqa: PLR0917  (the fields of the tuple)
        self,
        epoch: Epoch,
        view: View,
        high_view: int,
        high_height: Seq,
        high_hash: FrameHash,
        qc_hash: bytes,
    ) -> bytes:
        """Return what a NewView signs; ``qc_hash``: of its certificate record, or zeros."""
        return self._new_view + _NEW_VIEW.pack(
            epoch, view, _wire_view(high_view), high_height, high_hash, qc_hash
        )

    def propose(  # noqa: PLR0917  (the fields of the tuple)
        self,
        epoch: Epoch,
        view: View,
        prev_height: Seq,
        prev_hash: FrameHash,
        end_height: Seq,
        end_hash: FrameHash,
        anchor_view: int,
        anchor_height: Seq,
        anchor_hash: FrameHash,
    ) -> bytes:
        """Return what a proposal of the frames (prev, end] over ``anchor`` signs."""
        return self._propose + _PROPOSE.pack(
            epoch,
            view,
            prev_height,
            prev_hash,
            end_height,
            end_hash,
            _wire_view(anchor_view),
            anchor_height,
            anchor_hash,
        )

    def release(self, epoch: Epoch, view: View, target: View) -> bytes:
        """Return what a leader signs that hands over to the leader of ``target``."""
        return self._release + _RELEASE.pack(epoch, view, target)

    def wish(self, epoch: Epoch, view: View) -> bytes:
        """Return what a wish for ``view`` signs."""
        return self._wish + _WISH.pack(epoch, view)

    def refuse(self, epoch: Epoch, height: Seq, digest: FrameHash) -> bytes:
        """Return what the promise never to vote for ``digest`` or a descendant signs (Q8)."""
        return self._refuse + _REFUSE.pack(epoch, height, digest)

    def genesis(self, frame_hash: FrameHash) -> bytes:
        """Return what a voter signs under a genesis (Q2)."""
        return self._genesis + frame_hash

    def withdraw(self, frame_hash: FrameHash) -> bytes:
        """Return what the author signs who takes a genesis back (Q2)."""
        return self._withdraw + frame_hash

    def read_index(self, epoch: Epoch, view: View, height: Seq, nonce: bytes) -> bytes:
        """Return what the answer to a read-index request signs."""
        assert len(nonce) == NONCE_BYTES, "a nonce of another length"
        return self._read_index + _READ_INDEX.pack(epoch, view, height, nonce)


def acknowledgement(  # noqa: PLR0917  (the fields of the tuple)
    sender: PublicKeyBytes,
    receiver: PublicKeyBytes,
    boot_nonce: bytes,
    number: int,
    list_version: int,
    list_hash: bytes,
    mode: int,
    exceptions_hash: bytes,
) -> bytes:
    """Return what a node signs that acknowledges another node's heartbeat (Q7)."""
    assert len(sender) == len(receiver) == KEY_BYTES, "a key of another length"
    assert len(boot_nonce) == BOOT_NONCE_BYTES, "a nonce of another length"
    assert len(list_hash) == len(exceptions_hash) == HASH_BYTES, "a hash of another length"
    return b"basenet/ack/1\0" + _ACK.pack(
        sender, receiver, boot_nonce, number, list_version, list_hash, mode, exceptions_hash
    )
