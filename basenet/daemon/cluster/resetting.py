"""`basenet shards reset`: the operator decides what counts where a shard's file is in doubt (Q11).

Theory of operation
===================

A shard stops on this node when another file lies where its own did, or has rows of its own that no
history contains. Nothing is injected into such a file and nothing of it is adopted by itself::

    --keep chain    the term ends ── links in <db>.reset-N/ ── row in the index of what was put
                    aside ── the journal says "at no frame" ── names removed ── a new file is made,
                    and mended from the peers
    --keep file     the term ends ── the next one takes what differs from the file's place for the
                    application's commits: a RECOVERED frame if this node writes, else an orphan
                    bundle when somebody else's frame is final

Each step of the first is durable before the next, and the whole file, with its log, has a name at
every moment: a crash in between leaves it in the folder, at its path, or both. What this node voted
and promised stays in the journal whatever becomes of the file: a voter that forgot it could help
two histories to be final. To forget that, too, is to become a new member: `members remove` and
another data directory.
"""

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

import structlog
import trio

from basenet.config.model import NodeRole
from basenet.control.reset import Keep, ResetCommand
from basenet.daemon.cluster.file import ReplicaFile, decode_intent
from basenet.daemon.cluster.node import ClusterNode
from basenet.daemon.node import Node
from basenet.engine.adoption import NOWHERE
from basenet.errors import ConflictError, UnavailableError
from basenet.journal.records import OrphanRow, ReplicaRecord
from basenet.sqlite import locks
from basenet.sqlite.captured import Cursor
from basenet.sqlite.signals import JOURNAL_SUFFIX, SIDE_SUFFIXES, WAL_SUFFIX
from basenet.units import Lineage, LocalNumber, Seq, ShardId, TimestampNs

log = structlog.get_logger()

_NAMES_MAX: Final = 1000
# All bytes of SQLite's SHARED range but the last one, which is the guardian's (Q10).
_SHARED_FIRST: Final = 0x40000002
_SHARED_BYTES: Final = 509
_REASON: Final = "set aside by `basenet shards reset`"


class Resettable(Protocol):
    """A shard, as far as its reset is concerned."""

    shard: ShardId
    path: Path
    adopts_file: bool

    @property
    def lineage(self) -> Lineage | None:
        """The lineage that is known here."""
        ...

    async def suspend(self) -> None:
        """End the term and begin none before `resume`; returns when it ended."""
        ...

    def resume(self) -> None:
        """Begin terms again."""
        ...


class Resetter:
    """Resets one shard."""

    def __init__(
        self,
        shard: Resettable,
        *,
        node: Node,
        cluster: ClusterNode,
        file: Callable[[], ReplicaFile | None],
        close_file: Callable[[], Awaitable[None]],
    ) -> None:
        """``file``: what is open now; ``close_file``: lets go of it."""
        self._shard = shard
        self._node = node
        self._cluster = cluster
        self._file = file
        self._close_file = close_file
        self._turn = trio.Lock()

    async def perform(self, command: ResetCommand) -> str:
        """Do what ``command`` says; return what was done. See `Surface.reset`."""
        async with self._turn:
            self._refuse_early(command)
            try:
                await self._shard.suspend()
                if command.keep is Keep.CHAIN:
                    return await self._keep_chain(is_forced=command.is_forced)
                return await self._keep_file()
            finally:
                self._shard.resume()

    def _refuse_early(self, command: ResetCommand) -> None:
        shard = self._shard
        if self._node.config.cluster.node_role is NodeRole.WITNESS:
            raise ConflictError(
                f"this node is a witness and has no file of shard {shard.shard}: there is nothing "
                "to reset."
            )
        if shard.lineage is None:
            raise ConflictError(
                f"shard {shard.shard} has no history yet: whose file it begins with is said by "
                f"`basenet members init --shard {shard.shard} --from NODE`."
            )
        if command.keep is Keep.CHAIN and not self._cluster.connected:
            raise UnavailableError(
                f"no other node is connected, so nobody could give the pages of {shard.path} back: "
                "try again when one is, or use `basenet restore`."
            )

    async def _record(self) -> ReplicaRecord | None:
        """Return what the journal has of the present lineage."""
        shard = self._shard
        record = await self._node.journalist.perform(
            lambda journal: journal.load_replica(shard.shard)
        )
        return record if record is not None and record.lineage == shard.lineage else None

    # The chain counts.

    async def _keep_chain(self, *, is_forced: bool) -> str:
        shard, record = self._shard, await self._record()
        if record is not None:
            self._refuse_alone(record)
        if not is_forced:
            await self._refuse_loss(record)
            self._refuse_in_use()
        aside = await trio.to_thread.run_sync(link_aside, shard.path)
        if aside is not None:
            await self._note(record, aside)
        if record is not None:
            await self._node.journalist.perform(
                lambda journal: journal.set_place(
                    shard.shard, NOWHERE, cursor=None, local_last=None, intent=None
                )
            )
        # The names go while the fence is still held, so that nobody writes in between.
        await trio.to_thread.run_sync(remove_names, shard.path)
        await self._close_file()
        log.warning(
            "shard_reset",
            shard=shard.shard,
            keep="chain",
            aside=str(aside) if aside is not None else None,
        )
        kept = f"{aside} is the file that was there" if aside is not None else "there was no file"
        return f"shard {shard.shard} is made anew at {shard.path} from the other nodes; {kept}."

    def _refuse_alone(self, record: ReplicaRecord) -> None:
        voters = record.ballot.config.voters
        if len(voters) == 1 and voters[0].key == self._cluster.me.key:
            raise ConflictError(
                f"this node alone votes for shard {self._shard.shard}, so nobody else need have "
                "what its file holds: stop basenet and use `basenet restore`, or --keep file."
            )

    async def _refuse_loss(self, record: ReplicaRecord | None) -> None:
        """Raise `ConflictError` if our own file holds commits that are not final."""
        file, shard = self._file(), self._shard
        if record is None or record.place == NOWHERE:
            return
        final = record.ballot.final.height
        if record.place[0] > final:
            raise ConflictError(
                f"{shard.path} holds commits of shard {shard.shard} up to seq {record.place[0]}, "
                f"and only {final} is final: wait, or say --force; they stay in the copy."
            )
        if file is None or not file.is_open or file.database.why_foreign() is not None:
            return
        await file.held()
        intent = decode_intent(record.intent) if record.intent is not None else None
        cursor = Cursor.decode(record.cursor) if record.cursor is not None else None
        standing = await file.inspect(cursor, intent)
        if standing.commits:
            raise ConflictError(
                f"{shard.path} holds {standing.commits} commits that were captured by nobody yet: "
                "let basenet capture them, or say --force; they stay in the copy."
            )

    def _refuse_in_use(self) -> None:
        """Raise `ConflictError` while another process has the file at the path open."""
        file, path = self._file(), self._shard.path
        if file is not None and file.is_open and not file.database.is_elsewhere():
            is_used = file.database.others_connected()
        else:
            is_used = _is_used(path)
        if is_used:
            raise ConflictError(
                f"another process has {path} open, and would go on in the copy: stop the "
                "application on this host first, or say --force and restart it."
            )

    async def _note(self, record: ReplicaRecord | None, aside: Path) -> None:
        """Put the copy into the index of what was put aside, which ends the generation."""
        shard = self._shard
        assert shard.lineage is not None, "refused above"
        last = record.local_last if record is not None else LocalNumber(0)
        row = OrphanRow(
            id=f"{shard.shard}/{aside.parent.name}",
            shard=shard.shard,
            lineage=shard.lineage,
            path=str(aside),
            kept_seq=record.tip.seq if record is not None else Seq(0),
            first_local=LocalNumber(last + 1),
            last_local=last,
            commits=0,
            created_ns=TimestampNs(time.time_ns()),
            state="kept",
            reason=_REASON,
        )
        await self._node.journalist.perform(lambda journal: journal.add_orphan(row))

    # The file counts.

    async def _keep_file(self) -> str:
        shard, file = self._shard, self._file()
        if await self._record() is None:
            raise ConflictError(
                f"this node has taken no part in shard {shard.shard} yet, so its file cannot go on "
                "from it: decide with --keep chain."
            )
        if not shard.path.exists():
            raise ConflictError(f"there is no file {shard.path} to keep: decide with --keep chain.")
        if file is None or not file.is_open or not file.database.is_elsewhere():
            raise ConflictError(
                f"{shard.path} is the file that basenet knows, so there is nothing to decide: what "
                "is committed to it is captured."
            )
        shard.adopts_file = True
        await self._close_file()
        log.warning("shard_reset", shard=shard.shard, keep="file", aside=None)
        return (
            f"what {shard.path} holds and shard {shard.shard} does not is taken for commits of "
            "this node: if it writes the shard they become final, else they are kept as an orphan "
            "(`basenet orphans list`)."
        )


def _is_used(path: Path) -> bool:
    """Return whether another process has a file open that none of our connections has."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        holder = locks.other_process(descriptor, _SHARED_FIRST, length=_SHARED_BYTES)
        return holder is not None
    finally:
        os.close(descriptor)


def link_aside(path: Path) -> Path | None:
    """Give a database, and its log, another name each in a new folder ``<db>.reset-N`` beside it.

    Durable. Returns the database's new path; None where there is none. Raises `UnavailableError`.
    """
    path = Path(os.path.realpath(path))  # where SQLite puts the log
    if not path.exists():
        return None
    try:
        folder = _make_folder(path)
        for suffix in ("", WAL_SUFFIX, JOURNAL_SUFFIX):
            name = Path(f"{path}{suffix}")
            if name.exists():
                (folder / name.name).hardlink_to(name)
        _sync(folder)
        _sync(folder.parent)
    except OSError as error:
        raise UnavailableError(
            f"{path} cannot be set aside ({error.strerror}): nothing was changed."
        ) from error
    return folder / path.name


def _make_folder(path: Path) -> Path:
    for number in range(1, _NAMES_MAX):
        folder = path.with_name(f"{path.name}.reset-{number}")
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return folder
    raise OSError(0, f"{_NAMES_MAX} copies lie there already: move them away")


def remove_names(path: Path) -> None:
    """Remove a database's names, its log first: no new file may ever find an old log."""
    path = Path(os.path.realpath(path))
    for suffix in (*SIDE_SUFFIXES, ""):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
