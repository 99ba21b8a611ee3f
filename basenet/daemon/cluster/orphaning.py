"""What lost against a certificate: kept in a bundle first, undone afterwards.

Theory of operation
===================

Commits of this node's application that can never become final are an *orphan*. Three steps, each
durable before the next, so that a crash between two of them repeats at most the later ones::

    1. the fence is held, and what was committed until then is captured       (nothing new comes)
    2. bundle: the signed frames, and commits that were never proposed as frames signed on top
    3. roll back: the pages that they changed get their content at the kept frame again; the journal
       then says that the file stands there

What was never proposed is signed like any frame, in the view of the lost branch, and goes nowhere
but into the bundle: it is marked so there.

A crash behind the second step repeats it, and what it finds is the same: so nothing in a bundle
comes from the clock or from chance, and the repeat finds the bundle of the first time.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import structlog
import trio

from basenet.daemon.cluster.branch import Branch
from basenet.daemon.cluster.frames import Frames, Getter
from basenet.daemon.cluster.orphans import (
    FOLDER,
    SUFFIX,
    BundleFacts,
    Reason,
    read_bundle,
    write_bundle,
)
from basenet.daemon.cluster.resuming import Resumed
from basenet.daemon.framer import payload_of
from basenet.daemon.node import Node
from basenet.engine.effects import Orphan
from basenet.errors import ConflictError, UnavailableError
from basenet.journal.records import OrphanRow
from basenet.sqlite.captured import Captured
from basenet.units import (
    SALT_BYTES,
    FrameHash,
    Lineage,
    LocalNumber,
    Seq,
    ShardId,
    TimestampNs,
)
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Flag, Frame, Head, Kind, decode_frame, encode_frame, seal
from basenet.wire.merkle import StateTree
from basenet.wire.payload import decode_commit_summary, encode_commit
from basenet.wire.signature import AnySigner

log = structlog.get_logger()


def seal_unproposed(
    items: Sequence[Captured],
    *,
    branch: Branch,
    tip: Head,
    signer: AnySigner,
    get: Getter,
) -> list[Frame]:
    """Return captured pieces as frames on ``tip``, as they would have been proposed.

    They are the same for the same pieces: one moment after the other, with no chance in them.
    Raises `UnavailableError` when ``tip`` is within a run that the pieces do not continue. For a
    thread; the caller holds the branch's lock.
    """
    if not items:
        return []
    branch.come_to(tip.hash, (), get)
    frames: list[Frame] = []
    before = tip
    for item in Resumed(*branch.open_run).unseen(items):
        payload = encode_commit(payload_of(item))
        frame = seal(
            shard=tip.shard,
            seq=Seq(before.seq + 1),
            timestamp_ns=TimestampNs(before.timestamp_ns + 1),
            salt=sha256(before.hash + payload).digest()[:SALT_BYTES],
            payload=payload,
            kind=Kind.COMMIT,
            flags=Flag(item.flags),
            epoch=tip.epoch,
            view=tip.view,
            prev_hash=before.hash,
            state_root=branch.take(item),
            signer=signer,
        )
        frames.append(frame)
        before = frame.head
    branch.reset()
    return frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a bundle holds: so many commits, which pages they changed, the last local number.

    ``path``: None when there was nothing to write.
    """

    path: Path | None
    commits: int
    pgnos: set[int]
    local_last: LocalNumber


class Bundler:
    """Writes the orphan bundles of one shard."""

    def __init__(
        self,
        *,
        node: Node,
        signer: AnySigner,
        shard: ShardId,
        lineage: Lineage,
        branch: Branch,
        frames: Frames,
    ) -> None:
        self._node = node
        self._signer = signer
        self._shard = shard
        self._lineage = lineage
        self._branch = branch
        self._frames = frames

    async def keep(
        self,
        effect: Orphan,
        items: Sequence[Captured],
        *,
        kept: Head,
        local_last: LocalNumber,
        reason: Reason,
    ) -> Kept:
        """Make durable what ``effect`` orphans, and ``items``, which were never proposed.

        ``kept``: the head of the frame below all of it. ``local_last``: of what is in frames.
        """
        heads = effect.heads
        try:
            unproposed, tree = await self._sealed(heads, items, kept)
        except UnavailableError:
            # What was cut off within a run is not what the file holds: nobody can use the rest.
            while heads and heads[-1].is_partial:
                heads = heads[:-1]
            unproposed, tree = await self._sealed(heads, items, kept)
        records = await self._frames.records(heads)
        records += [encode_frame(frame) for frame in unproposed]
        pgnos, commits = changed_pages(records)
        if len(heads) < len(effect.heads):
            pgnos |= changed_pages(await self._frames.records(effect.heads))[0]
        waiting = sum(decode_commit_summary(frame.payload).commits for frame in unproposed)
        last = LocalNumber(local_last + waiting)
        end = unproposed[-1].head if unproposed else (*heads, kept)[len(heads) - 1]
        facts = BundleFacts(
            shard=self._shard,
            lineage=self._lineage,
            kept_seq=kept.seq,
            kept_hash=kept.hash,
            kept_root=kept.state_root,
            page_size=tree.page_size,
            db_pages=tree.db_pages,
            reason=reason,
            created_ns=end.timestamp_ns,
            first_local=LocalNumber(last - commits + 1),
            last_local=last,
            unproposed_seq=unproposed[0].head.seq if unproposed else Seq(0),
        )
        if not records:
            # Pieces of a run without its end: no commit is lost.
            return Kept(path=None, commits=0, pgnos=pgnos, local_last=local_last)
        path, facts = await trio.to_thread.run_sync(
            self._write, facts, records, effect.certificate, limiter=self._node.background_limiter
        )
        await note_bundle(self._node, facts, path, commits)
        return Kept(path=path, commits=commits, pgnos=pgnos, local_last=facts.last_local)

    def _write(
        self, facts: BundleFacts, records: Sequence[bytes], certificate: Certificate | None
    ) -> tuple[Path, BundleFacts]:
        return write_once(
            self._node.config.data_dir / FOLDER,
            facts,
            [hash_of(one) for one in records],
            lambda: records,
            certificate=certificate,
            signer=self._signer,
        )

    async def _sealed(
        self, heads: Sequence[Head], items: Sequence[Captured], kept: Head
    ) -> tuple[list[Frame], StateTree]:
        tip = heads[-1] if heads else kept
        get = self._frames.getter(self._node.journalist.journal, heads)
        async with self._branch.lock:
            return await trio.to_thread.run_sync(
                self._seal, items, tip, kept, get, limiter=self._node.work_limiter
            )

    def _seal(
        self,
        items: Sequence[Captured],
        tip: Head,
        kept: Head,
        get: Getter,
    ) -> tuple[list[Frame], StateTree]:
        unproposed = seal_unproposed(
            items, branch=self._branch, tip=tip, signer=self._signer, get=get
        )
        if kept.seq < self._branch.final_place[0]:
            # The file was behind what is final: its state is not known as a tree any more.
            return unproposed, StateTree(0)
        return unproposed, self._branch.state_at(kept, get)


def write_once(
    folder: Path,
    facts: BundleFacts,
    hashes: Sequence[FrameHash],
    records: Callable[[], Iterable[bytes]],
    *,
    certificate: Certificate | None,
    signer: AnySigner,
) -> tuple[Path, BundleFacts]:
    """Write the bundle of the frames ``hashes``, unless it is there; return its path and facts.

    ``records`` gives the encoded frames, each time it is called. A repeat after a crash finds the
    bundle of the first time, whose local numbers may be others by now: those in it count.
    """
    while True:
        try:
            path = write_bundle(folder, facts, records(), certificate=certificate, signer=signer)
        except ConflictError:
            path = folder / facts.shard / f"{facts.name}{SUFFIX}"
            there = read_bundle(path, frozenset({signer.public}))
            if [head.hash for head in there.heads] == list(hashes):
                return path, there.facts
            # Of the same moment, and another one.
            facts = replace(facts, created_ns=TimestampNs(facts.created_ns + 1))
        else:
            return path, facts


async def note_bundle(node: Node, facts: BundleFacts, path: Path, commits: int) -> None:
    """Put a bundle that is durable into the journal's index, and tell the operator of it."""
    row = OrphanRow(
        id=f"{facts.shard}/{facts.name}",
        shard=facts.shard,
        lineage=facts.lineage,
        path=str(path),
        kept_seq=facts.kept_seq,
        first_local=facts.first_local,
        last_local=facts.last_local,
        commits=commits,
        created_ns=facts.created_ns,
        state="kept",
        reason=facts.reason.words,
    )
    await node.journalist.perform(lambda journal: journal.add_orphan(row))
    log.error(
        "orphaned",
        shard=facts.shard,
        commits=commits,
        kept_seq=facts.kept_seq,
        bundle=str(path),
    )


def hash_of(record: bytes) -> FrameHash:
    """Return the hash of an encoded frame."""
    frame = decode_frame(record)
    assert isinstance(frame, Frame), "an own frame of version 1"
    return frame.head.hash


def changed_pages(records: Sequence[bytes]) -> tuple[set[int], int]:
    """Return the numbers of all pages that encoded frames carry, and how many commits."""
    pgnos: set[int] = set()
    commits = 0
    for record in records:
        frame = decode_frame(record)
        assert isinstance(frame, Frame), "an own frame of version 1"
        if frame.head.kind is Kind.COMMIT:
            summary = decode_commit_summary(frame.payload)
            pgnos.update(summary.pgnos.tolist())
            commits += summary.commits
    return pgnos, commits
