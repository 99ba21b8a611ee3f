"""Archives made by hand, object by object: what a writer would have left, or should never leave."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from basenet.archive.fetch import Fetcher
from basenet.archive.names import LogName, PartName, SetName, ShardNames
from basenet.archive.place import Place
from basenet.archive.plan import Wish
from basenet.archive.restore import RestoreReport, restore
from basenet.archive.verify import VerifyReport, verify
from basenet.units import (
    GROUP_PAGES,
    ZERO_HASH,
    Epoch,
    FrameHash,
    JournalId,
    Lineage,
    Seq,
    ShardId,
    StateRoot,
    TimestampNs,
    View,
    part_groups,
)
from basenet.wire.frame import Flag, Frame, Head, Kind, encode_frame, encode_head, seal
from basenet.wire.merkle import StateTree, group_hash, leaf_hashes, normalised_first_page
from basenet.wire.pageset import (
    IndexRow,
    PageSet,
    Part,
    encode_block,
    encode_index,
    encode_pageset,
    part_node_hash,
)
from basenet.wire.payload import ConfigPayload, Voter, encode_config
from basenet.wire.segment import EpochRecord, Role, encode_epoch, encode_segment, service_hash
from basenet.wire.signature import Signer
from tests.fakes.chain import FIRST_NS, STEP_NS, Chain, signer
from tests.fakes.memory_store import MemoryStore


class History(Chain):
    """A chain of any shard, that can change its voter and its page size."""

    def __init__(self, *, shard: str = "app", **options: Any) -> None:
        self.shard_id = ShardId(shard)
        self.epoch = 1
        super().__init__(**options)
        self.shard = self.shard_id

    def repage(self, page_size: int, count: int) -> Frame:
        """Recover with another page size and ``count`` new pages."""
        self.page_size, self.pages = page_size, {}
        self.tree = StateTree(page_size)
        pages = {pgno: self.page() for pgno in range(1, count + 1)}
        return self.commit(pages, flags=Flag.RECOVERED)[-1]

    def hand_over(self, key: int, *, voters: int = 1) -> Frame:
        """Make ``key`` the voter, by a CONFIG that the present voter signs."""
        successors = [signer(key + number) for number in range(voters)]
        payload = encode_config(
            ConfigPayload(
                lineage=self.lineage,
                parent=None,
                voters=tuple(
                    Voter(
                        node_id=f"node{number}",
                        key=successor.public,
                        journal_id=JournalId(bytes([number + 1]) * 16),
                    )
                    for number, successor in enumerate(successors)
                ),
                page_size=self.page_size,
                members_hash=ZERO_HASH,
            )
        )
        before = self.tip.head
        self.epoch += 1
        frame = self._append(
            payload,
            Kind.CONFIG,
            Flag.NONE,
            seq=Seq(before.seq + 1),
            prev_hash=before.hash,
            state_root=before.state_root,
        )
        self.signer = successors[0]
        return frame

    def contents(self, seq: int | None = None) -> bytes:
        """Return the database file at ``seq``, as a restore must write it."""
        image = self.image(self.tip.head.seq if seq is None else seq)
        whole = b"".join(image[pgno] for pgno in sorted(image))
        return normalised_first_page(whole) if whole else b""

    def _append(
        self,
        payload: bytes,
        kind: Kind,
        flags: Flag,
        *,
        seq: Seq,
        prev_hash: FrameHash,
        state_root: StateRoot,
    ) -> Frame:
        self.now_ns += STEP_NS
        frame = seal(
            shard=self.shard_id,
            seq=seq,
            timestamp_ns=TimestampNs(self.now_ns),
            salt=self.rng.randbytes(16),
            payload=payload,
            kind=kind,
            flags=flags,
            epoch=Epoch(self.epoch),
            view=View(0),
            prev_hash=prev_hash,
            state_root=state_root,
            signer=self.signer,
        )
        self.frames.append(frame)
        self.images.append(dict(self.pages))
        return frame


class Archive:
    """An archive in memory, and what a reader of it finds."""

    def __init__(self, *, service: str = "default", store: MemoryStore | None = None) -> None:
        self.service = service
        self.store = store or MemoryStore()

    def names(self, history: Chain) -> ShardNames:
        return ShardNames(service=self.service, shard=history.shard)

    # Writing.

    def put_log(
        self,
        history: History,
        start: int,
        end: int | None = None,
        *,
        archive_epoch: int = 1,
        key: Signer | None = None,
    ) -> str:
        """Put the frames ``start`` .. ``end`` as one log object; return its name."""
        frames = [history.frame(seq) for seq in range(start, (end or start) + 1)]
        name = self.names(history).log(
            LogName(
                lineage=history.lineage,
                start=Seq(start),
                end=frames[-1].head.seq,
                nanos=frames[0].head.timestamp_ns,
            )
        )
        records = [encode_frame(frame) for frame in frames]
        sealed = self._seal(
            history,
            Role.LOG,
            records,
            head=frames[-1].head,
            start=start,
            count=len(records),
            archive_epoch=archive_epoch,
            key=key,
        )
        self.store.put(name, sealed)
        return name

    def put_logs(self, history: History, step: int = 3, *, start: int | None = None) -> list[str]:
        """Put all frames from ``start`` in log objects of ``step`` frames."""
        last = history.tip.head.seq
        first = start or history.start
        return [
            self.put_log(history, seq, min(seq + step - 1, last))
            for seq in range(first, last + 1, step)
        ]

    def put_set(
        self,
        history: History,
        seq: int,
        *,
        inline: bool = False,
        archive_epoch: int = 1,
        key: Signer | None = None,
        is_named_by_content: bool = True,
        page_size: int | None = None,
    ) -> list[str]:
        """Put a page set at ``seq``; return the names of manifest, index and parts.

        ``page_size``: at ``seq``, if it was changed since.
        """
        head, names = history.frame(seq).head, self.names(history)
        size = page_size or history.page_size
        rows, parts, stored = self._blocks(
            history.contents(seq), size, is_named_by_content=is_named_by_content
        )
        index = encode_index(rows)
        pages = PageSet(
            lineage=history.lineage,
            page_size=size,
            db_pages=len(history.image(seq)),
            from_seq=Seq(0),
            to_seq=head.seq,
            from_root=StateRoot(ZERO_HASH),
            to_root=head.state_root,
            index_len=len(index),
            index_hash=sha256(index).digest(),
            parts=tuple(parts),
            inline=index + b"".join(stored) if inline else None,
        )
        set_name = SetName(to_seq=head.seq, from_seq=Seq(0), level=9, lineage=history.lineage)
        manifest = names.page_set(set_name)
        written = [manifest]
        if not inline:
            index_name = manifest.removesuffix(".lbn") + ".idx"
            self.store.put(index_name, index)
            written.append(index_name)
            for part, data in zip(parts, stored, strict=True):
                part_name = PartName(lineage=history.lineage, name=part.name or part.node_hash)
                self.store.put(names.part(part_name), data)
                written.append(names.part(part_name))
        records = [encode_head(head), encode_pageset(pages)]
        sealed = self._seal(
            history, Role.PAGE_SET, records, head=head, archive_epoch=archive_epoch, key=key
        )
        self.store.put(manifest, sealed)
        return written

    def _blocks(
        self, whole: bytes, size: int, *, is_named_by_content: bool
    ) -> tuple[list[IndexRow], list[Part], list[bytes]]:
        group_bytes = GROUP_PAGES * size
        rows, blocks, leaves_of = [], [], []
        for start in range(0, len(whole), group_bytes):
            raw = whole[start : start + group_bytes]
            leaves = leaf_hashes(start // size + 1, raw, size)
            block = encode_block(raw)
            rows.append(IndexRow(stored_size=len(block), group_hash=group_hash(leaves)))
            blocks.append(block)
            leaves_of.append(leaves)
        parts, stored = [], []
        span = part_groups(size)
        for first in range(0, len(blocks), span):
            data = b"".join(blocks[first : first + span])
            hashes = b"".join(row.group_hash for row in rows[first : first + span])
            name = sha256(data).digest() if is_named_by_content else b""
            node = part_node_hash(hashes, size)
            parts.append(Part(first_group=first, stored_len=len(data), node_hash=node, name=name))
            stored.append(data)
        return rows, parts, stored

    def put_tip(
        self,
        history: History,
        seq: int | None = None,
        *,
        archive_epoch: int = 1,
        key: Signer | None = None,
    ) -> str:
        """Put the TIP at ``seq``, by default the last frame; return its name."""
        head = history.frame(seq or history.tip.head.seq).head
        records = [encode_head(head)]
        sealed = self._seal(
            history, Role.TIP, records, head=head, archive_epoch=archive_epoch, key=key
        )
        self.store.put(self.names(history).tip, sealed)
        return self.names(history).tip

    def _seal(
        self,
        history: History,
        role: Role,
        records: Sequence[bytes],
        *,
        head: Head,
        start: int | None = None,
        count: int = 0,
        archive_epoch: int,
        key: Signer | None,
    ) -> bytes:
        """Sign as whoever wrote ``head``, the object's last frame, unless ``key`` is given."""
        writer = key or next(k for k in map(signer, range(1, 32)) if k.public == head.author)
        epoch = EpochRecord(
            archive_epoch=archive_epoch,
            lineage=history.lineage,
            writer=writer.public,
            role=role,
            service_hash=service_hash(self.service),
        )
        return encode_segment(
            shard=history.shard,
            start_seq=Seq(start or head.seq),
            count=count,
            records=[encode_epoch(epoch), *records],
            signer=writer,
        )

    # Harming.

    def flip(self, name: str, position: int, mask: int) -> None:
        """Change the byte at ``position`` (modulo the length) of an object."""
        data = bytearray(self.store.objects[name].data)
        data[position % len(data)] ^= mask
        self.store.put(name, bytes(data))

    def delete(self, name: str) -> None:
        del self.store.objects[name]

    # Reading.

    async def restore(
        self,
        history: Chain,
        out: Path,
        *,
        keys: Sequence[Signer] | None = None,
        to_seq: int | None = None,
        to_time_ns: int | None = None,
        lineage: Lineage | None = None,
        expect_seq: int | None = None,
        force: bool = False,
        dry_run: bool = False,
        fetcher: Fetcher | None = None,
    ) -> RestoreReport:
        wish = Wish(
            to_seq=None if to_seq is None else Seq(to_seq),
            to_time_ns=None if to_time_ns is None else TimestampNs(to_time_ns),
            lineage=lineage,
            expect_seq=None if expect_seq is None else Seq(expect_seq),
        )
        return await restore(
            self.store,
            self.names(history),
            Place(out, force=force),
            trusted=frozenset(key.public for key in keys or [signer(1)]),
            wish=wish,
            dry_run=dry_run,
            fetcher=fetcher,
        )

    async def verify(
        self,
        *,
        keys: Sequence[Signer] | None = None,
        now_ns: int = FIRST_NS,
        service: str | None = None,
        shard: ShardId | None = None,
    ) -> VerifyReport:
        """Verify at ``now_ns``; by default nothing is old enough to be retention's."""
        return await verify(
            self.store,
            trusted=frozenset(key.public for key in keys or [signer(1)]),
            now_ns=now_ns,
            service=service,
            shard=shard,
        )
