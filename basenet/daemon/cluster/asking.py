"""Asking peers, and what becomes of those that are silent or lie.

An ask has a number, and its answer repeats it; what else arrives is dropped unread, since it may
merely be late. A peer that does not answer in time, refuses, or is lost is followed by another one.
One whose answer is wrong has broken the protocol: it is reported, and asked nothing for a minute.
"""

import itertools
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from basenet.errors import PeerError
from basenet.units import Lineage, PublicKeyBytes, ShardId
from basenet.wire.hello import Hello
from basenet.wire.transfer import StateAnswer, StateQuestion, StateRefused, TransferMessage

ANSWER_PATIENCE_S: Final = 10.0
SHUN_S: Final = 60.0


class Sender(Protocol):
    """The part of `ports.Peers` that a transfer uses."""

    @property
    def connected(self) -> Mapping[PublicKeyBytes, Hello]:
        """Whom this node can send to now."""
        ...

    def send_transfer(
        self, to: PublicKeyBytes, shard: ShardId, lineage: Lineage, message: TransferMessage
    ) -> bool:
        """Send in bulk; False when there is no room now."""
        ...


@dataclass(slots=True, kw_only=True)
class _Waiting:
    """An ask under way; the answer, None when there will be none."""

    peer: PublicKeyBytes
    done: trio.Event = field(default_factory=trio.Event)
    answer: StateAnswer | None = None


class Asker:
    """The asks of one shard, and their answers. ``on_fault``: who broke the protocol, and how."""

    def __init__(
        self,
        *,
        shard: ShardId,
        lineage: Lineage,
        sender: Sender,
        on_fault: Callable[[PublicKeyBytes, PeerError], None],
    ) -> None:
        self._shard, self._lineage = shard, lineage
        self._sender, self._on_fault = sender, on_fault
        # Answers to an earlier asker of this run must not answer this one.
        self._numbers = itertools.count(secrets.randbits(48))
        self._waiting: dict[int, _Waiting] = {}
        self._shunned: dict[PublicKeyBytes, float] = {}
        self._news = trio.Event()

    def next_number(self) -> int:
        """Return a number for an ask."""
        return next(self._numbers)

    def on_answer(self, peer: PublicKeyBytes, answer: StateAnswer) -> None:
        """Take an answer of the authenticated ``peer``; dropped unless it was asked for."""
        waiting = self._waiting.get(answer.number)
        if waiting is not None and waiting.peer == peer and not waiting.done.is_set():
            waiting.answer = answer
            waiting.done.set()

    def on_connected(self, _peer: PublicKeyBytes) -> None:
        """Learn that there is somebody new to ask."""
        self._news.set()
        self._news = trio.Event()

    def on_lost(self, peer: PublicKeyBytes) -> None:
        """Learn that the connection to ``peer`` has ended: it answers nothing any more."""
        for waiting in self._waiting.values():
            if waiting.peer == peer:
                waiting.done.set()

    async def wait_for_news(self, seconds: float) -> None:
        """Return when somebody has connected, at the latest after ``seconds``."""
        with trio.move_on_after(seconds):
            await self._news.wait()

    def may_ask(self, peer: PublicKeyBytes) -> bool:
        """Return whether ``peer`` is connected, and did not break the protocol lately."""
        if trio.current_time() >= self._shunned.get(peer, 0.0):
            self._shunned.pop(peer, None)
        return peer in self._sender.connected and peer not in self._shunned

    def in_order(self, voters: Sequence[PublicKeyBytes]) -> Iterator[PublicKeyBytes]:
        """Yield everybody once, ``voters`` first, who may be asked when it is his turn."""
        others = [key for key in self._sender.connected if key not in voters]
        yield from filter(self.may_ask, (*voters, *others))

    def report(self, peer: PublicKeyBytes, error: PeerError) -> None:
        """Say that ``peer`` broke the protocol, and do not ask it for a while."""
        self._shunned[peer] = trio.current_time() + SHUN_S
        self._on_fault(peer, error)

    async def ask(self, peer: PublicKeyBytes, ask: StateQuestion) -> StateAnswer | None:
        """Return what ``peer`` answers, or None when it does not: no room, silence, or lost."""
        waiting = _Waiting(peer=peer)
        self._waiting[ask.number] = waiting
        try:
            if not self._sender.send_transfer(peer, self._shard, self._lineage, ask):
                await trio.lowlevel.checkpoint()
                return None
            with trio.move_on_after(ANSWER_PATIENCE_S):
                await waiting.done.wait()
            return waiting.answer
        finally:
            del self._waiting[ask.number]


def check_refusal(answer: StateAnswer | None) -> None:
    """Raise `PeerError` unless ``answer`` is a refusal, or none at all."""
    if answer is not None and not isinstance(answer, StateRefused):
        raise PeerError(f"the peer answers with {type(answer).__name__}, which was not asked for")
