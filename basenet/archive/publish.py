"""Putting a proven snapshot into the archive, so that it exists whole or not at all.

Theory of operation
===================

Parts first, the index next, the manifest last: without the manifest a page set does not exist, so
whatever a failure leaves behind is garbage and nothing else. Up to 1 MiB all of it lies within the
manifest: one object.

*Parts* are named by the SHA-256 of their bytes, so that the manifest's signature covers those, too:
zstd ignores some bits, and a flipped one would else go unnoticed. Blocks that the newest snapshot
of the lineage has are not stored again (`basenet.archive.layout`). Whatever an attempt that failed
has left behind is found under its name.

An object whose bytes are not the ones that it is named by is damaged, for every snapshot that
names it. We hold the right bytes: it is deleted and written again, and reported.

*Who may.* The lease is made sure of before every write. Snapshots and retention of one shard are
the business of one task, one after the other: retention must not delete a part that a snapshot
has just found.
"""

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final, TypeVar

import trio

from basenet.archive.backoff import Backoff
from basenet.archive.facts import SetFacts, open_set
from basenet.archive.layout import Layout, OldPart, list_old_parts, make_extents, plan_layout
from basenet.archive.lease import Lease
from basenet.archive.names import PartName, SetName
from basenet.archive.pageset import Draft, Phase, Progress
from basenet.archive.patience import LEASE_SECONDS, in_time, seconds_for
from basenet.archive.port import Store, StoreConflict, StoreNotFound
from basenet.archive.seal import Seal, TwoHistories
from basenet.errors import CorruptionError, UnavailableError, UsageError
from basenet.units import HASH_BYTES, MIB, ZERO_HASH, Seq, StateRoot, TimestampNs
from basenet.wire.certificate import Certificate, encode_certificate
from basenet.wire.frame import Head, encode_head
from basenet.wire.pageset import (
    SNAPSHOT_LEVEL,
    Extent,
    IndexRow,
    PageSet,
    Part,
    decode_extents,
    decode_index,
    encode_index,
    encode_pageset,
    part_node_hash,
)
from basenet.wire.segment import Role, encode_segment

INLINE_BYTES_MAX: Final = MIB
UPLOADS_MAX: Final = 4
UPLOAD_BYTES_MAX: Final = 8 * MIB
RETRY_DEADLINE_SECONDS: Final = 300.0

_Result = TypeVar("_Result")
BeforeManifest = Callable[[Seq], Awaitable[None]]
Prove = Callable[[Head], Awaitable[Certificate | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSet:
    """A snapshot that is in the archive: what a manifest says, and what its index does.

    ``held``: the sizes of the lineage's parts that are listed, by name.
    """

    facts: SetFacts
    rows: Sequence[IndexRow]
    extents: Sequence[Extent]
    held: Mapping[str, int]

    def has_part(self, part: Part) -> bool:
        """Return whether ``part`` is there: somebody may have deleted it."""
        return self.held.get(part.file_name) == part.stored_len

    @property
    def stored_bytes(self) -> int:
        """How many bytes the whole snapshot is, shared parts included."""
        return self.facts.pages.index_len + sum(row.stored_size for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A snapshot that was just stored, by its manifest ``name``.

    ``new_bytes``: without the parts that it shares.

    ``repaired``: the names of parts that were found damaged and were written again.
    """

    name: str
    seq: Seq
    timestamp_ns: TimestampNs
    db_pages: int
    parts: int
    parts_shared: int
    stored_bytes: int
    new_bytes: int
    repaired: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """A part that is in the archive, and what lies in it."""

    blocks: OldPart
    new_bytes: int
    repaired: str | None = None

    @property
    def part(self) -> Part:
        """The part."""
        return self.blocks.part


async def read_newest_set(
    store: Store, seal: Seal, trusted: AbstractSet[bytes]
) -> StoredSet | None:
    """Return the newest snapshot of the lineage, or None if there is none that can be used.

    It only saves storing what is there: one that cannot be read or believed is not used, nor a
    part that is not listed.
    """
    prefix = f"{seal.names.lineage(seal.lineage)}set/L{SNAPSHOT_LEVEL}/"
    names = [entry.name async for entry in store.list(prefix) if entry.name.endswith(".lbn")]
    for name in reversed(names):
        parsed = seal.names.parse(name)
        if not isinstance(parsed, SetName):
            continue
        try:
            # A snapshot must not lean on parts that a recipient of today cannot read.
            if not await store.is_for_all(name):
                continue
            facts = open_set(await store.get_data(name), name, parsed, seal.names)
            if facts.signed.signer in trusted:
                rows, extents = await _read_index(store, seal, facts)
                return StoredSet(
                    facts=facts,
                    rows=rows,
                    extents=extents,
                    held=await _list_parts(store, seal),
                )
        except (CorruptionError, StoreNotFound):
            continue
    return None


async def _list_parts(store: Store, seal: Seal) -> dict[str, int]:
    folder = f"{seal.names.lineage(seal.lineage)}part/"
    return {entry.name.removeprefix(folder): entry.size async for entry in store.list(folder)}


async def _read_index(
    store: Store, seal: Seal, facts: SetFacts
) -> tuple[Sequence[IndexRow], Sequence[Extent]]:
    pages = facts.pages
    if pages.inline is not None:
        name, data = facts.signed.name, pages.inline[: pages.index_len]
    else:
        name = seal.names.page_set(_index_name(facts.set))
        data = await store.get_data(name)

    def decode() -> tuple[Sequence[IndexRow], Sequence[Extent]]:
        rows = decode_index(data, pages, name)
        return rows, decode_extents(data, rows, pages, name)

    return await trio.to_thread.run_sync(decode)


def _index_name(name: SetName) -> SetName:
    return SetName(
        to_seq=name.to_seq,
        from_seq=name.from_seq,
        level=name.level,
        lineage=name.lineage,
        is_index=True,
    )


class Publisher:
    """Stores drafts of one shard's snapshots."""

    def __init__(
        self,
        *,
        store: Store,
        seal: Seal,
        lease: Lease,
        trusted: AbstractSet[bytes],
        retry_deadline_seconds: float = RETRY_DEADLINE_SECONDS,
        prove: Prove | None = None,
    ) -> None:
        """``trusted``: the keys of whose snapshots parts are shared.

        ``prove``: returns what proves a head final; None where one voter always decides.
        """
        self._prove = prove
        self._store = store
        self._seal = seal
        self._lease = lease
        self._trusted = trusted
        self._retry_deadline_seconds = retry_deadline_seconds
        self._spool_turn = trio.CapacityLimiter(1)  # a spool is for one thread at a time

    async def publish(
        self, draft: Draft, *, progress: Progress, before_manifest: BeforeManifest | None = None
    ) -> Published:
        """Store ``draft``; it exists when this returns, and does not if this raises.

        ``before_manifest`` is awaited when all parts are stored: until the log is archived up to
        the snapshot's seq. Raises `UnavailableError` or `UsageError` when the store
        failed for `retry_deadline_seconds`, and the lease's `ConflictError`.
        """
        progress.phase = Phase.UPLOADING
        progress.bytes_total = sum(draft.sizes)
        name = SetName(
            to_seq=draft.head.seq,
            from_seq=Seq(0),
            level=SNAPSHOT_LEVEL,
            lineage=self._seal.lineage,
        )
        if progress.bytes_total + 36 * draft.group_count <= INLINE_BYTES_MAX:
            layout = plan_layout(draft.groups, draft.page_size, (), ())
            placed = [_place(draft, groups) for groups in layout.cuts]
        else:
            newest = await self._tried(
                lambda: read_newest_set(self._store, self._seal, self._trusted), MIB
            )
            placed = await self._store_parts(draft, newest, progress)
        return await self._finish(draft, name, placed, before_manifest)

    async def _store_parts(
        self, draft: Draft, newest: StoredSet | None, progress: Progress
    ) -> list[_Placed]:
        """Store the new parts, a few at a time and bounded in bytes; return all, in order."""
        layout = await trio.to_thread.run_sync(_lay_out, draft, newest)
        kept = [_Placed(blocks=blocks, new_bytes=0) for blocks in layout.kept]
        progress.bytes_done += sum(sum(blocks.sizes) for blocks in layout.kept)
        placed: dict[int, _Placed] = {}
        places = trio.CapacityLimiter(UPLOADS_MAX)
        room = _Room(UPLOAD_BYTES_MAX)

        async def store_one(number: int, groups: Sequence[int]) -> None:
            async with places:
                size = sum(draft.sizes[group] for group in groups)
                await room.take(size)
                try:
                    placed[number] = await self._store_part(draft, groups, is_whole=not kept)
                finally:
                    room.give(size)
                progress.bytes_done += size

        failures: list[Exception] = []

        async def guarded(number: int, groups: Sequence[int], scope: trio.CancelScope) -> None:
            # One failure ends the others; the caller is to see that one, not a group of them.
            try:
                await store_one(number, groups)
            except Exception as error:  # noqa: BLE001  (raised again below)
                failures.append(error)
                scope.cancel()

        async with trio.open_nursery() as nursery:
            for number, groups in enumerate(layout.cuts):
                nursery.start_soon(guarded, number, groups, nursery.cancel_scope)
        if failures:
            raise failures[0]
        return kept + [placed[number] for number in range(len(layout.cuts))]

    async def _store_part(self, draft: Draft, groups: Sequence[int], *, is_whole: bool) -> _Placed:
        """Store a part; ``is_whole``: of a snapshot that takes nothing from an older one."""
        data = await trio.to_thread.run_sync(draft.blocks.join, groups, limiter=self._spool_turn)
        # A hash would tell who guesses the pages that he guessed right.
        unique = (
            secrets.token_bytes(HASH_BYTES // 2)
            if self._store.hides_content
            else hashlib.sha256(data).digest()
        )
        placed = _place(draft, groups, name=unique, is_whole=is_whole)
        name = self._seal.names.part(PartName(lineage=self._seal.lineage, name=unique))
        try:
            await self._put(name, data)
        except StoreConflict:
            await self._tried(lambda: self._store.delete(name), 0)
            await self._put(name, data)
            return replace(placed, repaired=name)
        return placed

    async def _finish(
        self,
        draft: Draft,
        name: SetName,
        placed: Sequence[_Placed],
        before_manifest: BeforeManifest | None,
    ) -> Published:
        blocks = [place.blocks for place in placed]
        is_patched = any(not place.new_bytes for place in placed)
        index = await trio.to_thread.run_sync(_encode_index, draft, blocks, is_patched)
        stored = sum(sum(one.sizes) for one in blocks)
        is_inline = not is_patched and len(index) + stored <= INLINE_BYTES_MAX
        inline = index + draft.blocks.join(range(draft.group_count)) if is_inline else None
        pages = PageSet(
            lineage=self._seal.lineage,
            page_size=draft.page_size,
            db_pages=draft.db_pages,
            from_seq=Seq(0),
            to_seq=draft.head.seq,
            from_root=StateRoot(ZERO_HASH),
            to_root=draft.head.state_root,
            index_len=len(index),
            index_hash=hashlib.sha256(index).digest(),
            parts=tuple(place.part for place in placed),
            inline=inline,
            is_patched=is_patched,
        )
        if before_manifest is not None:
            await before_manifest(draft.head.seq)
        proof = await self._prove(draft.head) if self._prove is not None else None
        if not is_inline:
            # Late: an index without a manifest looks as if somebody had deleted the manifest.
            await self._put_index(self._seal.names.page_set(_index_name(name)), index, draft, name)
        await self._put_manifest(draft, name, pages, proof)
        return Published(
            name=self._seal.names.page_set(name),
            seq=draft.head.seq,
            timestamp_ns=draft.head.timestamp_ns,
            db_pages=draft.db_pages,
            parts=len(placed),
            parts_shared=sum(1 for place in placed if not place.new_bytes),
            stored_bytes=len(index) + stored,
            new_bytes=len(index) + sum(place.new_bytes for place in placed),
            repaired=tuple(place.repaired for place in placed if place.repaired),
        )

    async def _put_index(self, index_name: str, index: bytes, draft: Draft, name: SetName) -> None:
        try:
            await self._put(index_name, index)
        except StoreConflict:
            # Left behind by an attempt that ended before its manifest, and so of no use; or the
            # snapshot of this very frame exists, which the manifest's own conflict then says.
            if await self._read_manifest(draft, name):
                return
            await self._tried(lambda: self._store.delete(index_name), 0)
            await self._put(index_name, index)

    async def _put_manifest(
        self, draft: Draft, name: SetName, pages: PageSet, proof: Certificate | None
    ) -> None:
        object_name = self._seal.names.page_set(name)

        def encode(archive_epoch: int) -> bytes:
            return encode_segment(
                shard=self._seal.names.shard,
                start_seq=draft.head.seq,
                count=0,
                records=(
                    self._seal.epoch_record(archive_epoch, Role.PAGE_SET),
                    encode_head(draft.head),
                    *([] if proof is None else [encode_certificate(proof)]),
                    encode_pageset(pages),
                ),
                signer=self._seal.signer,
            )

        try:
            await self._put(object_name, encode)
        except StoreConflict:
            if not await self._read_manifest(draft, name):
                raise

    async def _read_manifest(self, draft: Draft, name: SetName) -> bool:
        """Return whether the snapshot of the draft's frame exists already."""
        object_name = self._seal.names.page_set(name)
        try:
            data = await self._tried(lambda: self._store.get_data(object_name), MIB)
        except StoreNotFound:
            return False
        facts = open_set(data, object_name, name, self._seal.names)
        if facts.head.hash != draft.head.hash:
            raise TwoHistories(
                f"two histories: snapshot {object_name} stands at another frame "
                f"{draft.head.seq} than ours; stop the other node that writes this lineage"
            )
        return True

    async def _put(self, name: str, data: bytes | Callable[[int], bytes]) -> None:
        """Write an object under the lease, trying again until the deadline."""

        async def put() -> None:
            archive_epoch = await in_time(
                self._lease.ensure, seconds=LEASE_SECONDS, url=self._store.url
            )
            encoded = data if isinstance(data, bytes) else data(archive_epoch)
            await self._store.put_if_absent(name, encoded)

        await self._tried(put, len(data) if isinstance(data, bytes) else MIB, LEASE_SECONDS)

    async def _tried(
        self, call: Callable[[], Awaitable[_Result]], size: int, more_seconds: float = 0
    ) -> _Result:
        gives_up_at = trio.current_time() + self._retry_deadline_seconds
        backoff = Backoff()
        while True:
            try:
                return await in_time(
                    call, seconds=seconds_for(size) + more_seconds, url=self._store.url
                )
            except (UnavailableError, UsageError):
                if trio.current_time() >= gives_up_at:
                    raise
            await trio.sleep(backoff.next_seconds())


class _Room:
    """So many bytes at a time; whoever wants more than there is waits, but never for ever."""

    def __init__(self, size: int) -> None:
        self._free = self._size = size
        self._freed = trio.Event()

    async def take(self, size: int) -> None:
        while self._free < min(size, self._size):
            await self._freed.wait()
        self._free -= min(size, self._size)

    def give(self, size: int) -> None:
        self._free += min(size, self._size)
        self._freed.set()
        self._freed = trio.Event()


def _place(
    draft: Draft, groups: Sequence[int], *, name: bytes = b"", is_whole: bool = True
) -> _Placed:
    """Return the part of the blocks of ``groups``; ``is_whole``: they are those of a subtree."""
    sizes = tuple(draft.sizes[group] for group in groups)
    node_hash = ZERO_HASH
    if is_whole:
        span = range(groups[0], groups[-1] + 1)
        node_hash = part_node_hash(draft.group_hashes(span), draft.page_size)
    part = Part(
        first_group=groups[0] if is_whole else 0,
        stored_len=sum(sizes),
        node_hash=node_hash,
        name=name,
    )
    offsets = tuple(accumulate(sizes[:-1], initial=0))
    blocks = OldPart(part=part, groups=tuple(groups), offsets=offsets, sizes=sizes)
    return _Placed(blocks=blocks, new_bytes=part.stored_len)


def _lay_out(draft: Draft, newest: StoredSet | None) -> Layout:
    """Return of what the snapshot consists that ``newest`` comes before."""
    if (
        newest is None
        or newest.facts.pages.inline is not None
        or newest.facts.pages.page_size != draft.page_size
    ):
        return plan_layout(draft.groups, draft.page_size, (), ())
    parts = [
        replace(one, part=replace(one.part, first_group=0, node_hash=ZERO_HASH))
        for one in list_old_parts(newest.rows, newest.extents, newest.facts.pages.parts)
        if newest.has_part(one.part) and one.part.name
    ]
    return plan_layout(draft.groups, draft.page_size, newest.rows, parts)


def _encode_index(draft: Draft, blocks: Sequence[OldPart], is_patched: bool) -> bytes:  # noqa: FBT001
    sizes = {
        group: size for one in blocks for group, size in zip(one.groups, one.sizes, strict=True)
    }
    rows = [
        IndexRow(stored_size=sizes[group], group_hash=draft.group_hashes(range(group, group + 1)))
        for group in range(draft.group_count)
    ]
    return encode_index(rows, make_extents(blocks) if is_patched else ())
