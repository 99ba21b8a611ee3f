"""Whether the archive still has what we put there.

Theory of operation
===================

Nothing that was archived is written again, so nobody would notice that it was deleted: by a
lifecycle rule, a cleaning script, an emptied bucket, a disk that was unmounted. What a restore of
the newest state cannot do without is few objects: the genesis, the page set that the restore would
begin with, the newest log object if it goes beyond that (else retention may delete it while the
shard is idle) and the TIP. Their presence is asked for, a byte each:

=====================  ==========================================================
while commits come     every 10 s
idle                   every 15 minutes; in a directory, where it costs no request,
                       every 30 s
a wait                 if nobody has asked for 2 s, before it says *archived*
=====================  ==========================================================

The rest of the log is listed when retention makes its pass. An object that is gone is asked for
once more after a second, since retention and snapshots replace objects. Then `ArchiveLost` ends the
shard's archiving, and the comparison with the journal begins anew: it ships again what the journal
still has, or begins a child lineage, and a snapshot makes up for the rest.

A store that does not answer is no loss: the uploader tells of it.
"""

from collections.abc import Callable, Iterator
from typing import Final

import trio

from basenet.archive.names import LOG_FOLDER_SEQS, ShardNames
from basenet.archive.port import Store, StoreNotFound
from basenet.archive.uploader import ArchiveFacts
from basenet.daemon.upkeep import History
from basenet.errors import BasenetError, UnavailableError
from basenet.units import Lineage, Seq

FRESH_S: Final = 2.0
_ACTIVE_S: Final = 10.0
_IDLE_S: Final = 900.0
_IDLE_DIRECTORY_S: Final = 30.0
_AGAIN_S: Final = 1.0
_ATTEMPT_S: Final = 30.0


class ArchiveLost(UnavailableError):  # noqa: N818  (what happened; the kind is in the base)
    """Objects that we archived are not there any more."""


class Presence:
    """Asks for the objects of one shard that a restore needs."""

    def __init__(
        self,
        *,
        store: Store,
        names: ShardNames,
        lineage: Lineage,
        genesis_seq: Seq,
        history: History,
        facts: Callable[[], ArchiveFacts],
        has_tip: bool,
    ) -> None:
        """``has_tip``: a TIP of ours was there when the journal was compared."""
        self._store = store
        self._names = names
        folder = f"{names.lineage(lineage)}log/{genesis_seq // LOG_FOLDER_SEQS:016d}"
        self._genesis = f"{folder}/{genesis_seq:020d}-"
        self._genesis_seq = genesis_seq
        self._history = history
        self._facts = facts
        self._has_tip = has_tip
        self._lock = trio.Lock()
        self._asked_s = trio.current_time()
        self._asked_seq = facts().archived_seq
        self._lost = trio.Event()
        self._missing = ""

    async def run(self) -> None:
        """Ask again and again; raise `ArchiveLost` when something is gone."""
        while not self._lost.is_set():
            with trio.move_on_after(_ACTIVE_S):
                await self._lost.wait()
            if self._is_due():
                await self.confirm()
        raise ArchiveLost(
            f"{self._missing} was archived in {self._store.url} and is not there any more: find "
            "out who deletes objects there; what is needed to restore is archived anew"
        )

    def _is_due(self) -> bool:
        is_directory = self._store.url.startswith("file:")
        idle_s = _IDLE_DIRECTORY_S if is_directory else _IDLE_S
        is_active = self._facts().archived_seq != self._asked_seq
        return is_active or trio.current_time() - self._asked_s >= idle_s

    async def confirm(self) -> bool:
        """Return whether everything is there, as far as the store answers; ask if need be."""
        async with self._lock:
            if self._lost.is_set():
                return False
            if trio.current_time() - self._asked_s < FRESH_S:
                return True
            self._asked_s = trio.current_time()
            self._asked_seq = self._facts().archived_seq
            try:
                with trio.move_on_after(_ATTEMPT_S):
                    if await self._find_missing() is None:
                        return True
                    await trio.sleep(_AGAIN_S)
                    missing = await self._find_missing()
                    if missing is not None:
                        self._missing = missing
                        self._lost.set()
            except BasenetError:
                return True  # not known, and the uploader's business
            return not self._lost.is_set()

    async def _find_missing(self) -> str | None:
        """Return the name of an object that should be there and is not."""
        if self._facts().archived_seq >= self._genesis_seq:
            async for _ in self._store.list(self._genesis):
                break
            else:
                return f"{self._genesis}*"
        for name in self._names_due():
            try:
                await self._store.get_range(name, 0, 1)
            except StoreNotFound:
                return name
        return None

    def _names_due(self) -> Iterator[str]:
        facts = self._facts()
        if self._history.base_name is not None:
            yield self._history.base_name
        is_in_base = self._history.base_name is not None and (
            self._history.base_seq >= facts.archived_seq
        )
        if facts.last_name is not None and not is_in_base:
            yield facts.last_name
        if self._has_tip or facts.tip_seq:
            yield self._names.tip
