"""Serving a state: to whoever is connected and asks, without harm to what matters more.

Theory of operation
===================

Whoever the transport admitted may ask, voter or not (Q23). What that costs is bounded::

    ask ── 8 wait per peer, more are refused ── one at a time per peer ── byte rate ── bulk lane
            │                                    │
            │ leaves of a state, frozen:         │ pages: read in a thread, one reader a node,
            │ 1 per peer, 2 per node             │ 4 MiB in one answer

`ServingBudget` is one for a node, whatever the number of its shards; `StateServer` is one for a
shard. A frozen state is given up after its last part was sent, when its peer is gone or asks for
pages, and after 30 s in which its peer asked for nothing. The event loop hashes and copies nothing
of unbounded size but the leaves themselves (32 bytes a page, one memcpy).

A page is sent only if its content has the leaf hash that was asked for. So it may be read from the
file without a lock, at any moment, and the file may have moved on: then `pages_from_frames` is
asked, and what that does not have either is named missing.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from basenet.daemon.cluster.asking import Sender
from basenet.daemon.cluster.offer import ConfigPiece, FinalState, FrozenState, freeze, make_offer
from basenet.errors import CorruptionError, UnavailableError
from basenet.units import HASH_BYTES, MIB, Lineage, PublicKeyBytes, Seq, ShardId
from basenet.wire.frame import Head, Kind
from basenet.wire.leafparts import PART_PAGES
from basenet.wire.merkle import leaf_hash, normalised_first_page
from basenet.wire.transfer import (
    PAGES_BYTES_MAX,
    Leaves,
    LeavesAsk,
    Pages,
    PagesAsk,
    StateAnswer,
    StateAsk,
    StateOffer,
    StateQuestion,
    StateRefused,
    Why,
)

SERVED_BYTES_PER_SECOND: Final = 64 * MIB
"""All that a node sends of states; a tenth of a core for reading, hashing and TLS."""
BURST_BYTES: Final = 4 * MIB
TRANSFERS_MAX: Final = 2
FROZEN_BYTES_MAX: Final = 512 * MIB
"""Of leaves that stand still for somebody; one transfer may always exceed it alone."""
ASKS_WAITING_MAX: Final = 8
SILENCE_S: Final = 30.0
_ROOM_PAUSE_S: Final = 0.05
_DIALLED_S: Final = 5.0
_READ_PAGES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSource:
    """Where a shard's state comes from.

    ``final_state``: what is final now, or None; called in the event loop. ``config_chain``: every
    CONFIG of the lineage, ascending. ``read_pages``: the present contents of pages, by number,
    without those that it has not; called in a thread, may raise `UnavailableError` or
    `CorruptionError`. ``pages_from_frames``: the contents with these (number, leaf hash) that lie
    in frames.
    """

    final_state: Callable[[], FinalState | None]
    config_chain: Callable[[], Awaitable[Sequence[ConfigPiece]]]
    read_pages: Callable[[Sequence[int]], Mapping[int, bytes]]
    pages_from_frames: (
        Callable[[Sequence[tuple[int, bytes]]], Awaitable[Mapping[int, bytes]]] | None
    ) = None


class ServingBudget:
    """What all shards of a node together spend on others' transfers."""

    def __init__(self, bytes_per_second: int = SERVED_BYTES_PER_SECOND) -> None:
        self.readers = trio.CapacityLimiter(1)
        self.bytes_sent = 0
        self._bytes_per_second = bytes_per_second
        self._free_at = 0.0
        self._frozen: dict[PublicKeyBytes, int] = {}

    @property
    def frozen_bytes(self) -> int:
        """How much memory stands still for transfers."""
        return sum(self._frozen.values())

    @property
    def transfers(self) -> int:
        """How many peers fetch the leaves of a state now."""
        return len(self._frozen)

    def admit(self, peer: PublicKeyBytes, size: int) -> bool:
        """Take a place for a state of ``size`` bytes; False when there is none for it."""
        if peer in self._frozen or len(self._frozen) >= TRANSFERS_MAX:
            return False
        if self._frozen and self.frozen_bytes + size > FROZEN_BYTES_MAX:
            return False
        self._frozen[peer] = size
        return True

    def release(self, peer: PublicKeyBytes) -> None:
        """Give the place of ``peer`` back."""
        del self._frozen[peer]

    async def pace(self, size: int) -> None:
        """Wait until ``size`` more bytes may be sent."""
        now = trio.current_time()
        start = max(self._free_at, now - BURST_BYTES / self._bytes_per_second)
        self._free_at = start + size / self._bytes_per_second
        self.bytes_sent += size
        await trio.sleep_until(self._free_at)


@dataclass(slots=True, kw_only=True)
class _Outgoing:
    """A state that one peer fetches; ``until``: when its silence has been long enough."""

    state: FrozenState
    until: float


class StateServer:
    """Answers the asks for one shard's state, in one lineage.

    ``tasks``: where it works while somebody asks; it has no task while nobody does.
    """

    def __init__(
        self,
        *,
        shard: ShardId,
        lineage: Lineage,
        source: StateSource,
        sender: Sender,
        budget: ServingBudget,
        tasks: trio.Nursery,
    ) -> None:
        self._shard, self._lineage = shard, lineage
        self._source, self._sender, self._budget = source, sender, budget
        self._tasks = tasks
        self._waiting: dict[PublicKeyBytes, deque[StateQuestion]] = {}
        self._outgoing: dict[PublicKeyBytes, _Outgoing] = {}
        self._dialled = trio.Event()

    def on_ask(self, peer: PublicKeyBytes, ask: StateQuestion) -> None:
        """Answer ``ask`` of the authenticated ``peer`` when its turn has come."""
        waiting = self._waiting.get(peer)
        if waiting is None:
            self._waiting[peer] = deque([ask])
            self._tasks.start_soon(self._serve, peer)
        elif len(waiting) < ASKS_WAITING_MAX:
            waiting.append(ask)
        else:
            refusal = StateRefused(number=ask.number, why=Why.BUSY)
            self._sender.send_transfer(peer, self._shard, self._lineage, refusal)

    def on_connected(self, _peer: PublicKeyBytes) -> None:
        """Learn that there is somebody to whom answers can be sent."""
        self._dialled.set()
        self._dialled = trio.Event()

    def on_lost(self, peer: PublicKeyBytes) -> None:
        """Forget what ``peer``, whose connection has ended, was being sent."""
        if (waiting := self._waiting.get(peer)) is not None:
            waiting.clear()
        self._give_up(peer)

    def close(self) -> None:
        """Give everything back, after the tasks have ended."""
        for peer in tuple(self._outgoing):
            self._give_up(peer)

    async def _serve(self, peer: PublicKeyBytes) -> None:
        """Answer what waits, one after the other."""
        waiting = self._waiting[peer]
        try:
            while waiting:
                ask = waiting.popleft()
                if await self._is_reached(peer):
                    await self._send(peer, await self._answer(peer, ask))
        finally:
            del self._waiting[peer]

    async def _is_reached(self, peer: PublicKeyBytes) -> bool:
        """Return whether there is a connection to ``peer``, after a while in which there may be.

        Who has just begun asks at once by its own connection; ours is dialled again soon.
        """
        with trio.move_on_after(_DIALLED_S):
            while peer not in self._sender.connected:
                await self._dialled.wait()
        return peer in self._sender.connected

    async def _answer(self, peer: PublicKeyBytes, ask: StateQuestion) -> StateAnswer:
        match ask:
            case StateAsk():
                return await self._offer(peer, ask)
            case LeavesAsk():
                return self._leaves(peer, ask)
            case PagesAsk():
                self._give_up(peer)
                return await self._pages(ask)

    async def _send(self, peer: PublicKeyBytes, answer: StateAnswer) -> None:
        """Send at the rate of the node, once there is room; a peer without room is given up."""
        await self._budget.pace(_weight(answer))
        with trio.move_on_after(SILENCE_S):
            while peer in self._sender.connected:
                if self._sender.send_transfer(peer, self._shard, self._lineage, answer):
                    return
                await trio.sleep(_ROOM_PAUSE_S)

    # The state and its leaves.

    async def _offer(self, peer: PublicKeyBytes, ask: StateAsk) -> StateAnswer:
        self._give_up(peer)
        nothing = StateRefused(number=ask.number, why=Why.NO_STATE)
        state = self._source.final_state()
        if state is None or not _is_ahead(state.head, ask):
            return nothing
        if not self._budget.admit(peer, len(state.tree.leaves)):
            return StateRefused(number=ask.number, why=Why.BUSY)
        frozen = self._shared(state) or freeze(state)
        outgoing = _Outgoing(state=frozen, until=trio.current_time() + SILENCE_S)
        self._outgoing[peer] = outgoing
        self._tasks.start_soon(self._watch, peer, outgoing)
        chain = await self._source.config_chain()
        offer = await trio.to_thread.run_sync(
            make_offer, ask.number, frozen, chain, ask.epoch, limiter=self._budget.readers
        )
        if offer is None or offer.db_pages == 0:
            self._end(peer, outgoing)
        return offer or nothing

    def _shared(self, state: FinalState) -> FrozenState | None:
        """Return the same state as it stands still for another peer already."""
        frozen = (each.state for each in self._outgoing.values())
        return next((each for each in frozen if each.head.hash == state.head.hash), None)

    def _leaves(self, peer: PublicKeyBytes, ask: LeavesAsk) -> StateAnswer:
        gone = StateRefused(number=ask.number, why=Why.GONE)
        outgoing = self._outgoing.get(peer)
        if outgoing is None:
            return gone
        state = outgoing.state
        if (state.head.seq, state.head.hash) != (ask.seq, ask.hash):
            return gone
        hashes = state.part(ask.first_page)
        if not hashes:
            return gone
        outgoing.until = trio.current_time() + SILENCE_S
        if ask.first_page + PART_PAGES > state.db_pages:
            self._end(peer, outgoing)
        return Leaves(
            number=ask.number,
            seq=Seq(ask.seq),
            hash=ask.hash,
            first_page=ask.first_page,
            hashes=hashes,
        )

    async def _watch(self, peer: PublicKeyBytes, outgoing: _Outgoing) -> None:
        """Give a transfer up that its peer has given up."""
        while self._outgoing.get(peer) is outgoing:
            if trio.current_time() >= outgoing.until:
                self._end(peer, outgoing)
            else:
                await trio.sleep_until(outgoing.until)

    def _end(self, peer: PublicKeyBytes, outgoing: _Outgoing) -> None:
        """End ``outgoing``, unless another one of the peer has taken its place."""
        if self._outgoing.get(peer) is outgoing:
            self._give_up(peer)

    def _give_up(self, peer: PublicKeyBytes) -> None:
        if self._outgoing.pop(peer, None) is not None:
            self._budget.release(peer)

    # Pages.

    async def _pages(self, ask: PagesAsk) -> StateAnswer:
        """Return the pages that this node has with the hashes that were asked for."""
        found = await trio.to_thread.run_sync(self._read, ask.pages, limiter=self._budget.readers)
        lacking = [each for each in ask.pages if each[0] not in found]
        if lacking and self._source.pages_from_frames is not None:
            more = await self._source.pages_from_frames(lacking)
            _merge(found, lacking, more)
        missing = tuple(pgno for pgno, _ in ask.pages if pgno not in found)
        return Pages(number=ask.number, pages=tuple(found.items()), missing=missing)

    def _read(self, wanted: Sequence[tuple[int, bytes]]) -> dict[int, bytes]:
        """Return what of ``wanted`` the file holds now; in a thread."""
        found: dict[int, bytes] = {}
        for start in range(0, len(wanted), _READ_PAGES):
            some = wanted[start : start + _READ_PAGES]
            try:
                contents = self._source.read_pages([pgno for pgno, _ in some])
            except (UnavailableError, CorruptionError):
                # The file is busy, or worse, which its own shard finds and says.
                break
            if not _merge(found, some, contents):
                break
        return found


def _merge(
    found: dict[int, bytes], wanted: Sequence[tuple[int, bytes]], contents: Mapping[int, bytes]
) -> bool:
    """Add what has the hash that was asked for; False when an answer has no more room."""
    size = sum(map(len, found.values()))
    for pgno, digest in wanted:
        content = contents.get(pgno)
        if content is None or leaf_hash(pgno, content) != digest:
            continue
        size += len(content)
        if size > PAGES_BYTES_MAX:
            return False
        found[pgno] = normalised_first_page(content) if pgno == 1 else bytes(content)
    return True


def _is_ahead(head: Head, ask: StateAsk) -> bool:
    """Return whether who asks could use the state at ``head``, and judge it."""
    begins_epoch = head.kind == Kind.CONFIG and ask.epoch == head.epoch + 1
    return head.seq > ask.above_seq and (head.epoch >= ask.epoch or begins_epoch)


def _weight(answer: StateAnswer) -> int:
    """Return about how many bytes an answer is."""
    match answer:
        case StateOffer():
            return len(answer.parts) + sum(len(record) for record, _ in answer.configs)
        case Leaves():
            return len(answer.hashes)
        case Pages():
            return sum(len(content) for _, content in answer.pages)
    return HASH_BYTES
