"""How many commits, and how much time, lie between the chain's tip and the archive.

One mark a final frame: its seq, the number of its last commit, its capture time. The list is
thinned when an outage makes it long, so the figures then get coarser and memory stays bounded.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Final

from basenet.units import LocalNumber, Seq, TimestampNs

_MARKS_MAX: Final = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A final frame, and the bytes of it (and of thinned ones before it)."""

    seq: Seq
    size: int
    local_last: LocalNumber
    timestamp_ns: TimestampNs


class Marks:
    """The final frames that are not archived, and the newest that is."""

    def __init__(self) -> None:
        self.archived: Mark | None = None
        self._waiting: deque[Mark] = deque()
        self.waiting_bytes = 0

    def reset(self, tip: Mark, archived_seq: Seq) -> None:
        """Begin at ``tip``, of which the archive holds everything up to ``archived_seq``."""
        self._waiting.clear()
        self.waiting_bytes = 0
        self.archived = tip if archived_seq >= tip.seq else None
        if self.archived is None:
            self._waiting.append(tip)

    def add(self, mark: Mark) -> None:
        """Take in a new final frame."""
        self._waiting.append(mark)
        self.waiting_bytes += mark.size
        if len(self._waiting) > _MARKS_MAX:
            self._thin()

    def _thin(self) -> None:
        """Keep every second mark, with the bytes of the one before it."""
        marks = list(self._waiting)
        self._waiting = deque(
            replace(second, size=first.size + second.size)
            for first, second in zip(marks[0::2], marks[1::2], strict=False)
        )
        if len(marks) % 2:
            self._waiting.append(marks[-1])

    def on_archived(self, seq: Seq) -> None:
        """Everything up to ``seq`` is archived."""
        while self._waiting and self._waiting[0].seq <= seq:
            self.archived = self._waiting.popleft()
            self.waiting_bytes -= self.archived.size

    @property
    def oldest_ns(self) -> TimestampNs | None:
        """When the oldest commit that waits for the archive was captured; None: none waits."""
        return self._waiting[0].timestamp_ns if self._waiting else None

    def count_commits(self) -> int:
        """Return how many commits wait for the archive; 0 when none is known to wait."""
        if not self._waiting:
            return 0
        archived = self.archived.local_last if self.archived else self._waiting[0].local_last - 1
        return max(self._waiting[-1].local_last - archived, 0)
