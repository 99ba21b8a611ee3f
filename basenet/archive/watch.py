"""How old a moment is at least: the witness without which retention deletes nothing.

Theory of operation
===================

A wall clock can be years ahead (an NTP fault, a virtual machine resumed with a wrong clock,
``date -s``). By it the whole archive would have expired, and retention would delete the history of
the only copy. So the time of day has no say in what is deleted. An archive is *watched* instead::

    mark      after so much watched time the newest archived frame had this timestamp
    watched   how much time went by while a basenet, or at least this boot, could count it

Watched time is the sum of differences of clocks that nobody sets (`clock.Reading`). A reboot, a
suspend, a move to another machine: what cannot be counted is left out, so the sum is never more
than the time that went by. Hence what a mark names, and all before it in its line, *is* as old as
the watched time since the mark, whatever any clock says of it, and whatever timestamps say: within
a line they only grow, and are used for nothing but their order.

::

    watched   0 ------- mark A ---------------- mark B ------------ now
                        |<------------- retention ------------>|
    expired   <= A.timestamp, less what the newest base at or before it needs

* A wall clock that is ahead, behind, or goes to and fro changes nothing at all.
* What was not watched makes history stay longer, by the downtime at most; a daemon that comes back
  after months deletes again once it has watched for one retention, or by what the store says.
* A store with a clock of its own says how old an object is: `cutoff.find_stored`, for a watch that
  is younger than the retention (a new data directory, a node that archives for the first time).
* The operator's word stands above all of it: ``basenet archive prune --by-clock``.

The marks are thinned: two neighbours are apart by a sixteenth of their age, so the oldest kept
moment is a sixteenth of the retention older than asked for, and a hundred marks are enough.

The file in the data directory is a convenience: one that is missing or unreadable means that
nothing was watched yet. A copy of it in another boot leaves out the time between.
"""

from pathlib import Path
from typing import Final

import msgspec

from basenet.archive.clock import SYSTEM_CLOCK, Clock, Reading
from basenet.errors import BasenetError
from basenet.keys.files import (
    PRIVATE_FILE_MODE,
    make_private_directory,
    read_file,
    remove_drafts,
    replace,
)
from basenet.units import Lineage, TimestampNs

FOLDER_NAME: Final = "watched"
_APART: Final = 16


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """After ``watched_ns`` the newest archived frame of ``lineage`` had this timestamp."""

    watched_ns: int
    lineage: bytes
    timestamp_ns: int


class _Document(msgspec.Struct, kw_only=True):
    watched_ns: int
    course: str
    monotonic_ns: int
    uptime_ns: int
    marks: list[Mark]


class Watch:
    """Counts for how long one shard's archive has been watched; empty until `load`."""

    def __init__(self, path: Path | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        """Keep the marks in ``path``; None: only as long as this lives."""
        self._path = path
        self._clock = clock
        self._total_ns = 0
        self._reading: Reading = clock.steady()
        self._marks: list[Mark] = []

    def load(self) -> None:
        """Take in what an earlier life kept. It blocks."""
        if self._path is None:
            return
        remove_drafts(self._path)
        try:
            content = read_file(self._path, what="the record of watched time")
            found = msgspec.json.decode(content, type=_Document)
        except (BasenetError, msgspec.DecodeError):
            return
        if not _is_sound(found):
            return
        self._marks, self._total_ns = found.marks, found.watched_ns
        self._reading = Reading(
            course=found.course, monotonic_ns=found.monotonic_ns, uptime_ns=found.uptime_ns
        )

    def save(self) -> None:
        """Write it down. It blocks; raises `UnavailableError`."""
        if self._path is None:
            return
        document = _Document(
            watched_ns=self.watched_ns,
            course=self._reading.course,
            monotonic_ns=self._reading.monotonic_ns,
            uptime_ns=self._reading.uptime_ns,
            marks=self._marks,
        )
        make_private_directory(self._path.parent)
        replace(self._path, msgspec.json.encode(document), mode=PRIVATE_FILE_MODE)

    @property
    def watched_ns(self) -> int:
        """How much time was counted so far."""
        now = self._clock.steady()
        self._total_ns += now.elapsed_ns(self._reading)
        self._reading = now
        return self._total_ns

    @property
    def oldest_ns(self) -> int:
        """How long ago the oldest mark was made, in watched time; 0: there is none."""
        return self.watched_ns - self._marks[0].watched_ns if self._marks else 0

    def note(self, lineage: Lineage, timestamp_ns: TimestampNs) -> None:
        """Say that the newest archived frame of ``lineage`` has this timestamp now."""
        now_ns = self.watched_ns
        mark = Mark(watched_ns=now_ns, lineage=lineage, timestamp_ns=timestamp_ns)
        last = self._marks[-1] if self._marks else None
        # Of equal ones the first says more.
        if last and (last.lineage, last.timestamp_ns) == (mark.lineage, mark.timestamp_ns):
            return
        # Timestamps of a line only grow; should one not, what said otherwise is not believed.
        self._marks = [
            kept
            for kept in self._marks
            if kept.lineage != lineage or kept.timestamp_ns < timestamp_ns
        ]
        self._marks.append(mark)
        self._thin(now_ns)

    def _thin(self, now_ns: int) -> None:
        kept: list[Mark] = []
        for mark in self._marks:
            while len(kept) > 1:
                age_ns = now_ns - mark.watched_ns
                if mark.watched_ns - kept[-2].watched_ns > age_ns // _APART:
                    break
                kept.pop()
            kept.append(mark)
        self._marks = kept

    def find_older(self, age_ns: int) -> list[Mark]:
        """Return the marks that are at least ``age_ns`` old, the newest first."""
        before_ns = self.watched_ns - age_ns
        return [mark for mark in reversed(self._marks) if mark.watched_ns <= before_ns]


def _is_sound(found: _Document) -> bool:
    """Return whether marks are in order, none of them of a time that was not watched yet."""
    times = [0, *(mark.watched_ns for mark in found.marks), found.watched_ns]
    return times == sorted(times)
