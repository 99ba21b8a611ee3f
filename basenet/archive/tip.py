"""TIP: the signed statement of how far a shard's archive goes (P25).

Theory of operation
===================

Objects that vanish from the end of a log, or a stale listing, leave no gap behind. TIP makes them
visible: the head of a frame that is archived, signed, replaced as the log grows. A reader refuses
a log that ends below it. Deleting both TIP and log is not visible from the archive alone, and the
newest objects can go unseen for as long as TIP is behind.

TIP follows the archive: after the first new frame by `IDLE_SECONDS`, so that a shard that went
idle is covered soon, but never sooner than `INTERVAL_SECONDS` after the last time. So a lone commit
costs one more write, a busy shard one in ten seconds, an idle shard none.

It never names a frame within a PARTIAL run, because no state can be restored there. It is written
under the lease with `replace_if`. When another writer's TIP is found, its archive epoch decides:
a higher one means that the lease is lost, which the lease then finds out by itself.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

import trio

from basenet.archive.facts import TipFacts, open_tip
from basenet.archive.lease import Lease
from basenet.archive.names import ShardNames
from basenet.archive.port import Store, StoreConflict, StoreNotFound, Token
from basenet.archive.seal import Seal
from basenet.errors import BasenetError, ConflictError, CorruptionError, UntrustedKey
from basenet.keys.trust import get_fingerprint
from basenet.units import Seq
from basenet.wire.certificate import Certificate, encode_certificate
from basenet.wire.frame import Flag, Head, encode_head
from basenet.wire.segment import Role, encode_segment

INTERVAL_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 1.0
ATTEMPT_SECONDS_MAX: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tip:
    """A verified TIP, and the token of the object it stood in."""

    facts: TipFacts
    token: Token


async def read_tip(store: Store, names: ShardNames, trusted: AbstractSet[bytes]) -> Tip | None:
    """Return the shard's TIP, or None if there is none.

    Raises `UntrustedKey` for a signer that is not in ``trusted`` and `CorruptionError` for a TIP
    that is not what was signed as this shard's.
    """
    try:
        found = await store.get(names.tip)
    except StoreNotFound:
        return None
    facts = open_tip(found.data, names)
    if facts.signed.signer not in trusted:
        raise UntrustedKey(
            f"{names.tip} is signed by {get_fingerprint(facts.signed.signer)}, which is not "
            "trusted; if it is yours, add its line to the trusted keys"
        )
    return Tip(facts=facts, token=found.token)


def encode_tip(
    head: Head, seal: Seal, archive_epoch: int, proof: Certificate | None = None
) -> bytes:
    """Return the bytes of a TIP that stands at ``head``; ``proof``: what proves that final."""
    assert not head.flags & Flag.PARTIAL, "TIP never lies within a PARTIAL run"
    return encode_segment(
        shard=seal.names.shard,
        start_seq=head.seq,
        count=0,
        records=(
            seal.epoch_record(archive_epoch, Role.TIP),
            encode_head(head),
            *([] if proof is None else [encode_certificate(proof)]),
        ),
        signer=seal.signer,
    )


class TipWriter:
    """Keeps one shard's TIP up to date."""

    def __init__(
        self,
        *,
        store: Store,
        seal: Seal,
        lease: Lease,
        trusted: AbstractSet[bytes],
        interval_seconds: float = INTERVAL_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        """Write nothing before `offer` and `run`."""
        self._store = store
        self._seal = seal
        self._lease = lease
        self._trusted = trusted
        self._interval_seconds = interval_seconds
        self._idle_seconds = idle_seconds
        self._head: Head | None = None
        self._proof: Certificate | None = None
        self._token: Token | None = None
        self._knows_token = False
        self._offered = trio.Event()
        self._lock = trio.Lock()
        self._written_at = float("-inf")
        self.written_seq = Seq(0)
        self.puts = 0
        self.last_error: str | None = None

    @property
    def is_behind(self) -> bool:
        """Whether a frame was offered that TIP does not cover."""
        return self._head is not None and self._head.seq > self.written_seq

    def offer(self, head: Head, proof: Certificate | None = None) -> None:
        """Say that everything up to ``head`` is archived; ``proof``: that it is final."""
        self._head, self._proof = head, proof
        self._offered.set()

    async def run(self) -> None:
        """Write TIP as it becomes due, until cancelled; failures wait for the next time."""
        while True:
            while not self.is_behind:
                self._offered = trio.Event()
                await self._offered.wait()
            due_at = max(
                trio.current_time() + self._idle_seconds,
                self._written_at + self._interval_seconds,
            )
            await trio.sleep_until(due_at)
            await self.write()

    async def write(self) -> bool:
        """Write TIP now if it is behind; return whether it covers all that was offered."""
        async with self._lock:
            head, proof = self._head, self._proof
            if head is None or not self.is_behind:
                return True
            self._written_at = trio.current_time()
            try:
                with trio.fail_after(ATTEMPT_SECONDS_MAX):
                    await self._write(head, proof)
            except (BasenetError, trio.TooSlowError) as error:
                # The log is what counts: it is not held up, and the next time tries again. What
                # ends the archive (a lost lease) is found and raised by the uploader.
                self.last_error = str(error) or "the archive did not answer in time"
                return False
            self.last_error = None
            self.written_seq = head.seq
            return not self.is_behind

    async def _write(self, head: Head, proof: Certificate | None) -> None:
        archive_epoch = await self._lease.ensure()
        data = encode_tip(head, self._seal, archive_epoch, proof)
        if not self._knows_token:
            await self._read_token(archive_epoch)
        self.puts += 1
        try:
            self._token = await self._store.replace_if(self._seal.names.tip, data, self._token)
        except StoreConflict:
            self._knows_token = False  # an earlier write of ours arrived, or another's did
            await self._read_token(archive_epoch)
            self._token = await self._store.replace_if(self._seal.names.tip, data, self._token)

    async def _read_token(self, archive_epoch: int) -> None:
        try:
            tip = await read_tip(self._store, self._seal.names, self._trusted)
        except UntrustedKey:
            raise
        except CorruptionError:
            # A damaged TIP is of use to nobody, and we, who hold the lease, know the log's end.
            self._token = await self._store.get_token(self._seal.names.tip)
            self._knows_token = True
            return
        if tip is not None and tip.facts.signed.archive_epoch > archive_epoch:
            self._lease.doubt()
            raise ConflictError(
                f"TIP of shard {self._seal.names.shard} was written under archive epoch "
                f"{tip.facts.signed.archive_epoch}, ours is {archive_epoch}: another node took over"
            )
        self._token = tip.token if tip else None
        self._knows_token = True
