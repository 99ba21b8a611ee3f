"""Restore: from an archive to a database file, proven, or nothing at all.

Theory of operation
===================

::

    list -> plan -> fetch in parallel -> prove and write -> state root -> fsync -> rename

The plan (`basenet.archive.plan`) is made from the listing and a handful of objects. The page set's
parts are decoded in two threads and written where they belong; then the log objects are decoded in
two threads and applied in order (`basenet.archive.replay`). Nothing appears under the final name
before the last proof, and what was written so far disappears when anything fails or the task is
cancelled (`basenet.archive.place`).

Retention may delete what a plan counts on, between the listing and the read. So when an object that
was listed is gone, the listing and the plan are made once more (P45). When it fails again, the
object is missing, and named.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from basenet.archive.facts import open_log
from basenet.archive.fetch import Fetcher, Request
from basenet.archive.names import ShardNames
from basenet.archive.partial import Partial, open_partial
from basenet.archive.place import Draft, Place
from basenet.archive.plan import Plan, Wish
from basenet.archive.port import Entry, Store, StoreNotFound
from basenet.archive.replay import Replay
from basenet.archive.setreader import SetReader
from basenet.archive.survey import Survey, survey_shard
from basenet.errors import CorruptionError
from basenet.units import Lineage, PublicKeyBytes, Seq, TimestampNs
from basenet.wire.frame import Head
from basenet.wire.segment import Segment

ATTEMPTS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a restore is, in stored bytes."""

    bytes_done: int
    bytes_total: int
    bytes_per_second: float


OnProgress = Callable[[Progress], None]

OnProven = Callable[[Lineage, Head, int], None]
"""Takes what is about to be put in its place: lineage, frame, bytes; what it raises prevents it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """What was restored, and from what; of a dry run: what would be.

    ``database_bytes`` is the size of the result, 0 in a dry run. ``moved``: what stood in the way
    and was moved aside. ``notes``: sentences for people. ``head``: of the frame that was reached;
    None in a dry run. ``kept_bytes``: of objects that an interrupted restore had fetched already.
    """

    path: Path
    service: str
    shard: str
    lineage: Lineage
    seq: Seq
    timestamp_ns: TimestampNs
    line: tuple[Lineage, ...]
    page_sets: tuple[str, ...]
    log_objects: tuple[str, ...]
    objects: int
    stored_bytes: int
    database_bytes: int
    seconds: float
    moved: tuple[Path, ...]
    notes: tuple[str, ...]
    is_dry_run: bool
    head: Head | None = None
    kept_bytes: int = 0


async def restore(
    store: Store,
    names: ShardNames,
    place: Place,
    *,
    trusted: frozenset[PublicKeyBytes],
    wish: Wish | None = None,
    dry_run: bool = False,
    on_progress: OnProgress | None = None,
    on_proven: OnProven | None = None,
    is_resumable: bool = False,
    fetcher: Fetcher | None = None,
) -> RestoreReport:
    """Restore the shard ``names`` to ``place``; ``on_proven`` is called in a thread.

    ``is_resumable``: use what an interrupted restore has left, and leave it when interrupted.

    Raises `CorruptionError` naming the object that is missing or not as signed, `UntrustedKey`,
    `NotFoundError` for a moment that the archive does not reach, `ConflictError` for two histories
    or a place that is taken, `UnavailableError` when the store or the disk does not answer. Then,
    and when it is cancelled, nothing is left behind, a draft that is worth resuming excepted.
    """
    started = time.monotonic()
    fetcher, wish = fetcher or Fetcher(store), wish or Wish()
    if not dry_run:
        await trio.to_thread.run_sync(place.check)
    attempt = 0
    while True:
        attempt += 1
        survey = await survey_shard(store, fetcher, names, wish)
        try:
            plan = await survey.make_plan(wish, trusted)
            if dry_run:
                return _report(plan, place, started)
            execution = _Execution(
                plan, survey, fetcher, place, started=started, on_progress=on_progress
            )
            execution.on_proven = on_proven
            execution.is_resumable = is_resumable
            return await execution.run()
        except StoreNotFound as error:
            if attempt == ATTEMPTS:
                raise CorruptionError(f"an object that was listed is gone: {error}") from error


class _Execution:
    """One plan being carried out."""

    def __init__(
        self,
        plan: Plan,
        survey: Survey,
        fetcher: Fetcher,
        place: Place,
        *,
        started: float,
        on_progress: OnProgress | None,
    ) -> None:
        self._plan = plan
        self._survey = survey
        self._fetcher = fetcher
        self._place = place
        self._started = started
        self._on_progress = on_progress
        self._bytes_done = 0
        self.on_proven: OnProven | None = None
        self.is_resumable = False
        self._kept_bytes = 0

    async def run(self) -> RestoreReport:
        draft = await trio.to_thread.run_sync(self._open_draft)
        with draft:
            if self._plan.base is None:
                draft.resize(0)
            replay = Replay(self._plan, draft)
            reader = await self._begin_base(replay)
            await self._replay_objects(replay, reader, draft)
            await trio.to_thread.run_sync(replay.finish)
            moved = await trio.to_thread.run_sync(self._accept, replay, draft)
            return _report(
                self._plan,
                self._place,
                self._started,
                database_bytes=replay.size_bytes,
                moved=moved,
                is_dry_run=False,
                head=replay.head,
                kept_bytes=self._kept_bytes,
            )

    def _open_draft(self) -> Draft:
        return open_partial(self._place) if self.is_resumable else self._place.open_draft()

    def _accept(self, replay: Replay, draft: Draft) -> list[Path]:
        if self.on_proven is not None:
            self.on_proven(replay.lineage, replay.head, replay.size_bytes)
        return self._place.accept(draft)

    async def _begin_base(self, replay: Replay) -> SetReader | None:
        """Read the base's index, and the whole base if it is inline."""
        base = self._plan.base
        if base is None:
            return None
        if base.index is None:
            reader = SetReader(base.facts, None, base.item.name)
            replay.begin_base(base, reader)
            for number in range(len(base.facts.pages.parts)):
                part = reader.inline_part(number)
                await trio.to_thread.run_sync(
                    replay.write_part, reader, number, part, base.item.name
                )
        else:
            index = await self._fetcher.get(base.index.name)
            reader = await trio.to_thread.run_sync(SetReader, base.facts, index, base.index.name)
            replay.begin_base(base, reader)
            self._advance(base.index.size)
        self._advance(base.item.size)
        return reader

    async def _find_parts(
        self, replay: Replay, reader: SetReader | None, draft: Draft
    ) -> list[tuple[int, Entry]]:
        """Return the parts of the base that have to be fetched, each with its number."""
        parts = list(enumerate(self._plan.base.parts if self._plan.base else ()))
        if reader is None or not isinstance(draft, Partial) or not draft.is_found:
            return parts
        missing = []
        for number, part in parts:
            if await trio.to_thread.run_sync(replay.adopt_part, draft, reader, number):
                self._kept_bytes += part.size
                self._advance(part.size)
            else:
                missing.append((number, part))
        return missing

    async def _replay_objects(self, replay: Replay, reader: SetReader | None, draft: Draft) -> None:
        """Write the parts of the base and apply the log objects, fetched as one stream."""
        parts = await self._find_parts(replay, reader, draft)
        kept = {span: self._survey.take(span.item) for span in self._plan.spans}
        missing = [span for span in self._plan.spans if kept[span] is None]

        def decode(number: int, data: bytes) -> Segment | int:
            if number < len(parts):
                assert reader is not None, "only a base has parts"
                return replay.write_part(reader, parts[number][0], data, parts[number][1].name)
            item = missing[number - len(parts)].item
            return open_log(data, item.name, item.log, self._plan.names)

        requests = [Request(name=part.name, size=part.size) for _, part in parts]
        requests += [Request(name=span.item.name, size=span.item.size) for span in missing]
        async with self._fetcher.stream(requests, decode) as stream:
            for _, part in parts:
                done, _ = await anext(stream)
                await stream.done(done)
                self._advance(part.size)
                if isinstance(draft, Partial):
                    draft.note_proven(part.size)
            for span in self._plan.spans:
                segment: Segment | int | None = kept.pop(span)
                number: int | None = None
                if segment is None:
                    number, segment = await anext(stream)
                assert isinstance(segment, Segment), "results come in the order of requests"
                await trio.to_thread.run_sync(replay.apply, span, segment)
                del segment
                if number is not None:
                    await stream.done(number)
                self._advance(span.item.size)

    def _advance(self, size: int) -> None:
        self._bytes_done += size
        if self._on_progress is not None:
            seconds = max(time.monotonic() - self._started, 1e-6)
            self._on_progress(
                Progress(
                    bytes_done=self._bytes_done,
                    bytes_total=self._plan.stored_bytes,
                    bytes_per_second=self._bytes_done / seconds,
                )
            )


def _report(
    plan: Plan,
    place: Place,
    started: float,
    *,
    database_bytes: int = 0,
    moved: Sequence[Path] = (),
    is_dry_run: bool = True,
    head: Head | None = None,
    kept_bytes: int = 0,
) -> RestoreReport:
    return RestoreReport(
        path=place.path,
        service=plan.names.service,
        shard=plan.names.shard,
        lineage=plan.target.lineage,
        seq=plan.target.seq,
        timestamp_ns=plan.target.timestamp_ns,
        line=tuple(reach.lineage for reach in plan.line),
        page_sets=(plan.base.item.name,) if plan.base else (),
        log_objects=tuple(span.item.name for span in plan.spans),
        objects=plan.object_count,
        stored_bytes=plan.stored_bytes,
        database_bytes=database_bytes,
        seconds=time.monotonic() - started,
        moved=tuple(moved),
        notes=plan.notes,
        is_dry_run=is_dry_run,
        head=head,
        kept_bytes=kept_bytes,
    )
