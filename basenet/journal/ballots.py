"""A ballot as bytes: what a voter must never forget, written so that one value has one form.

::

    version u8=1 | msgpack array of the fields of `Ballot`, in their order; config: CONFIG payload

Nothing signed covers these bytes. They are read strictly all the same: a ballot that is not exactly
what was written could make this node break a promise, so it is refused.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from basenet.engine.ballot import Ballot
from basenet.errors import CorruptionError
from basenet.units import Epoch, Seq, View
from basenet.wire.certificate import Certificate
from basenet.wire.message import Justification, Mark, Refuse
from basenet.wire.payload import decode_config, encode_config

_VERSION: Final = b"\x01"


class _Stored(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True
):
    config: bytes
    epoch: Annotated[Epoch, Meta(ge=0)]
    genesis: Mark
    view: Annotated[View, Meta(ge=0)]
    voted: Mark | None
    vstart: Annotated[Seq, Meta(ge=0)] | None
    anchor: Mark | None
    justification: Justification | None
    prepared: Certificate | None
    final: Mark
    certificate: Certificate | None
    refused: tuple[Refuse, ...]


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_Stored)


def encode_ballot(ballot: Ballot) -> bytes:
    """Encode ``ballot``."""
    stored = _Stored(
        config=encode_config(ballot.config),
        epoch=ballot.epoch,
        genesis=ballot.genesis,
        view=ballot.view,
        voted=ballot.voted,
        vstart=ballot.vstart,
        anchor=ballot.anchor,
        justification=ballot.justification,
        prepared=ballot.prepared,
        final=ballot.final,
        certificate=ballot.certificate,
        refused=ballot.refused,
    )
    return _VERSION + _encoder.encode(stored)


def decode_ballot(data: bytes) -> Ballot:
    """Decode a ballot; raise `CorruptionError` for anything that `encode_ballot` does not write."""
    if data[:1] != _VERSION:
        raise CorruptionError("a ballot is of an unknown form")
    try:
        stored = _decoder.decode(data[1:])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptionError(f"a ballot does not decode: {error}") from error
    ballot = Ballot(
        config=decode_config(stored.config),
        epoch=stored.epoch,
        genesis=stored.genesis,
        view=stored.view,
        voted=stored.voted,
        vstart=stored.vstart,
        anchor=stored.anchor,
        justification=stored.justification,
        prepared=stored.prepared,
        final=stored.final,
        certificate=stored.certificate,
        refused=stored.refused,
    )
    if encode_ballot(ballot) != data:
        raise CorruptionError("a ballot is not in the form that it was written in")
    return ballot
