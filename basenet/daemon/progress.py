"""How far a shard has come, for those who wait for it.

Theory of operation
===================

Two kinds of tasks wait. A few of the shard's own (archiver, upkeep, supervisor) look again whenever
anything moved. Many may wait for a commit each, as many as there are clients: those are woken when
the watermark has reached *their* seq, and besides only by `Progress.wake`, when the shard's state
changed, which may make their wait vain. So a commit costs a turn to whoever waited for it, and a
comparison for each *seq* that others wait for.
"""

from collections.abc import Callable
from enum import Enum, auto

import trio

from basenet.daemon.marks import Mark, Marks
from basenet.units import Seq


class Watermark(Enum):
    """What has come up to a seq, and never goes back while the shard runs."""

    FINAL = auto()
    APPLIED = auto()
    ARCHIVED = auto()


class _Goal:
    """A seq of a watermark, and how many wait for it."""

    __slots__ = ("count", "event")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.count = 0


class Progress:
    """The watermarks of one shard, and who waits for them."""

    def __init__(self) -> None:
        self.final_seq = Seq(0)
        self.archived_seq = Seq(0)
        self.archived_ns: int | None = None
        self.marks = Marks()
        self._moved = trio.Event()
        self._goals: dict[Watermark, dict[Seq, _Goal]] = {mark: {} for mark in Watermark}

    def begin(self, tip: Mark, archived_seq: Seq) -> None:
        """Go on from what the journal holds."""
        self.marks.reset(tip, archived_seq)
        self.archived_seq = archived_seq
        self.final_seq = tip.seq
        self.wake()

    def set_final(self, seq: Seq) -> None:
        """Every frame up to ``seq`` is final."""
        self.final_seq = seq
        self.advance(Watermark.FINAL, seq)

    def set_archived(self, seq: Seq, at_ns: int | None) -> None:
        """Every frame up to ``seq`` is archived, since ``at_ns`` (wall clock)."""
        self.archived_seq = seq
        self.marks.on_archived(seq)
        self.archived_ns = at_ns or self.archived_ns
        self.advance(Watermark.ARCHIVED, seq)

    def advance(self, watermark: Watermark, seq: Seq) -> None:
        """Let those look again who wait for ``seq`` or less, and who waits for any move."""
        goals = self._goals[watermark]
        for goal in [goal for goal in goals if goal <= seq]:
            goals.pop(goal).event.set()
        self._wake_movers()

    def wake(self) -> None:
        """Let everybody who waits look again."""
        for goals in self._goals.values():
            for goal in goals.values():
                goal.event.set()
            goals.clear()
        self._wake_movers()

    def _wake_movers(self) -> None:
        moved, self._moved = self._moved, trio.Event()
        moved.set()

    async def moved(self) -> None:
        """Return when something changed: a watermark, or the shard's state."""
        await self._moved.wait()

    async def wait_until(self, is_reached: Callable[[], bool]) -> None:
        """Return once ``is_reached`` says so; it may raise to give up."""
        while not is_reached():
            await self._moved.wait()

    async def wait_for(
        self, watermark: Watermark, seq: Seq, is_reached: Callable[[], bool]
    ) -> None:
        """Return once ``is_reached`` says so; it may raise to give up.

        It is asked at first, when ``watermark`` has reached ``seq``, and when the shard's state
        changed: nothing else must make it true.
        """
        while not is_reached():
            goals = self._goals[watermark]
            goal = goals.setdefault(seq, _Goal())
            goal.count += 1
            try:
                await goal.event.wait()
            finally:
                goal.count -= 1
                # Else the goals of those who gave up would gather while nothing becomes final.
                if not goal.count and goals.get(seq) is goal:
                    del goals[seq]
