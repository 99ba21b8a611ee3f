"""Fetching a state: from whoever is connected, believing nobody.

Theory of operation
===================

*A state*: connected peers are asked one after the other, the preferred ones first, the next one
each time, until one has offered a state above ours and sent all its leaves. What an offer and each
part are worth is proven on the spot (`offer.prove`, `wire.leafparts`), so a part that was verified
stays, whoever goes: it is kept by its hash, and serves every later target that has the same part,
also one at another frame. What no target wants is dropped, so memory is 32 bytes a page.

*Pages* are `gathering`'s, and what becomes of peers that are silent or lie is `asking`'s.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Final

import trio

from basenet.daemon.cluster.asking import Asker, Sender, check_refusal
from basenet.daemon.cluster.gathering import Wants, gather
from basenet.daemon.cluster.offer import Proven, ProvenConfig, Target, prove
from basenet.errors import PeerError
from basenet.units import Lineage, PublicKeyBytes, Seq, ShardId
from basenet.wire.certificate import Certificate, Verify
from basenet.wire.finality import Electors
from basenet.wire.frame import Head
from basenet.wire.leafparts import PART_PAGES, hash_part
from basenet.wire.merkle import StateTree
from basenet.wire.signature import is_signed
from basenet.wire.transfer import Leaves, LeavesAsk, StateAnswer, StateAsk, StateOffer

_PAUSE_MIN_S: Final = 0.5
_PAUSE_MAX_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedState:
    """A state that is final, and what proves it; all of it verified.

    ``record``: the HEAD record of the frame. ``certificate``: of that frame; None in an epoch of
    one voter, and for the genesis or CONFIG that was believed before. ``electors``: who decides
    after the newest CONFIG. ``configs``: those after the one that was believed, ascending.
    """

    head: Head
    record: bytes
    certificate: Certificate | None
    electors: Electors
    configs: tuple[ProvenConfig, ...]
    tree: StateTree


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchProgress:
    """How far a fetch has come, for people: parts of 4,096 leaves, and the frame they lead to."""

    seq: Seq
    parts: int
    parts_total: int


@dataclass(slots=True, kw_only=True)
class _Held:
    """What a fetch has proven so far. ``leaves``: the target's parts by their hash."""

    electors: Electors
    configs: list[ProvenConfig] = field(default_factory=list)
    target: Target | None = None
    leaves: dict[bytes, bytes] = field(default_factory=dict)

    def take(self, proven: Proven) -> None:
        """Go on from ``proven``, keeping what of the leaves belongs to its target."""
        self.electors = proven.electors
        self.configs += proven.configs
        if proven.target is not None:
            self.target = proven.target
            wanted = set(proven.target.parts)
            self.leaves = {name: part for name, part in self.leaves.items() if name in wanted}


class StateClient:
    """Fetches the state and the pages of one shard, in one lineage, from its peers.

    ``on_fault`` is told who broke the protocol, and how. ``turns``: how many shards of the node may
    fetch leaves at a time, shared by all of them.
    """

    def __init__(
        self,
        *,
        shard: ShardId,
        lineage: Lineage,
        sender: Sender,
        on_fault: Callable[[PublicKeyBytes, PeerError], None],
        turns: trio.CapacityLimiter | None = None,
        verify: Verify = is_signed,
    ) -> None:
        self._asker = Asker(shard=shard, lineage=lineage, sender=sender, on_fault=on_fault)
        self._verify = verify
        self._turns = turns
        self._held: _Held | None = None

    @property
    def progress(self) -> FetchProgress | None:
        """How far the fetch of a state has come; None while none has a target."""
        held = self._held
        if held is None or held.target is None:
            return None
        return FetchProgress(
            seq=held.target.head.seq, parts=len(held.leaves), parts_total=len(held.target.parts)
        )

    def on_answer(self, peer: PublicKeyBytes, answer: StateAnswer) -> None:
        """Take an answer of the authenticated ``peer``; dropped unless it was asked for."""
        self._asker.on_answer(peer, answer)

    def on_connected(self, peer: PublicKeyBytes) -> None:
        """Learn that there is somebody new to ask."""
        self._asker.on_connected(peer)

    def on_lost(self, peer: PublicKeyBytes) -> None:
        """Learn that the connection to ``peer`` has ended: it answers nothing any more."""
        self._asker.on_lost(peer)

    async def fetch_pages(
        self,
        wants: Wants,
        *,
        page_size: int,
        voters: Sequence[PublicKeyBytes] = (),
        on_progress: Callable[[int, int], None] | None = None,
    ) -> dict[int, bytes]:
        """Return the contents of what of ``wants`` any peer has: `gathering.gather`."""
        return await gather(
            self._asker, wants, page_size=page_size, voters=voters, on_progress=on_progress
        )

    async def fetch_state(
        self, electors: Electors, *, above_seq: Seq, voters: Sequence[PublicKeyBytes] = ()
    ) -> FetchedState:
        """Return a final state above ``above_seq``; wait for as long as nobody has one.

        ``electors``: who decides as far as this node knows. ``voters``: to be asked before others.
        One call at a time; cancel it when the state is not needed any more.
        """
        assert self._held is None, "one fetch at a time"
        self._held = held = _Held(electors=electors)
        try:
            return await self._fetch_state(held, above_seq, voters)
        finally:
            self._held = None

    async def _fetch_state(
        self, held: _Held, above_seq: Seq, voters: Sequence[PublicKeyBytes]
    ) -> FetchedState:
        pause = _PAUSE_MIN_S
        while True:
            has_gained = False
            for peer in self._asker.in_order(voters):
                before = len(held.configs), len(held.leaves)
                async with self._turn():
                    if await self._complete(peer, held, above_seq):
                        return await trio.to_thread.run_sync(_assemble, held)
                has_gained |= (len(held.configs), len(held.leaves)) > before
            pause = _PAUSE_MIN_S if has_gained else min(2 * pause, _PAUSE_MAX_S)
            await self._asker.wait_for_news(pause)

    def _turn(self) -> AbstractAsyncContextManager[object]:
        return nullcontext() if self._turns is None else self._turns

    async def _complete(self, peer: PublicKeyBytes, held: _Held, above_seq: Seq) -> bool:
        """Get from ``peer`` whatever is lacking; return whether nothing is any more."""
        try:
            return await self._aim(peer, held, above_seq) and await self._fill(peer, held)
        except PeerError as error:
            self._asker.report(peer, error)
            return False

    async def _aim(self, peer: PublicKeyBytes, held: _Held, above_seq: Seq) -> bool:
        """Find out which state ``peer`` has, and have it proven; return whether it has one."""
        while True:
            ask = StateAsk(
                number=self._asker.next_number(), above_seq=above_seq, epoch=held.electors.epoch
            )
            offer = await self._asker.ask(peer, ask)
            if not isinstance(offer, StateOffer):
                check_refusal(offer)
                return False
            proven = await trio.to_thread.run_sync(self._prove, offer, held.electors)
            target = proven.target
            if target is not None and target.head.seq <= above_seq:
                raise PeerError(
                    f"the peer offers frame {target.head.seq}, asked for one above {above_seq}"
                )
            held.take(proven)
            if target is not None:
                return True

    def _prove(self, offer: StateOffer, electors: Electors) -> Proven:
        return prove(offer, electors, verify=self._verify)

    async def _fill(self, peer: PublicKeyBytes, held: _Held) -> bool:
        """Get the missing parts of the target from ``peer``; return whether none is missing."""
        target = held.target
        assert target is not None, "leaves of no state"
        seq, digest = target.place
        for index, name in enumerate(target.parts):
            if name in held.leaves:
                continue
            first = index * PART_PAGES + 1
            ask = LeavesAsk(
                number=self._asker.next_number(), seq=seq, hash=digest, first_page=first
            )
            answer = await self._asker.ask(peer, ask)
            if not isinstance(answer, Leaves):
                check_refusal(answer)
                return False
            hashes = answer.hashes
            is_asked = (answer.seq, answer.hash, answer.first_page) == (seq, digest, first)
            if not is_asked or len(hashes) != target.part_length(index):
                raise PeerError(f"the peer sends other leaves than those from page {first} on")
            if hash_part(hashes, is_only=len(target.parts) == 1) != name:
                raise PeerError(f"the peer sends wrong leaves from page {first} on")
            held.leaves[name] = hashes
        return True


def _assemble(held: _Held) -> FetchedState:
    """Return the state from its parts, which go as they are taken; in a thread."""
    target = held.target
    assert target is not None, "a state without a target"
    leaves = bytearray()
    for name in target.parts:
        leaves += held.leaves.pop(name)
    tree = StateTree(target.page_size, leaves)
    assert tree.root() == target.head.state_root, "parts that hold and make another root"
    proofs = {each.head.hash: each.certificate for each in held.configs}
    return FetchedState(
        head=target.head,
        record=target.record,
        certificate=proofs.get(target.head.hash, target.certificate),
        electors=held.electors,
        configs=tuple(held.configs),
        tree=tree,
    )
