"""A lineage becomes known, and this journal begins it: with the file's state, or a fetched one.

Theory of operation
===================

What the node has decides how its journal begins, once `engine.birth` says that a lineage is known::

    the file's root is the genesis's     genesis, leaf hashes of the file, place = genesis
    the genesis has no page              genesis, no leaf hashes
    anything else                        a certified state is fetched from the peers: leaf hashes,
                                         and the place is none until the pages have come, too

A standalone history of this journal goes on as it is (Q22; `cluster.standalone`). A lineage that is
forced here begins with the state of its parent (`cluster.forcing`). A file that is to be replaced
is kept as ``<db>.before-<lineage>`` first.
"""

from dataclasses import dataclass
from typing import Final

import trio

from basenet.daemon.chain import AllGroups
from basenet.daemon.cluster.file import ReplicaFile
from basenet.daemon.cluster.forcing import Forcing
from basenet.daemon.cluster.transfer import FetchedState
from basenet.daemon.journalist import Journalist
from basenet.daemon.tracefile import TraceFile
from basenet.engine.adoption import NOWHERE, adopt
from basenet.engine.birth_events import Born
from basenet.engine.birth_record import FileFate
from basenet.engine.liveness import Member
from basenet.errors import ConflictError, CorruptionError
from basenet.journal.journal import Journal
from basenet.journal.records import FrameRow, ReplicaRecord
from basenet.units import ZERO_HASH, FrameHash, LocalNumber, Seq, ShardId
from basenet.wire.finality import Electors, found
from basenet.wire.merkle import StateTree, state_root

_EMPTY: Final = state_root(0, 0, ZERO_HASH)


@dataclass(frozen=True, slots=True)
class KnownState:
    """A final state: its leaf hashes, the place of the file, and where capture goes on there."""

    tree: StateTree
    place: tuple[Seq, FrameHash]
    cursor: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """Who begins what; ``path``: of the database, ``limiter``: of threads that compute.

    ``traces``: where it is told that a lineage begins.
    """

    shard: ShardId
    path: str
    me: Member
    journalist: Journalist
    limiter: trio.CapacityLimiter
    traces: TraceFile | None = None

    async def load(self, born: Born) -> ReplicaRecord | None:
        """Return what the journal has of the lineage that is known; None: nothing yet."""
        record = await self.journalist.perform(lambda journal: journal.load_replica(self.shard))
        return record if record is not None and record.lineage == born.genesis.lineage else None

    async def find_state(self, born: Born, file: ReplicaFile | None) -> KnownState | None:
        """Return the state of the genesis, if this node has it; None: it must be fetched.

        ``file``: the open database, None where there is none. One that is to be replaced is kept.
        Raises `ConflictError` where it has rows that nobody decided against.
        """
        genesis = born.genesis
        place = (genesis.head.seq, genesis.hash)
        if file is not None and genesis.config.is_forced and genesis.author == self.me[0]:
            forced = await self._find_forced(born, file)
            if forced is not None:
                return forced
        if file is not None and born.file is FileFate.ADOPTED:
            tree = StateTree(file.database.page_size, await file.leaves())
            if genesis.author == self.me[0]:
                # A file of another cluster: no root tells of the mark, and its application writes.
                await file.mark(is_read_only=False)
            if tree.root() == genesis.head.state_root:
                return KnownState(tree, place, (await file.cursor()).encode())
        if file is not None and born.file is not FileFate.REPAIRED:
            await self._spare(born, file)
        if genesis.head.state_root != _EMPTY:
            return None
        return KnownState(StateTree(0), place if file is None else NOWHERE, None)

    async def _spare(self, born: Born, file: ReplicaFile) -> None:
        """Keep a copy of a file that is to be replaced.

        Raises `ConflictError` where it has rows that nobody decided against.
        """
        genesis, facts = born.genesis, await file.facts()
        if facts is None or facts.state_root == genesis.head.state_root:
            return
        is_decided = born.file in (FileFate.KEPT_ASIDE, FileFate.ADOPTED)
        if facts.has_rows and not is_decided:
            raise ConflictError(
                f"{self.path} has rows of its own, and shard {self.shard} has another history "
                f"already (lineage {genesis.lineage.hex()}): stop basenet and the application "
                "here, move the file away, and start again; this node then gets the shard's data."
            )
        await file.keep_aside(genesis.lineage)

    async def _find_forced(self, born: Born, file: ReplicaFile) -> KnownState | None:
        """Return the state that this node forces its lineage from; None: it is not held here."""
        genesis = born.genesis
        parent = genesis.config.parent
        assert parent is not None, "a forced lineage without a parent"
        record = await self.journalist.perform(lambda journal: journal.load_replica(self.shard))
        if record is None or record.lineage != parent[0]:
            return None
        forcing = Forcing(self.journalist, file, self.limiter)
        state = await forcing.come_to(record, (parent[1], parent[2]))
        if state.tree.root() != genesis.head.state_root:
            raise CorruptionError(
                f"the page hashes of shard {self.shard} at frame {parent[1]} do not give the state "
                "root that its forced lineage begins with: restore this node"
            )
        return KnownState(state.tree, (genesis.head.seq, genesis.hash), state.cursor)

    async def begin(self, born: Born, state: KnownState | FetchedState) -> None:
        """Begin the lineage with ``state``; the file is mended to a fetched one afterwards."""
        if isinstance(state, FetchedState):
            await self._begin_fetched(born, state)
        else:
            await self._begin(born, state)

    async def _begin(self, born: Born, state: KnownState) -> None:
        genesis, tree = born.genesis, state.tree
        ballot = adopt(
            None,
            me=self.me,
            electors=electors_of(born),
            head=genesis.head,
            certificate=born.certificate,
        )
        row = FrameRow(
            head=genesis.head,
            record=genesis.record,
            local_first=LocalNumber(1),
            local_last=LocalNumber(0),
        )

        def write(journal: Journal) -> None:
            left = journal.load_replica(self.shard)
            journal.begin_replica(
                shard=self.shard,
                path=self.path,
                genesis=row,
                certificate=born.certificate,
                ballot=ballot,
                page_size=tree.page_size,
                db_pages=tree.db_pages,
                groups=AllGroups(tree),
                place=state.place,
                cursor=state.cursor,
                # Local numbers are never used twice.
                local_last=left.local_last if left is not None else LocalNumber(0),
            )

        if self.traces is not None:
            # Before it is durable: a birth that a crash cut off is told twice, never not at all.
            self.traces.begin(self.shard, genesis.config, genesis.head)
        await self.journalist.perform(write)

    async def _begin_fetched(self, born: Born, state: FetchedState) -> None:
        if state.head.hash == born.genesis.hash:
            await self._begin(born, KnownState(state.tree, NOWHERE, None))
            return
        # A crash between the two leaves a genesis without its state: `is_begun` tells.
        await self._begin(born, KnownState(StateTree(0), NOWHERE, None))
        record = await self.load(born)
        assert record is not None, "a lineage was begun and is not in the journal"
        await self.jump(record, state)

    def is_begun(self, record: ReplicaRecord) -> bool:
        """Return whether the journal has the state behind its final frame.

        It has not when a crash came before the fetched one was stored; nothing was voted then.
        """
        return bool(record.page_size) or record.tip.state_root == _EMPTY

    async def jump(self, record: ReplicaRecord, state: FetchedState) -> None:
        """Let the fetched state be the final one; the file is mended afterwards.

        Nothing applies any more, so this is the last word on where the file stands: the frames from
        there on are gone.
        """
        ballot = adopt(
            record.ballot,
            me=self.me,
            electors=state.electors,
            head=state.head,
            certificate=state.certificate,
        )
        tree = state.tree

        def write(journal: Journal) -> None:
            journal.set_place(self.shard, NOWHERE, cursor=None, local_last=None, intent=None)
            journal.jump(
                self.shard,
                tip=state.head,
                certificate=state.certificate,
                ballot=ballot,
                page_size=tree.page_size,
                db_pages=tree.db_pages,
                groups=AllGroups(tree),
                configs=[(one.record, one.certificate) for one in state.configs],
            )

        await self.journalist.perform(write)


def electors_of(born: Born) -> Electors:
    """Return who decides from the genesis on."""
    return found(born.genesis.head, born.genesis.config, born.certificate)
