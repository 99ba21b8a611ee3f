"""How far a shard has come, for those who wait for it."""

from collections.abc import Callable

import trio

from basenet.daemon.marks import Mark, Marks
from basenet.units import Seq


class Progress:
    """Final and archived watermarks of one shard, and who waits for them."""

    def __init__(self) -> None:
        self.final_seq = Seq(0)
        self.archived_seq = Seq(0)
        self.archived_ns: int | None = None
        self.marks = Marks()
        self._moved = trio.Event()

    def begin(self, tip: Mark, archived_seq: Seq) -> None:
        """Go on from what the journal holds."""
        self.marks.reset(tip, archived_seq)
        self.archived_seq = archived_seq
        self.set_final(tip.seq)

    def set_final(self, seq: Seq) -> None:
        """Every frame up to ``seq`` is final."""
        self.final_seq = seq
        self.wake()

    def set_archived(self, seq: Seq, at_ns: int | None) -> None:
        """Every frame up to ``seq`` is archived, since ``at_ns`` (wall clock)."""
        self.archived_seq = seq
        self.marks.on_archived(seq)
        self.archived_ns = at_ns or self.archived_ns
        self.wake()

    def wake(self) -> None:
        """Let everybody who waits look again."""
        moved, self._moved = self._moved, trio.Event()
        moved.set()

    async def moved(self) -> None:
        """Return when something changed: a watermark, or the shard's state."""
        await self._moved.wait()

    async def wait_until(self, is_reached: Callable[[], bool]) -> None:
        """Return once ``is_reached`` says so; it may raise to give up."""
        while not is_reached():
            await self._moved.wait()
