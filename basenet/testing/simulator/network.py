"""The network: delays, order, losses, partitions.

Three lanes join each two nodes: ordinary messages, frames (the bulk lane, slower and independent of
the first), heartbeats. A lane keeps its order in some runs, as one TCP connection does, and in
others not, as many do. What is on its way stays on its way when its sender dies.
"""

from collections.abc import Callable
from random import Random
from typing import Any, Final

from basenet.testing.simulator.chance import stream
from basenet.testing.simulator.clock import MILLISECOND, SECOND, Scheduler
from basenet.testing.simulator.faults import Noise, OneWayCut, Partition

ORDINARY: Final = 0
BULK: Final = 1
HEARTBEATS: Final = 2
_LANES: Final = 3
_LATE_MAX: Final = 4 * SECOND
_MICROSECOND: Final = 1_000

NetworkFault = Partition | OneWayCut | Noise


class _Link:
    """One direction between two nodes: its own chance, and when each lane delivered last."""

    __slots__ = ("chance", "is_cut", "last")

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.is_cut = False
        self.last = [0] * _LANES


class Network:
    """Takes what nodes send and brings it, or does not."""

    def __init__(self, seed: int, places: int, scheduler: Scheduler) -> None:
        chance = stream(seed, "network")
        self._scheduler = scheduler
        self._links = [
            [_Link(stream(seed, "link", sender, receiver)) for receiver in range(places)]
            for sender in range(places)
        ]
        base = chance.choice((200, 1_000, 1_000, 8_000, 40_000)) * _MICROSECOND
        self._base = (base, base * chance.choice((1, 1, 6)), base)
        self._jitter = base * chance.choice((0, 1, 3))
        self._is_ordered = chance.random() < 0.5  # noqa: PLR2004  (every other run)
        self._active: list[NetworkFault] = []
        self._noise: Noise | None = None
        self.sent = 0
        self.lost = 0

    def begin(self, fault: NetworkFault) -> None:
        """Let ``fault`` happen until its end."""
        self._active.append(fault)
        self._apply()
        self._scheduler.at(fault.at + fault.lasts, self._end, fault)

    def _end(self, fault: NetworkFault) -> None:
        # By identity: an equal fault may have been made twice.
        self._active = [other for other in self._active if other is not fault]
        self._apply()

    def _apply(self) -> None:
        """Work out what is cut now."""
        sides = [fault.sides for fault in self._active if isinstance(fault, Partition)]
        cuts = {(cut.node, cut.to) for cut in self._active if isinstance(cut, OneWayCut)}
        for sender, links in enumerate(self._links):
            for receiver, link in enumerate(links):
                link.is_cut = (sender, receiver) in cuts or any(
                    side[sender] != side[receiver] for side in sides
                )
        noises = [fault for fault in self._active if isinstance(fault, Noise)]
        self._noise = noises[-1] if noises else None

    def is_cut(self, sender: int, receiver: int) -> bool:
        """Return whether nothing goes from ``sender`` to ``receiver`` now."""
        return self._links[sender][receiver].is_cut

    def is_apart(self, one: int, other: int) -> bool:
        """Return whether two nodes cannot talk with each other now."""
        return self.is_cut(one, other) or self.is_cut(other, one)

    def send(
        self,
        sender: int,
        receiver: int,
        lane: int,
        action: Callable[[Any], object],
        what: object,
    ) -> None:
        """Let ``action(what)`` happen at ``receiver`` when, and if, the network brings it."""
        link = self._links[sender][receiver]
        self.sent += 1
        if link.is_cut:
            self.lost += 1
            return
        scheduler = self._scheduler
        arrival = scheduler.now + self._base[lane]
        if self._jitter:
            arrival += int(link.chance.random() * self._jitter)
        if self._noise is not None:
            arrival, copies = self._disturb(link.chance, arrival, self._noise)
            if copies == 0:
                self.lost += 1
                return
            if copies > 1:
                again = arrival + link.chance.randrange(300 * MILLISECOND)
                scheduler.at(again, action, what)
        elif self._is_ordered:
            arrival = link.last[lane] = max(arrival, link.last[lane])
        scheduler.at(arrival, action, what)

    def _disturb(self, chance: Random, arrival: int, noise: Noise) -> tuple[int, int]:
        """Return when a message comes in a noisy network, and how often."""
        if chance.random() < noise.lost:
            return arrival, 0
        if chance.random() < noise.late:
            arrival += chance.randrange(_LATE_MAX)
        return arrival, 2 if chance.random() < noise.doubled else 1
