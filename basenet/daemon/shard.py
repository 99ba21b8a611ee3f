"""One shard's life: wait for the file, attach, birth or resume, follow, detach, again.

Theory of operation
===================

A *session* is one attachment: from the journal's chain in memory to the moment when the file is
let go or something failed. A session that fails is dropped whole, and the next one begins from
the journal, which is the only memory that counts; so no failure leaves a half-told story::

    waiting --file is there--> starting --chain is loaded or born--> capturing
       ^                                                               |
       +-- detached <--nobody has the file open------------------------+

What an error means is said by its kind: what is unavailable is tried again soon; what is refused
or damaged is shown with its sentence and tried again rarely, since only a person can mend it; a
journal that broke ends the process.

The archive is another task (`archiving`): capture never waits for it.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple, Unpack

import structlog
import trio

from basenet.control.surface import ShardState
from basenet.daemon import chain
from basenet.daemon.archiving import Archiver
from basenet.daemon.behind import Behind, find_behind, give_back
from basenet.daemon.chain import Parent
from basenet.daemon.compare import make_parent_of_copy
from basenet.daemon.failures import only_error
from basenet.daemon.framer import Framer
from basenet.daemon.marks import Mark
from basenet.daemon.node import Node
from basenet.daemon.progress import Progress
from basenet.daemon.pump import FinalFrame
from basenet.daemon.scrubbing import scrub_forever
from basenet.daemon.session import Session, flagged, require_ours
from basenet.errors import (
    BasenetError,
    ConflictError,
    CorruptionError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from basenet.journal.journal import Journal, JournalBroken
from basenet.journal.records import ShardRecord
from basenet.sqlite import attach, recover
from basenet.sqlite.attach import Database, DetachedState
from basenet.sqlite.capture import Capture, CapturePolicy
from basenet.sqlite.captured import Captured, CaptureFlag, Cursor
from basenet.sqlite.checkpoint import DatabaseReplaced
from basenet.sqlite.filesystem import require_usable
from basenet.sqlite.page1 import is_marked
from basenet.sqlite.pages import PageView
from basenet.sqlite.resume import Outcome, find_place
from basenet.sqlite.unmark import remove_mark
from basenet.units import LocalNumber, ShardId
from basenet.wire.frame import Flag, Kind

log = structlog.get_logger()

_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")

_REGRESSED: Final = CaptureFlag.RECOVERED | CaptureFlag.REGRESSED
_RETRY_S: Final = 0.5
_RETRY_S_MAX: Final = 10.0
_REFUSED_RETRY_S: Final = 15.0
_REPLACED_RETRY_S: Final = 0.1
_SCANS_PATIENTLY: Final = 2
_SCAN_PAUSE_S: Final = 10.0
_DETACH_S_MAX: Final = 60.0
_STORE_S: Final = 5.0


class Shard:
    """One database of this node."""

    def __init__(self, *, node: Node, shard: ShardId, path: Path) -> None:
        self.shard = shard
        self.path = path
        self._real_path = Path(os.path.realpath(path))
        self._wal_path = Path(f"{self._real_path}-wal")
        self.state = ShardState.STARTING
        self.error: str | None = None
        self.progress = Progress()
        self.session: Session | None = None
        self.record: ShardRecord | None = None
        self.recovered = self.regressed = self.lapped = 0
        self.wants_child_of: Parent | None = None
        self.archiver = Archiver(node=node, shard=self)
        self._node = node
        self._log = log.bind(shard=shard)
        self._doorbell = node.waker.doorbell(shard)
        self._is_stopping = False
        self.ended = trio.Event()
        self._totals: Counter[str] = Counter()
        self._session_scope = trio.CancelScope()
        self._alone_since_s: float | None = None
        self._detached: DetachedState | None = None
        self._behind: Behind | None = None
        self._may_give_back = True
        self._is_reborn = False
        self._scans_after_detach = 0
        self._was_replaced = False
        self._scanned_s = float("-inf")
        self._is_wanted = False
        self.db_pages = 0

    # What others ask of a shard

    async def run(self) -> None:
        """Live until `stop`; raises only `JournalBroken` and bugs."""
        if not await self._begin_watching():
            self.ended.set()
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.archiver.run)
                await self._live()
                await self.archiver.close()
                nursery.cancel_scope.cancel()
        finally:
            self.ended.set()
            self._node.waker.wake.unwatch(self.shard)
            self._node.waker.forget(self.shard)

    async def _begin_watching(self) -> bool:
        """Watch the file; return False if `stop` was called before that was possible.

        Another shard may watch the same file still: one whose name for it was just taken away.
        """
        while not self._is_stopping:
            try:
                self._node.waker.wake.watch(self.shard, self._real_path)
            except ConflictError as error:
                self._show(error)
                await self._doorbell.wait(_RETRY_S)
            else:
                # It may be polled, and the waker must know of that.
                self._node.waker.look_again(self.shard)
                return True
        return False

    def stop(self) -> None:
        """Stop capturing at a commit boundary; `run` returns after a final flush."""
        self._is_stopping = True
        if self.session is not None:
            self.session.follower.stop()
        self._doorbell.ring()
        self.progress.wake()

    def totals(self) -> Counter[str]:
        """Return what was counted since the process began, sessions that ended included."""
        totals = self._totals.copy()
        if self.session is not None:
            _add(totals, self.session)
        return totals

    def count_unarchived_commits(self) -> int:
        """Return how many captured commits are not archived (not final, without an archive)."""
        return self.progress.marks.count_commits()

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._is_stopping

    def become_child_of(self, parent: Parent) -> None:
        """Give birth to a child lineage: the archive's history is not this journal's."""
        self.wants_child_of = parent
        self._session_scope.cancel()
        self._doorbell.ring()

    def be_born_again(self) -> None:
        """Begin a new lineage over the file: nothing of the present one is in the archive."""
        self._is_reborn = True
        self._session_scope.cancel()
        self._doorbell.ring()

    def want_attached(self) -> None:
        """Come back to a file that was let go; it is let go again as ever."""
        if self.state is ShardState.DETACHED:
            self._is_wanted = True
            self._doorbell.ring()

    def has_settled(self) -> bool:
        """Return whether it is known what becomes of the file as it is now."""
        is_to_come = self.state is ShardState.WAITING and self.path.exists()
        is_under_way = self.state is ShardState.STARTING or is_to_come
        return not is_under_way or self._is_stopping

    def has_base(self) -> bool:
        """Return whether what is captured can be restored, or no snapshot of it is to come."""
        return self.session is None or not self.archiver.awaits_base

    def check_connected(self, now_s: float) -> None:
        """Let go of a file that no other process has open (P5); called every second."""
        session = self.session
        if session is not None:
            session.note_lock_held()
        if session is None or self.state is not ShardState.CAPTURING:
            self._alone_since_s = None
            return
        if not session.is_live:
            return
        foreign = session.database.why_foreign()
        if foreign is not None:
            session.follower.give_up(foreign)
        elif session.database.others_connected() or self.archiver.is_taking_snapshot:
            self._alone_since_s = None
        elif self._alone_since_s is None:
            self._alone_since_s = now_s
        elif now_s - self._alone_since_s >= self._detach_after_s:
            self._alone_since_s = None
            session.follower.request_detach()

    @property
    def _detach_after_s(self) -> float:
        """How long to stay with a file that nobody else has open.

        An application that opens, commits and closes faster than we attach costs a scan each time;
        where that happened twice we let go more slowly, so that the next time we are there.
        """
        if self._scans_after_detach < _SCANS_PATIENTLY:
            return self._node.config.detach_after_seconds
        return max(self._node.config.detach_after_seconds, _DETACH_S_MAX)

    async def capture_now(self) -> int:
        """Capture what is committed at this moment; return the seq that holds it.

        Raises `UnavailableError` when nothing is being captured and waiting does not help.
        """
        while not self._is_stopping:
            session, detached = self.session, self._detached
            if session is not None:
                if await session.capture_now():
                    return self.progress.final_seq
                while self.session is session:
                    await self.progress.moved()
                continue
            if self.state in (ShardState.WAITING, ShardState.REFUSED, ShardState.STOPPED):
                raise UnavailableError(self.error or f"{self.path} is not there (any more).")
            if self.state is ShardState.DETACHED and detached is not None:
                if not self._was_touched(detached):
                    return self.progress.final_seq
                self._doorbell.ring()
            await self.progress.moved()
        raise UnavailableError("basenet is shutting down.")

    # The life

    async def _live(self) -> None:
        pause_s = _RETRY_S
        while not self._is_stopping:
            error = await self._try_session()
            if error is None:
                pause_s = _RETRY_S
                continue
            self._show(error)
            await self._doorbell.wait(_pause_after(error, pause_s))
            pause_s = min(2 * pause_s, _RETRY_S_MAX)

    async def _try_session(self) -> BasenetError | None:
        """Run one session; return what ended it, None for a file that was let go or for `stop`."""
        try:
            with trio.CancelScope() as self._session_scope:
                await self._attach_and_follow()
        except BaseExceptionGroup as group:
            return only_error(group)
        except JournalBroken:
            raise
        except BasenetError as error:
            return error
        return None

    def _turn(self, state: ShardState) -> None:
        self.state = state
        self.progress.wake()

    def _show(self, error: BasenetError) -> None:
        sentence = str(error)
        if isinstance(error, NotFoundError):
            self._turn(ShardState.WAITING)
        elif isinstance(error, UnavailableError | DatabaseReplaced):
            self._turn(ShardState.STARTING)
        elif isinstance(error, CorruptionError):
            self._turn(ShardState.STOPPED)
        else:
            self._turn(ShardState.REFUSED)
        if sentence != self.error:
            self._log.warning("shard_" + self.state.value, error=sentence)
        self.error = sentence

    async def _attach_and_follow(self) -> None:
        if self._detached is not None and self.wants_child_of is None:
            await self._wait_for_application(self._detached)
            await self._space_out_scans()
            if self._is_stopping:
                return
        self._node.waker.wake.ignore_opens(self.shard)
        if self._behind is not None:
            await self._give_back(self._behind)
        database = await self._in_thread(self._attach)
        capture = Capture(database, policy=CapturePolicy(self._node.config.capture.value))
        try:
            framer, flag = await self._continue_or_begin(database, capture)
            self.session = Session(
                node=self._node,
                shard=self.shard,
                database=database,
                capture=capture,
                framer=framer,
                on_final=self._on_final,
            )
            if self._is_stopping:
                self.session.follower.stop()
            self._is_wanted = False
            self._detached = None
            self._set_capturing()
            self._detached = await self._run_session(self.session, flag)
            self._settle_detached(database)
        finally:
            await self._end_session(capture)

    async def _end_session(self, capture: Capture) -> None:
        """Close the file, once nobody reads pages from it."""
        session, self.session = self.session, None
        self.progress.wake()
        with trio.CancelScope(shield=True):
            if session is None:
                await self._in_thread(capture.close)
                return
            self.db_pages = session.framer.tree.db_pages
            _add(self._totals, session)
            self.lapped += capture.counters.laps
            with trio.move_on_after(_STORE_S):
                # What was handed to the journal before this syncs the log that we close.
                await self._node.journalist.perform(lambda _journal: None)
            async with session.file_lock:
                await self._in_thread(capture.close)
            session.note_lock_held()

    def _attach(self) -> Database:
        require_usable(self.path)
        database = attach.attach(self.path)
        if is_marked(database):
            database.close()
            remove_mark(self.path)
            self._log.warning("read_only_mark_removed", path=str(self.path))
            database = attach.attach(self.path)
        return database

    async def _run_session(
        self, session: Session, flag: CaptureFlag | None
    ) -> DetachedState | None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scrub_forever, self._node, self.shard, session)
            detached = await session.run(differs_from=flag)
            nursery.cancel_scope.cancel()
        return detached

    def _set_capturing(self) -> None:
        self._turn(ShardState.CAPTURING)
        self.error = None
        self._may_give_back = True
        self._log.info("capturing", path=str(self.path), seq=self.progress.final_seq)

    def _settle_detached(self, database: Database) -> None:
        if self._detached is None:
            return
        del database
        self._turn(ShardState.DETACHED)
        self._node.waker.wake.watch_opens(self.shard)
        self._log.info("detached", path=str(self.path))

    async def _wait_for_application(self, detached: DetachedState) -> None:
        """Return when somebody opened, changed or replaced the file that we let go.

        Also when we need it ourselves, for a snapshot.
        """
        while not self._is_stopping and self.wants_child_of is None:
            if self._was_touched(detached) or self._is_wanted:
                return
            await self._doorbell.wait(_RETRY_S_MAX)

    async def _space_out_scans(self) -> None:
        """Wait, if the last scan was a moment ago and the application is gone again already.

        Short-lived writers may come in swarms, and each that we miss costs a scan of the file.
        """
        with trio.move_on_at(self._scanned_s + _SCAN_PAUSE_S):
            while self._scans_after_detach and not (self._is_stopping or self._wal_path.exists()):
                await self._doorbell.wait(None)

    def _was_touched(self, detached: DetachedState) -> bool:
        try:
            facts = self.path.stat()
        except FileNotFoundError:
            self._turn(ShardState.WAITING)
            return False
        now = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        then = (detached.device, detached.inode, detached.size, detached.modified_ns)
        return now != then or self._wal_path.exists()

    # The chain

    async def _continue_or_begin(
        self, database: Database, capture: Capture
    ) -> tuple[Framer, CaptureFlag | None]:
        """Return the chain to go on with, and how what the file has beyond it is to be flagged."""
        parent, self.wants_child_of = self.wants_child_of, None
        loaded = await self._node.journalist.perform(self._load)
        is_reborn, self._is_reborn = self._is_reborn, False
        if loaded is None and parent is None:
            parent = await self.archiver.find_parent()
        if loaded is not None and parent is None and self._is_copy_alone(loaded[0]):
            parent = await make_parent_of_copy(self._node.journalist, loaded[0])
        if loaded is None or parent is not None or is_reborn:
            self.record = loaded[0] if loaded is not None else None
            await self._give_birth(database, capture, parent)
            loaded = await self._node.journalist.perform(self._load)
            assert loaded is not None, "a lineage was born and is not in the journal"
            record, framer = loaded
            assert record.cursor is not None, "a birth stores where capture goes on"
            # Pinned since before the scan, so nothing behind it can have been missed.
            capture.restart_at(Cursor.decode(record.cursor))
            self._adopt(record)
            return framer, None
        record, framer = loaded
        self._adopt(record)
        flag = await self._in_thread(self._find_place, database, capture, record)
        if flag is not None:
            self._scanned_s = trio.current_time()
        self._count_scan(is_scan=flag is not None)
        if flag is not None and record.tip.kind is not Kind.CONFIG:
            flag = await self._look_behind(database, record, flag)
        return framer, flag

    def _is_copy_alone(self, record: ShardRecord) -> bool:
        """Whether a copy of a journal must begin a child by itself: no archive will tell it to."""
        return self._node.store is None and chain.is_copied(record.config, self._node.author)

    def _count_scan(self, *, is_scan: bool) -> None:
        """Remember whether we came too late to a file that we had let go.

        A file that was put in its place is no such thing, and coming in time makes up for it.
        """
        if self._detached is None or self._was_replaced:
            return
        self._scans_after_detach = max(self._scans_after_detach + (1 if is_scan else -1), 0)

    async def _look_behind(
        self, database: Database, record: ShardRecord, flag: CaptureFlag
    ) -> CaptureFlag:
        """Return the flag of the coming diff; raise to give a file back what it lost (P7)."""
        behind = await self._node.journalist.read(
            lambda journal: find_behind(journal, self.shard, database, record.tip.seq)
        )
        if behind is None:
            return flag
        if self._may_give_back:
            self._behind, self._may_give_back = behind, False
            raise UnavailableError(
                f"{self.path} is at the state of frame {behind.seq}, not {record.tip.seq}: it lost "
                "commits, which are put back from the journal."
            )
        self._log.error("regressed", from_seq=behind.seq, tip_seq=record.tip.seq)
        return flag | CaptureFlag.REGRESSED

    async def _give_back(self, behind: Behind) -> None:
        self._behind = None
        try:
            done = await self._node.journalist.read(
                lambda journal: give_back(journal, self.shard, self.path, behind)
            )
        except BasenetError as error:
            # The diff that follows is flagged REGRESSED, and says so.
            self._log.warning("not_given_back", error=str(error))
        else:
            self._log.warning("given_back", commits=done.commits, from_seq=behind.seq)

    def _find_place(
        self, database: Database, capture: Capture, record: ShardRecord
    ) -> CaptureFlag | None:
        """Set where capture goes on; return a flag if only a scan can tell what happened."""
        self._examine_log(capture)
        capture.pin()
        index = database.read_index()
        if index is None:
            raise UnavailableError(f"{self.path}-shm is being changed; trying again.")
        cursor = Cursor.decode(record.cursor) if record.cursor else None
        detached = DetachedState.decode(record.detached) if record.detached else None
        found = find_place(database, index, cursor, detached)
        self._was_replaced = found.outcome is Outcome.REPLACED
        self._log.info("resume", outcome=found.outcome.value, reason=found.reason)
        if found.place is not None:
            capture.restart_at(found.place)
            return None
        if found.outcome is Outcome.BEHIND:
            return CaptureFlag.RECOVERED | CaptureFlag.REGRESSED
        self._may_give_back = self._may_give_back and found.outcome is not Outcome.REPLACED
        return CaptureFlag.RECOVERED

    def _examine_log(self, capture: Capture) -> None:
        """Tell of commits that SQLite itself lost, or would lose (see `sqlite.unsealed`)."""
        commits = capture.examine_log()
        if capture.rotation.counters.unsealed:
            self._log.warning("log_unsealed", wal=str(self._wal_path))
        if commits:
            self._log.error("log_cut_off", wal=str(self._wal_path), commits=commits)

    def _load(self, journal: Journal) -> tuple[ShardRecord, Framer] | None:
        return chain.load(journal, self.shard, self._node.author.signer, self._node.traces)

    def _adopt(self, record: ShardRecord) -> None:
        self.record = record
        self.progress.begin(
            Mark(
                seq=record.tip.seq,
                size=0,
                local_last=record.local_last,
                timestamp_ns=record.tip.timestamp_ns,
            ),
            record.archived_seq,
        )
        self.archiver.on_lineage(record)

    async def _give_birth(
        self, database: Database, capture: Capture, parent: Parent | None
    ) -> None:
        """Store a new lineage over the file as it is now."""
        self._log.info("birth", parent=parent.lineage.hex() if parent else None)
        if parent is not None and parent.has_regressed:
            from_seq = self.record.tip.seq if self.record is not None else None
            self._log.error("regressed", from_seq=from_seq, tip_seq=parent.seq)
            self.regressed += 1
        births = await self._in_thread(self._scan_for_birth, database, capture, parent)
        # The genesis has the state of file and log: a power failure must not take that back (P7).
        sync = capture.sync_wal if self._node.config.sync_wal else None
        await self._node.journalist.perform(births, sync)

    def _scan_for_birth(
        self, database: Database, capture: Capture, parent: Parent | None
    ) -> chain.Birth:
        self._examine_log(capture)
        capture.pin()
        scan = recover.scan(database)
        beyond: tuple[Captured, ...] = ()
        if parent is not None:
            groups = chain.groups_to_send(bytes(scan.leaves), parent, scan.page_size)
            with PageView(database) as view:
                beyond = tuple(recover.diff(view, chain.leaves_without(bytes(scan.leaves), groups)))
            if parent.has_regressed:
                beyond = tuple(flagged(piece, _REGRESSED) for piece in beyond)
        require_ours(database)
        return chain.Birth(
            shard=self.shard,
            path=str(self.path),
            author=self._node.author,
            scan=scan,
            local_last=self.record.local_last if self.record else LocalNumber(0),
            parent=parent,
            beyond=beyond,
            traces=self._node.traces,
        )

    def _on_final(self, frames: Sequence[FinalFrame]) -> None:
        for frame in frames:
            self.progress.marks.add(
                Mark(
                    seq=frame.head.seq,
                    size=frame.size,
                    local_last=frame.local_last,
                    timestamp_ns=frame.head.timestamp_ns,
                )
            )
            if frame.head.flags & Flag.PARTIAL:
                continue
            self.recovered += bool(frame.head.flags & Flag.RECOVERED)
            self.regressed += bool(frame.head.flags & Flag.REGRESSED)
        self.progress.set_final(frames[-1].head.seq)
        self.archiver.on_final(frames)

    async def _in_thread(
        self, function: Callable[[Unpack[_Arguments]], _Result], *arguments: *_Arguments
    ) -> _Result:
        return await trio.to_thread.run_sync(
            function, *arguments, limiter=self._node.capture_limiter
        )


def _add(totals: Counter[str], session: Session) -> None:
    totals["submitted"] += session.pump.submitted
    totals["finalized"] += session.pump.finalized
    totals["wal_bytes"] += session.capture.counters.wal_bytes
    totals["capture_errors"] += session.capture.counters.gaps


def _pause_after(error: BasenetError, pause_s: float) -> float:
    if isinstance(error, DatabaseReplaced):
        return _REPLACED_RETRY_S
    if isinstance(error, NotFoundError):
        return _RETRY_S_MAX
    if isinstance(error, UsageError | ConflictError | CorruptionError):
        return _REFUSED_RETRY_S
    return pause_s
