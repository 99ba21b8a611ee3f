"""The lease: which process may write one shard's archive.

Theory of operation
===================

``LEASE`` is a JSON object that is only ever replaced by whoever read its token (`replace_if`). It
says who holds it, under which *archive epoch*, and holds a random token of its own, so that two
writes never have the same bytes. It is unsigned: it keeps honest writers apart, and the epoch that
every signed object carries tells their objects apart when it could not (P24).

*Taking* (Q17, standalone). Free is a lease that does not exist, that its holder released, that is
our own (same key and same journal id: the process before us), or that is foreign and old: its
token has not changed for a TTL by our own CLOCK_BOOTTIME, or the store's own clock says that it
was written more than a TTL ago. The ``expires`` in it is for people. Each taking by a new process
is archive epoch + 1. So is our own: a copied data directory has our key and our journal id, and
with one epoch for both the frames of the two could not be told apart.

*Among peers* (Q17, quasar). Only final frames are archived, with what proves them, so two archivers
can only write equal ones, and the lease is economy. The established leader takes it at once from a
holder of the same lineage in an earlier (epoch, view).

*What was decided must still hold.* The daemon looks at the archive once, at its start, to decide
how its journal continues it (`lineage`), while the lease is taken with the first write. So
`observe` remembers the lease of that moment, and a lease that has changed since is not taken: the
archive may have moved. `LeaseHeld` says so and the shard starts again from the beginning.

*Holding.* A holder with nothing to write makes no requests. `ensure` comes before every write: it
renews when less than half a TTL is left, and reads the lease when more than a third of a TTL has
passed since it was last proven to be ours, both by CLOCK_BOOTTIME, so that a machine that slept
finds out. A renewal succeeds only over our own token: if it does, nobody wrote in between, however
late it is. A lease that another has taken is lost for good: `LeaseLost`.

*Releasing* keeps the object, because it keeps the epoch, and marks it free. It is right only when
nothing of ours can still arrive at the store, so a holder with an undecided write does not release:
the lease then runs out by itself.

A store that does not keep conditions (Q18) gives no exclusion: we write, wait, and read our token.
"""

import json
import secrets
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Final

import trio

from basenet.archive.clock import SECOND_NS, SYSTEM_CLOCK, Clock
from basenet.archive.names import ShardNames
from basenet.archive.port import Store, StoreConflict, StoreNotFound, Token
from basenet.errors import ConflictError, UnavailableError
from basenet.keys.trust import get_fingerprint
from basenet.units import JournalId, Lineage, PublicKeyBytes

LEASE_TTL_SECONDS: Final = 30
# Stores count whole seconds, in both of the times that are compared.
STORE_CLOCK_MARGIN_SECONDS: Final = 2
POLL_SECONDS: Final = 3.0
UNCONDITIONAL_WAIT_SECONDS: Final = 2.0
# LEASE is not signed, and an epoch must leave room for its successors in 8 bytes.
ARCHIVE_EPOCH_MAX: Final = 2**62


class LeaseHeld(ConflictError):  # noqa: N818  (the field's word; the kind is in the base)
    """Another process archives this shard."""


class LeaseLost(ConflictError):  # noqa: N818
    """Another process has taken over this shard's archive from us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who asks for the lease: a node's name, key and journal, in one lineage of the shard."""

    node: str
    key: PublicKeyBytes
    journal_id: JournalId
    lineage: Lineage
    epoch: int = 1
    view: int = 0
    is_established: bool = False
    """Whether a quorum follows it in (epoch, view): it takes over from earlier ones at once."""

    def follows(self, body: "LeaseBody") -> bool:
        """Return whether ``body`` is of an earlier view of the same lineage."""
        is_same = body.lineage == self.lineage.hex()
        return is_same and (self.epoch, self.view) > (body.epoch, body.view)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseBody:
    """What stands in the LEASE object. Bytes are in hex."""

    node: str
    key: str
    journal_id: str
    archive_epoch: int
    lineage: str
    epoch: int
    view: int
    token: str
    expires: str
    is_released: bool = False

    def is_of(self, holder: Holder) -> bool:
        """Return whether the holder's key and journal wrote it."""
        return self.key == holder.key.hex() and self.journal_id == holder.journal_id.hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenLease:
    """The LEASE object at one moment; ``age_ns`` is by the store's clock, None: it has none."""

    body: LeaseBody
    token: Token
    age_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    body: LeaseBody
    token: Token
    renewed_ns: int  # CLOCK_BOOTTIME, taken before the request
    proven_ns: int


def encode_lease(body: LeaseBody) -> bytes:
    """Encode the LEASE object."""
    return json.dumps(asdict(body), indent=1, sort_keys=True).encode() + b"\n"


def decode_lease(data: bytes, name: str) -> LeaseBody:
    """Decode the LEASE object ``name``; raise `ConflictError` if it is not one."""
    try:
        fields = json.loads(data)
        body = LeaseBody(**fields)
        is_typed = all(
            isinstance(getattr(body, field), kind)
            for field, kind in LeaseBody.__annotations__.items()
        )
    except (ValueError, TypeError) as error:
        raise _unreadable(name) from error
    if not is_typed or not 0 <= body.archive_epoch < ARCHIVE_EPOCH_MAX:
        raise _unreadable(name)
    return body


def _unreadable(name: str) -> ConflictError:
    return ConflictError(
        f"the lease object {name} is not readable: make sure that no other basenet archives this "
        "shard, then delete the object"
    )


def _show_key(key: str) -> str:
    """Return the fingerprint of the key in a LEASE, which nobody signed and may be anything."""
    try:
        return get_fingerprint(bytes.fromhex(key))
    except ValueError:
        return "no key"


async def read_lease(store: Store, names: ShardNames) -> SeenLease | None:
    """Return the shard's lease, or None when there is none."""
    try:
        found = await store.get(names.lease)
    except StoreNotFound:
        return None
    age_ns = None
    if found.modified_ns is not None and found.server_now_ns is not None:
        age_ns = found.server_now_ns - found.modified_ns
    return SeenLease(body=decode_lease(found.data, names.lease), token=found.token, age_ns=age_ns)


class Lease:
    """One process's claim to one shard's archive."""

    def __init__(
        self,
        *,
        store: Store,
        names: ShardNames,
        holder: Holder,
        clock: Clock = SYSTEM_CLOCK,
        ttl_seconds: float = LEASE_TTL_SECONDS,
    ) -> None:
        """Ask the store for nothing yet."""
        self._store = store
        self._names = names
        self._holder = holder
        self._clock = clock
        self._ttl_ns = int(ttl_seconds * SECOND_NS)
        self._lock = trio.Lock()
        # Every token that we write begins so: a write whose answer was lost is known by it.
        self._nonce = secrets.token_hex(8)
        self._held: _Held | None = None
        self._lost: LeaseLost | None = None
        self._has_observed = False
        self._observed: SeenLease | None = None
        # Which version we saw first, and when: it is old once it stood still for a TTL.
        self._standing: tuple[Token, int] | None = None
        self._epoch_floor = 0
        self.waits_for: str | None = None
        """Who holds the lease that we wait for, as a part of a sentence."""

    @property
    def archive_epoch(self) -> int | None:
        """The archive epoch under which we write; None while the lease is not held."""
        return self._held.body.archive_epoch if self._held else None

    @property
    def is_held(self) -> bool:
        """Whether we took the lease and do not know that we lost it."""
        return self._held is not None and self._lost is None

    def raise_epoch_floor(self, archive_epoch: int) -> None:
        """Take only epochs above ``archive_epoch``, which was met in the archive."""
        self._epoch_floor = max(self._epoch_floor, archive_epoch)

    def doubt(self) -> None:
        """Read the lease before the next write, however fresh it is."""
        if self._held:
            self._held = replace(self._held, proven_ns=self._clock.boot_ns() - self._ttl_ns)

    async def observe(self) -> SeenLease | None:
        """Remember the lease as it is when the daemon decides how to continue the archive."""
        async with self._lock:
            return await self._observe()

    async def _observe(self) -> SeenLease | None:
        self._observed = await read_lease(self._store, self._names)
        self._has_observed = True
        return self._observed

    async def wait_until_free(self) -> None:
        """Return when the observed lease may be taken; raise `LeaseHeld` if its holder lives.

        The lease of a holder that is gone becomes free within a TTL.
        """
        async with self._lock:
            if not self._has_observed:
                await self._observe()
            await self._wait_until_free()

    async def _wait_until_free(self) -> None:
        try:
            while (seen := self._observed) is not None and not self._is_free(seen):
                self.waits_for = f"node {seen.body.node} (archive epoch {seen.body.archive_epoch})"
                await trio.sleep(min(POLL_SECONDS, self._rest_seconds(seen) + 0.001))
                now = await read_lease(self._store, self._names)
                if now is None or now.token != seen.token:
                    is_free = now is None or now.body.is_released or self._is_ours(now.body)
                    if now and not (is_free or self._holder.is_established):
                        raise self._held_by(now.body)
                    self._observed = now
        finally:
            self.waits_for = None

    def _rest_seconds(self, seen: SeenLease) -> float:
        """Return for how long ``seen`` must yet stand still, by our own clock."""
        now_ns = self._clock.boot_ns()
        if self._standing is None or self._standing[0] != seen.token:
            self._standing = (seen.token, now_ns)
        return max(0.0, (self._ttl_ns - (now_ns - self._standing[1])) / SECOND_NS)

    def _is_free(self, seen: SeenLease) -> bool:
        if seen.body.is_released or seen.body.is_of(self._holder):
            return True
        if self._holder.is_established and self._holder.follows(seen.body):
            return True
        if self._rest_seconds(seen) == 0:
            return True
        margin_ns = STORE_CLOCK_MARGIN_SECONDS * SECOND_NS
        return seen.age_ns is not None and seen.age_ns > self._ttl_ns + margin_ns

    def _is_ours(self, body: LeaseBody) -> bool:
        """Return whether this very process wrote ``body``."""
        return body.token.startswith(self._nonce)

    def _held_by(self, body: LeaseBody) -> LeaseHeld:
        return LeaseHeld(
            f"shard {self._names.shard} in {self._store.url} is archived by node {body.node} "
            f"({_show_key(body.key)}, archive epoch {body.archive_epoch}): stop that basenet, or "
            "give this one another BASE_SERVICE or archive"
        )

    async def acquire(self) -> int:
        """Take the lease, if need be after a TTL's wait; return the archive epoch.

        Raises `LeaseHeld` when another process holds it, or took it since `observe`.
        """
        async with self._lock:
            return await self._acquire()

    async def _acquire(self) -> int:
        if self._held:
            return self._held.body.archive_epoch
        if not self._has_observed:
            await self._observe()
        await self._wait_until_free()
        seen = self._observed
        before = seen.body.archive_epoch if seen else 0
        body = self._new_body(max(before, self._epoch_floor) + 1)
        try:
            self._held = await self._write(body, seen.token if seen else None)
        except StoreConflict as error:
            now = await read_lease(self._store, self._names)
            if now is None:
                raise UnavailableError(
                    f"the lease object {self._names.lease} was deleted while it was taken"
                ) from error
            raise self._held_by(now.body) from error
        return body.archive_epoch

    async def ensure(self) -> int:
        """Return our archive epoch after making sure, if it is time, that the lease is ours.

        Takes the lease if it was not taken yet. Raises `LeaseHeld`, `LeaseLost`, and what the
        store raises.
        """
        async with self._lock:
            if self._lost:
                raise self._lost
            if self._held is None:
                return await self._acquire()
            now_ns = self._clock.boot_ns()
            if now_ns - self._held.renewed_ns > self._ttl_ns // 2:
                await self._renew(self._held)
            elif now_ns - self._held.proven_ns > self._ttl_ns // 3:
                await self._check(self._held)
            return self._held.body.archive_epoch

    async def _renew(self, held: _Held) -> None:
        try:
            self._held = await self._write(self._new_body(held.body.archive_epoch), held.token)
        except StoreConflict:
            await self._recreate_or_lose(held)

    async def _check(self, held: _Held) -> None:
        asked_ns = self._clock.boot_ns()
        try:
            found = await self._store.get(self._names.lease)
        except StoreNotFound:
            await self._recreate_or_lose(held)
            return
        if found.token != held.token:
            body = decode_lease(found.data, self._names.lease)
            if not self._is_ours(body):
                raise self._lose(held, body)
        self._held = replace(held, token=found.token, proven_ns=asked_ns)

    async def _recreate_or_lose(self, held: _Held) -> None:
        """After our lease was found changed: if it was only deleted, nobody else has it."""
        seen = await read_lease(self._store, self._names)
        if seen is None:
            try:
                self._held = await self._write(self._new_body(held.body.archive_epoch), None)
            except StoreConflict:
                seen = await read_lease(self._store, self._names)
            else:
                return
        if seen is not None and self._is_ours(seen.body):
            raise self._outdated()
        raise self._lose(held, seen.body if seen else None)

    def _outdated(self) -> UnavailableError:
        return UnavailableError(
            f"{self._store.url} shows an older version of our lease object {self._names.lease}: "
            "make sure that no cache stands between us and the store"
        )

    def _lose(self, held: _Held, body: LeaseBody | None) -> ConflictError | UnavailableError:
        """Return what it means that ``body`` stands where our lease should.

        Whoever takes a lease raises its epoch, so one of an epoch before ours is an old answer.
        """
        if body is not None and body.archive_epoch < held.body.archive_epoch:
            return self._outdated()
        who = f"node {body.node} (archive epoch {body.archive_epoch})" if body else "another node"
        self._lost = LeaseLost(
            f"the archive of shard {self._names.shard} in {self._store.url} was taken over by "
            f"{who}: stop one of the two, then restart this one"
        )
        return self._lost

    def _new_body(self, archive_epoch: int) -> LeaseBody:
        expires = datetime.fromtimestamp(
            (self._clock.wall_ns() + self._ttl_ns) // SECOND_NS, tz=UTC
        )
        return LeaseBody(
            node=self._holder.node,
            key=self._holder.key.hex(),
            journal_id=self._holder.journal_id.hex(),
            archive_epoch=archive_epoch,
            lineage=self._holder.lineage.hex(),
            epoch=self._holder.epoch,
            view=self._holder.view,
            token=self._nonce + secrets.token_hex(8),
            expires=expires.isoformat().replace("+00:00", "Z"),
        )

    async def _write(self, body: LeaseBody, expected: Token | None) -> _Held:
        """Write ``body`` over the version ``expected``; `StoreConflict` if that is not there.

        What is there may be an earlier write of ours whose answer was lost: then over that.
        """
        asked_ns = self._clock.boot_ns()
        data = encode_lease(body)
        try:
            token = await self._store.replace_if(self._names.lease, data, expected)
        except StoreConflict:
            seen = await read_lease(self._store, self._names)
            if seen is None or not self._is_ours(seen.body):
                raise
            token = await self._store.replace_if(self._names.lease, data, seen.token)
        if not self._store.is_conditional:
            await trio.sleep(UNCONDITIONAL_WAIT_SECONDS)
            if await self._store.get_data(self._names.lease) != data:
                raise StoreConflict(f"another process wrote {self._names.lease} after us")
        return _Held(body=body, token=token, renewed_ns=asked_ns, proven_ns=asked_ns)

    async def release(self) -> bool:
        """Mark the lease free, so that a successor need not wait; return whether that was done.

        Only for a holder none of whose writes is undecided. A lease that was never taken, was
        lost, or is not ours any more is left as it is. Raises what the store raises.
        """
        async with self._lock:
            held = self._held
            if held is None or self._lost:
                return False
            body = replace(self._new_body(held.body.archive_epoch), is_released=True)
            try:
                await self._write(body, held.token)
            except StoreConflict:
                return False
            finally:
                self._held = None
                self._has_observed = False
            return True
