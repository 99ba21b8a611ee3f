"""What goes into the archive beside final frames: the certificates that prove them final.

Theory of operation
===================

A log object should end at a frame that has a certificate, so that it proves itself::

    journal   41 42 43* 44 45 CONFIG* 47 48 49* 50 ...            * has a certificate
    batch     |------------------------------|          cut back to 47? no: to where one is
    object    41 ......... CONFIG             CERT of CONFIG;  the next begins at 47

If there is none among the frames of the epoch that the batch ends in, it is prolonged up to the
next one, within bounds: a large transaction has one only at its end, and its pieces go before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from basenet.archive.backlog import Batch
from basenet.engine.ballot import first_seq
from basenet.journal.journal import Journal
from basenet.units import MIB, Seq, ShardId
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Frame, decode_frame
from basenet.wire.payload import ConfigPayload, decode_config

_PROLONGED_BYTES_MAX: Final = 32 * MIB


@dataclass(frozen=True, slots=True)
class KeptConfig:
    """A CONFIG of the lineage: its seq, content and encoded frame, and what proves it."""

    seq: Seq
    config: ConfigPayload
    record: bytes
    proof: Certificate | None


def read_configs(journal: Journal, shard: ShardId) -> list[KeptConfig]:
    """Return all CONFIGs of the lineage since its genesis."""
    found = []
    for record, proof in journal.config_chain(shard):
        frame = decode_frame(record)
        assert isinstance(frame, Frame), "the journal holds no frame of version 1"
        found.append(KeptConfig(frame.head.seq, decode_config(frame.payload), record, proof))
    return found


def prove(journal: Journal, shard: ShardId, batch: Batch) -> Batch:
    """Return ``batch`` with what proves it, cut or prolonged to where a certificate is."""
    configs = read_configs(journal, shard)
    within = [one for one in configs if batch.start <= one.seq <= batch.end]
    proofs = [one.proof for one in within if one.proof is not None]
    tail = Seq(max(batch.start, within[-1].seq + 1 if within else 0))
    deciding = [one for one in configs if one.seq < tail][-1]
    if tail > batch.end or len(deciding.config.voters) == 1:
        return _with(batch, batch.frames, proofs)
    found = journal.last_certificate(shard, tail, batch.end)
    if found is not None:
        return _with(batch, batch.frames[: found.height - batch.start + 1], [*proofs, found])
    if within and tail > batch.start:
        # What the CONFIG ended goes first; what follows it waits for a certificate.
        return _with(batch, batch.frames[: tail - batch.start], proofs)
    return _prolonged(journal, shard, batch)


def _prolonged(journal: Journal, shard: ShardId, batch: Batch) -> Batch:
    above = journal.certificate_for(shard, batch.end)
    if above is None:
        return batch
    room = _PROLONGED_BYTES_MAX - batch.size
    rows = journal.frames(shard, batch.end + 1, above.height, room) if room > 0 else []
    frames = (*batch.frames, *(record for _, record in rows))
    if batch.start + len(frames) - 1 == above.height:
        return _with(batch, frames, [above])
    return batch


def _with(batch: Batch, frames: Sequence[bytes], proofs: Sequence[Certificate]) -> Batch:
    return Batch(start=batch.start, frames=tuple(frames), proofs=tuple(proofs))


def genesis_seq(configs: Sequence[KeptConfig]) -> Seq:
    """Return the seq that the lineage begins with."""
    return first_seq(configs[0].config)
