"""What the archive has of a shard that is to be born, and what follows for the birth (Q3, Q4).

Theory of operation
===================

An author looks here before it writes a genesis, so that no history is begun twice::

    archive      file here      what follows
    nothing      any            no parent: the birth of a first lineage; so without an archive
    a lineage    with rows      a child of its leaf; the author captures what the file holds beyond
    a lineage    none           restored, where BASE_RESTORE_IF_MISSING allows it: a child of its
                                leaf without anything beyond
    a lineage    without rows   no birth: as a child's content it would delete all that is archived;
                                a human moves it away
    not usable   any            no birth, and asked again (B24)

A *leaf* is found, and its state proven, as for a standalone node (`archive.continuation`).
"""

import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from basenet.archive.continuation import Birth, Child, Refuse, Resume, decide_continuation
from basenet.archive.fetch import Fetcher
from basenet.archive.names import ShardNames
from basenet.archive.place import Place
from basenet.archive.plan import Wish
from basenet.archive.port import Store
from basenet.archive.restore import restore
from basenet.daemon.node import Node
from basenet.engine.birth_events import ArchivedParent, ArchiveSurveyed
from basenet.errors import BasenetError
from basenet.units import LINEAGE_BYTES, SALT_BYTES, Lineage, PublicKeyBytes, ShardId, TimestampNs
from basenet.wire.birth import FileFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyor:
    """Who looks into which archive, for a file at which place.

    ``key``: this node's. ``trusted``: whose objects are believed; ``key`` is, too. ``scan`` reads
    the file under the fence, again after a restore. ``may_restore``: BASE_RESTORE_IF_MISSING.
    """

    store: Store
    names: ShardNames
    fetcher: Fetcher
    key: PublicKeyBytes
    trusted: frozenset[PublicKeyBytes]
    place: Place
    may_restore: bool
    scan: Callable[[], Awaitable[FileFacts | None]]


def make_surveyor(
    node: Node, shard: ShardId, path: Path, scan: Callable[[], Awaitable[FileFacts | None]]
) -> Surveyor | None:
    """Return who looks into the archive of ``node``; None where it has none."""
    if node.store is None:
        return None
    config = node.config
    return Surveyor(
        store=node.store,
        names=ShardNames(service=config.service, shard=shard),
        fetcher=Fetcher(node.store, retry_seconds=config.retry_deadline_seconds),
        key=node.author.signer.public,
        trusted=node.trusted,
        place=Place(path),
        may_restore=config.restore_if_missing,
        scan=scan,
    )


async def survey_archive(surveyor: Surveyor | None, file: FileFacts | None) -> ArchiveSurveyed:
    """Return what a birth must know; ``file``: as it was scanned. None: there is no archive.

    Every error of the archive and of a restore is the sentence ``problem`` of the answer.
    """
    if surveyor is None:
        return _answer(None, file, None)
    try:
        return await _survey(surveyor, file)
    except BasenetError as error:
        return _answer(None, file, str(error))


async def _survey(surveyor: Surveyor, file: FileFacts | None) -> ArchiveSurveyed:
    found = await decide_continuation(
        surveyor.store,
        surveyor.names,
        journal=None,
        key=surveyor.key,
        trusted=surveyor.trusted | {surveyor.key},
        fetcher=surveyor.fetcher,
    )
    match found:
        case Birth():
            return _answer(None, file, None)
        case Refuse():
            return _answer(None, file, str(found.error))
        case Resume():
            raise AssertionError("only a journal resumes")
        case Child():
            parent = _make_parent(found, file)
    if file is None:
        return await _restore(surveyor, parent)
    if not file.has_rows:
        return _answer(
            None,
            file,
            f"the archive has lineage {parent.lineage.hex()} of {surveyor.names.shard}, and "
            f"{surveyor.place.path} has no rows: move that file away, so that the archive's newest "
            "state can be restored in its place",
        )
    return _answer(parent, file, None)


def _make_parent(child: Child, file: FileFacts | None) -> ArchivedParent:
    state = child.state
    assert state is not None, "without a journal the parent is in the archive"
    # A state that cannot be told is brought whole by the file, in pages of its size.
    unknown = file.page_size if file is not None else 0
    return ArchivedParent(
        lineage=child.parent,
        seq=child.seq,
        hash=child.hash,
        state_root=state.state_root,
        page_size=state.page_size or unknown,
        timestamp_ns=state.head.timestamp_ns,
        is_forced=child.is_forced,
    )


async def _restore(surveyor: Surveyor, parent: ArchivedParent) -> ArchiveSurveyed:
    """Restore the parent's state where there is no file."""
    if not surveyor.may_restore:
        return _answer(
            None,
            None,
            f"the archive has lineage {parent.lineage.hex()} of {surveyor.names.shard} up to seq "
            f"{parent.seq}, and {surveyor.place.path} is missing: set BASE_RESTORE_IF_MISSING=on "
            "to have it restored, or restore it with `basenet restore`",
        )
    await restore(
        surveyor.store,
        surveyor.names,
        surveyor.place,
        trusted=surveyor.trusted | {surveyor.key},
        wish=Wish(to_seq=parent.seq),
        fetcher=surveyor.fetcher,
    )
    file = await surveyor.scan()
    if file is None or file.state_root != parent.state_root:
        return _answer(
            None,
            file,
            f"{surveyor.place.path} was restored to seq {parent.seq} and is another database now: "
            "somebody wrote to it before it was fenced; stop the application and move it away",
        )
    return _answer(parent, file, None)


def _answer(
    parent: ArchivedParent | None, file: FileFacts | None, problem: str | None
) -> ArchiveSurveyed:
    return ArchiveSurveyed(
        parent=parent,
        problem=problem,
        file=file,
        lineage=Lineage(secrets.token_bytes(LINEAGE_BYTES)),
        salt=secrets.token_bytes(SALT_BYTES),
        timestamp_ns=TimestampNs(time.time_ns()),
    )
