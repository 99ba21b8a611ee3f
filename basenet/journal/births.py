"""The births of shards: what a node promised before a lineage was known, and which one it knows.

A birth comes before the shard itself, so its row goes by the shard's id::

    version u8=1 | msgpack array of the fields of `BirthRecord`, in their order
"""

from typing import Annotated, Final

import apsw
import msgspec
from msgspec import Meta

from basenet.engine.birth_record import BirthRecord, FileFate, KnownLineage, Promise
from basenet.errors import CorruptionError
from basenet.journal import sealed
from basenet.units import (
    JOURNAL_ID_BYTES,
    KEY_BYTES,
    LINEAGE_BYTES,
    JournalId,
    Lineage,
    PublicKeyBytes,
    ShardId,
)
from basenet.wire.birth import GENESIS_BYTES_MAX, Withdraw
from basenet.wire.certificate import Certificate

_VERSION: Final = b"\x01"
_Genesis = Annotated[bytes, Meta(max_length=GENESIS_BYTES_MAX)]


class _StoredPromise(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    author: Annotated[PublicKeyBytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
    journal_id: Annotated[JournalId, Meta(min_length=JOURNAL_ID_BYTES, max_length=JOURNAL_ID_BYTES)]
    genesis: _Genesis

    def value(self) -> Promise:
        return Promise(author=self.author, journal_id=self.journal_id, genesis=self.genesis)


class _StoredKnown(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    genesis: _Genesis
    certificate: Certificate | None
    file: FileFate
    is_settled: bool

    def value(self) -> KnownLineage:
        return KnownLineage(
            genesis=self.genesis,
            certificate=self.certificate,
            file=self.file,
            is_settled=self.is_settled,
        )


class _Stored(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    is_decided: bool
    promise: _StoredPromise | None
    withdrawn: tuple[Withdraw, ...]
    known: _StoredKnown | None
    left: tuple[Annotated[Lineage, Meta(min_length=LINEAGE_BYTES, max_length=LINEAGE_BYTES)], ...]


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_Stored)


def encode_birth(birth: BirthRecord) -> bytes:
    """Encode ``birth``."""
    promise, known = birth.promise, birth.known
    stored_promise = stored_known = None
    if promise is not None:
        stored_promise = _StoredPromise(promise.author, promise.journal_id, promise.genesis)
    if known is not None:
        stored_known = _StoredKnown(known.genesis, known.certificate, known.file, known.is_settled)
    stored = _Stored(birth.is_decided, stored_promise, birth.withdrawn, stored_known, birth.left)
    return _VERSION + _encoder.encode(stored)


def decode_birth(data: bytes) -> BirthRecord:
    """Decode a birth; raise `CorruptionError` for anything that `encode_birth` does not write."""
    if data[:1] != _VERSION:
        raise CorruptionError("a birth is of an unknown form")
    try:
        stored = _decoder.decode(data[1:])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptionError(f"a birth does not decode: {error}") from error
    birth = BirthRecord(
        is_decided=stored.is_decided,
        promise=None if stored.promise is None else stored.promise.value(),
        withdrawn=stored.withdrawn,
        known=None if stored.known is None else stored.known.value(),
        left=stored.left,
    )
    if encode_birth(birth) != data:
        raise CorruptionError("a birth is not in the form that it was written in")
    return birth


def keep_birth(connection: apsw.Connection, shard: ShardId, birth: BirthRecord) -> None:
    """Keep the birth of ``shard``, whole."""
    connection.execute(
        "INSERT OR REPLACE INTO birth VALUES (?, ?)", (shard, sealed.close(encode_birth(birth)))
    )


def load_birth(connection: apsw.Connection, shard: ShardId) -> BirthRecord:
    """Return the birth of ``shard``, an empty one if there is nothing to remember."""
    rows = list(connection.execute("SELECT record FROM birth WHERE shard = ?", (shard,)))
    if not rows:
        return BirthRecord()
    return decode_birth(sealed.reopen(rows[0][0], f"the birth of shard {shard}"))
