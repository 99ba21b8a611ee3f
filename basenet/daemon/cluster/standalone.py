"""A standalone history of this journal becomes one of a cluster, over the same data (Q22).

Theory of operation
===================

A standalone node signs with a key that it made itself; in a cluster it is who its certificate says.
So the first start with BASE_NETWORK=quasar writes one CONFIG with the *old* key, which names the
new one. It is final at once, because its epoch has one voter, and who trusts the old key trusts the
new one by it. The old key is only read from then on::

    standalone:  genesis ── COMMIT ── ... ── COMMIT ── CONFIG ── COMMIT ──
                 signed by the old key ──────────────────────┘   signed by the certificate's key

No genesis is written: the lineage goes on, this node is its only voter and writer, and the other
nodes join it as learners. Four steps, each durable before the next and skipped where it was done::

    1  the shard gets a ballot           frames, leaf hashes and cursor stay where they are
    2  the CONFIG enters the branch      with the ballot of the next epoch
    3  the CONFIG settles                it is the log's end, and the file is there
    4  the birth knows the lineage       from its genesis, which the journal has kept
"""

import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_IMODE
from typing import Final

import structlog

from basenet.daemon.journalist import Journalist
from basenet.engine.ballot import GENESIS_VIEW, begin_epoch, continue_alone
from basenet.engine.birth_record import FileFate, KnownLineage
from basenet.engine.configuration import compute_succession
from basenet.engine.placement import Peer
from basenet.errors import BasenetError, ConflictError
from basenet.journal.journal import Journal, JournalBroken
from basenet.journal.records import BranchRow, ReplicaRecord, Settled, Step
from basenet.keys import signing
from basenet.keys.signing import SIGNING_KEY_NAME
from basenet.units import (
    SALT_BYTES,
    Epoch,
    JournalId,
    LocalNumber,
    PublicKeyBytes,
    Seq,
    ShardId,
    TimestampNs,
)
from basenet.wire.frame import Flag, Frame, Kind, encode_frame, seal
from basenet.wire.message import Mark
from basenet.wire.payload import ConfigPayload, decode_config, encode_config
from basenet.wire.signature import AnySigner

log = structlog.get_logger()

_READ_ONLY: Final = 0o400


def load_old_signer(data_dir: Path) -> AnySigner | None:
    """Return what signs with the key of this node's standalone life; None: it had none.

    The file is made read-only. Raises `UsageError` when it cannot be read.
    """
    path = data_dir / SIGNING_KEY_NAME
    if not path.exists():
        return None
    signer = signing.load(path).signer()
    if S_IMODE(path.stat().st_mode) != _READ_ONLY:
        path.chmod(_READ_ONLY)
    return signer


@dataclass(frozen=True, slots=True, kw_only=True)
class Heritage:
    """What a shard's standalone life may have left; ``heir``, ``signer``: of the certificate."""

    journalist: Journalist
    shard: ShardId
    heir: Peer
    signer: AnySigner
    data_dir: Path

    async def accept(self) -> BasenetError | None:
        """Go on with a standalone history, if there is one; return why that cannot be now."""
        try:
            old = load_old_signer(self.data_dir)
            signers = (self.signer,) if old is None else (self.signer, old)
            is_taken = await self.journalist.perform(
                lambda journal: take_over(journal, self.shard, heir=self.heir, signers=signers)
            )
        except JournalBroken:
            raise
        except BasenetError as error:
            return error
        if is_taken:
            log.info("standalone_taken_over", shard=self.shard)
        return None


def take_over(
    journal: Journal, shard: ShardId, *, heir: Peer, signers: tuple[AnySigner, ...]
) -> bool:
    """Let a standalone history of ``shard`` go on in a cluster; return whether there was one.

    ``heir``: this node by its certificate. ``signers``: what it can sign with, its old key among
    them. Harmless when repeated. Raises `ConflictError` when the history is not this node's to
    go on with, and `UsageError` when the journal of an older program lacks the genesis.
    """
    record = journal.load_replica(shard)
    if record is None:
        found = journal.load(shard)
        if found is None:
            return False
        config = decode_config(found.config)
        _require_own(shard, config, journal.journal_id, signers)
        journal.adopt_replica(
            shard,
            ballot=continue_alone(config, found.tip),
            place=(found.tip.seq, found.tip.hash),
        )
        record = journal.load_replica(shard)
        assert record is not None, "a shard was adopted and is not in the journal"
    elif journal.load_birth(shard).known is not None:
        return False
    if len(record.ballot.config.voters) == 1:
        _succeed(journal, record, heir, signers)
    _know(journal, shard)
    return True


def _require_own(
    shard: ShardId,
    config: ConfigPayload,
    journal_id: JournalId,
    signers: tuple[AnySigner, ...],
) -> None:
    (voter,) = config.voters
    if voter.journal_id != journal_id:
        raise ConflictError(
            f"the journal of shard {shard} is a copy of another one, which may still go on: start "
            "this node standalone once, so that it begins a lineage of its own, or empty its data "
            "directory."
        )
    if voter.key not in {signer.public for signer in signers}:
        raise ConflictError(
            f"the history of shard {shard} is signed by a key that this node has not: put its "
            f"{SIGNING_KEY_NAME} back into the data directory, or empty that directory."
        )


def _succeed(
    journal: Journal, record: ReplicaRecord, heir: Peer, signers: tuple[AnySigner, ...]
) -> None:
    """Write the CONFIG that names ``heir``, if it is missing, and settle it."""
    by_key: dict[PublicKeyBytes, AnySigner] = {signer.public: signer for signer in signers}
    (voter,) = record.ballot.config.voters
    config = compute_succession(record.ballot.config, voter.key, heir, journal.journal_id)
    signer = by_key.get(voter.key)
    if config is not None and signer is not None:
        journal.keep([_write(record, config, signer)])
        loaded = journal.load_replica(record.shard)
        assert loaded is not None, "a shard with peers is gone"
        record = loaded
    if record.heads:
        (head,) = record.heads
        journal.settle(
            [
                Settled(
                    shard=record.shard,
                    heads=(head,),
                    certificate=None,
                    page_size=record.page_size,
                    db_pages=record.db_pages,
                    groups={},
                    place=(head.seq, head.hash),
                )
            ]
        )


def _write(record: ReplicaRecord, config: ConfigPayload, signer: AnySigner) -> Step:
    """Return the step that makes ``config`` final, by the old key alone."""
    tip, ballot = record.tip, record.ballot
    frame: Frame = seal(
        shard=record.shard,
        seq=Seq(tip.seq + 1),
        timestamp_ns=TimestampNs(max(time.time_ns(), tip.timestamp_ns + 1)),
        salt=secrets.token_bytes(SALT_BYTES),
        payload=encode_config(config),
        kind=Kind.CONFIG,
        flags=Flag.NONE,
        epoch=ballot.epoch,
        view=ballot.view,
        prev_hash=tip.hash,
        state_root=tip.state_root,
        signer=signer,
    )
    head = frame.head
    return Step(
        shard=record.shard,
        frames=(
            BranchRow(
                head=head,
                record=encode_frame(frame),
                local_first=LocalNumber(record.local_last + 1),
                local_last=record.local_last,
            ),
        ),
        ballot=begin_epoch(
            config, Epoch(ballot.epoch + 1), Mark(GENESIS_VIEW, head.seq, head.hash)
        ),
    )


def _know(journal: Journal, shard: ShardId) -> None:
    """Let the birth know the lineage: it was born standalone, so everybody may be told."""
    genesis, certificate = journal.config_chain(shard)[0]
    birth = journal.load_birth(shard)
    known = KnownLineage(
        genesis=genesis, certificate=certificate, file=FileFate.ADOPTED, is_settled=True
    )
    journal.keep_birth(shard, replace(birth, promise=None, known=known))
