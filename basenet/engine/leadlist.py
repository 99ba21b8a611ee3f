"""The list of shards that one node leads, as it and a follower both hold it (Q7).

A record is ``lineage[16] | epoch u64 | view u64``. The list is its records in ascending order, and
its name is their SHA-256: two nodes that name the same hash hold the same list, however it came
about. The records are kept sorted, so that hashing 10,000 of them after a change is one join.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from hashlib import sha256
from struct import Struct
from typing import Final

from basenet.units import LINEAGE_BYTES, Epoch, Lineage, View
from basenet.wire.message import LedShard

Term = tuple[Epoch, View]
"""When somebody leads: always compared together, never the view alone (mistake 11)."""

_TERM: Final = Struct(">QQ")


def make_record(lineage: Lineage, term: Term) -> bytes:
    """Return what a list holds of a shard that is led in ``term``."""
    return lineage + _TERM.pack(*term)


class LeadList:
    """Which shards a node leads, each in one (epoch, view); ``version`` grows with each change.

    Version 0 is the list before anything was said: empty, and held by nobody.
    """

    __slots__ = ("_digest", "_records", "_sorted", "version")

    def __init__(self) -> None:
        self.version = 0
        self._records: dict[Lineage, bytes] = {}
        self._sorted: list[bytes] = []
        self._digest: bytes | None = None

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, lineage: Lineage) -> bool:
        return lineage in self._records

    def __iter__(self) -> Iterator[Lineage]:
        return iter(self._records)

    def record(self, lineage: Lineage) -> bytes | None:
        """Return the record of ``lineage``, None if it is not led."""
        return self._records.get(lineage)

    def get(self, lineage: Lineage) -> Term | None:
        """Return the (epoch, view) in which ``lineage`` is led, None if it is not."""
        record = self._records.get(lineage)
        if record is None:
            return None
        epoch, view = _TERM.unpack_from(record, LINEAGE_BYTES)
        return Epoch(epoch), View(view)

    def put(self, lineage: Lineage, term: Term) -> None:
        """Lead ``lineage`` in ``term``, whatever was said of it before."""
        self.remove(lineage)
        record = make_record(lineage, term)
        self._records[lineage] = record
        insort(self._sorted, record)

    def remove(self, lineage: Lineage) -> None:
        """Lead ``lineage`` no more; nothing happens where it was not led."""
        self._digest = None
        record = self._records.pop(lineage, None)
        if record is not None:
            del self._sorted[bisect_left(self._sorted, record)]

    def digest(self) -> bytes:
        """Return the SHA-256 of the records."""
        if self._digest is None:
            self._digest = sha256(b"".join(self._sorted)).digest()
        return self._digest

    def entry(self, lineage: Lineage) -> LedShard:
        """Return what is said on the wire of ``lineage``, which is in the list."""
        term = self.get(lineage)
        assert term is not None, "only what is led has an entry"
        return LedShard(lineage, *term)

    def entries(self) -> tuple[LedShard, ...]:
        """Return the whole list as it is said on the wire."""
        return tuple(map(self.entry, self._records))

    def copy(self) -> "LeadList":
        """Return a list that changes by itself."""
        other = LeadList()
        other.version = self.version
        other._records = self._records.copy()
        other._sorted = self._sorted.copy()
        other._digest = self._digest
        return other

    def apply(self, led: Iterable[LedShard], unled: Iterable[Lineage]) -> None:
        """Take in what changed."""
        for shard in led:
            self.put(shard.lineage, (shard.epoch, shard.view))
        for lineage in unled:
            self.remove(lineage)
