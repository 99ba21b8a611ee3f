"""The names of an archive's objects, and what a name says.

::

    <svc>/<shard>/LEASE
    <svc>/<shard>/TIP
    <svc>/<shard>/<lineage hex>/log/<start/1_000_000 %016d>/
        <start %020d>-<end %020d>-<nanos %020d>.lbn     -L<level>.lbn where objects were merged
    <svc>/<shard>/<lineage hex>/set/L<level>/<from %020d>-<to %020d>.lbn     and .idx beside it
    <svc>/<shard>/<lineage hex>/part/<SHA-256 of its bytes, hex>.pg

All are below the prefix in the archive's URL. ``nanos`` is the timestamp of the first frame, so
the same content has the same name. In an encrypted archive a part's name is 32 random digits, and
whoever sees names learns nothing of the content. The log of the system that basenet follows,
``<svc>/<shard>/<start/1_000_000 %016d>/<start %020d>-<nanos %020d>.lbn``, is still recognised.
"""

import re
from dataclasses import dataclass
from typing import Final

from basenet.units import Lineage, Seq, ShardId, TimestampNs

LEVEL_MAX: Final = 9
LOG_FOLDER_SEQS: Final = 1_000_000
_LOG = re.compile(
    r"([0-9a-f]{32})/log/([0-9]{16})/([0-9]{20})-([0-9]{20})-([0-9]{20})(?:-L([1-9]))?\.lbn\Z"
)
_SET = re.compile(r"([0-9a-f]{32})/set/L([0-9])/([0-9]{20})-([0-9]{20})\.(lbn|idx)\Z")
_PART = re.compile(r"([0-9a-f]{32})/part/([0-9a-f]{32}|[0-9a-f]{64})\.pg\Z")
_OLD_LOG = re.compile(r"([0-9]{16})/([0-9]{20})-([0-9]{20})\.lbn\Z")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class LogName:
    """A log object: frames ``start`` .. ``end`` of a lineage.

    ``level`` 0: as they were shipped; above it the object was merged from objects of lower levels.
    """

    start: Seq
    end: Seq
    nanos: TimestampNs
    lineage: Lineage
    level: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class SetName:
    """A page set's manifest (or, with ``is_index``, its index)."""

    to_seq: Seq
    from_seq: Seq
    level: int
    lineage: Lineage
    is_index: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PartName:
    """A part of a page set; ``name`` is the SHA-256 of its bytes."""

    lineage: Lineage
    name: bytes


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class OldLogName:
    """A log object of the followed system, which names neither its end nor a lineage."""

    start: Seq
    nanos: TimestampNs


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardNames:
    """Builds and reads the object names of one shard of one service."""

    service: str
    shard: ShardId

    @property
    def prefix(self) -> str:
        """What the names of all objects of this shard start with."""
        return f"{self.service}/{self.shard}/"

    @property
    def lease(self) -> str:
        """The lease object."""
        return self.prefix + "LEASE"

    @property
    def tip(self) -> str:
        """The tip object."""
        return self.prefix + "TIP"

    def lineage(self, lineage: Lineage) -> str:
        """Return the prefix of a lineage's objects."""
        return f"{self.prefix}{lineage.hex()}/"

    def log(self, name: LogName) -> str:
        """Return the object name of a log object."""
        folder = f"{name.start // LOG_FOLDER_SEQS:016d}"
        level = f"-L{name.level}" if name.level else ""
        return (
            f"{self.lineage(name.lineage)}log/{folder}/"
            f"{name.start:020d}-{name.end:020d}-{name.nanos:020d}{level}.lbn"
        )

    def page_set(self, name: SetName) -> str:
        """Return the object name of a manifest or an index."""
        suffix = "idx" if name.is_index else "lbn"
        return (
            f"{self.lineage(name.lineage)}set/L{name.level}/"
            f"{name.from_seq:020d}-{name.to_seq:020d}.{suffix}"
        )

    def part(self, name: PartName) -> str:
        """Return the object name of a part."""
        return f"{self.lineage(name.lineage)}part/{name.name.hex()}.pg"

    def parse(self, name: str) -> LogName | SetName | PartName | OldLogName | None:
        """Return what the object ``name`` is; None for LEASE, TIP and names that are not ours."""
        if not name.startswith(self.prefix):
            return None
        rest = name[len(self.prefix) :]
        for pattern, build in _PATTERNS:
            match = pattern.match(rest)
            if match:
                parsed = build(match)
                return parsed if self._spell(parsed) == name else None
        return None

    def _spell(self, parsed: LogName | SetName | PartName | OldLogName) -> str:
        if isinstance(parsed, LogName):
            return self.log(parsed)
        if isinstance(parsed, SetName):
            return self.page_set(parsed)
        if isinstance(parsed, PartName):
            return self.part(parsed)
        folder = f"{parsed.start // LOG_FOLDER_SEQS:016d}"
        return f"{self.prefix}{folder}/{parsed.start:020d}-{parsed.nanos:020d}.lbn"


def _lineage(match: re.Match[str]) -> Lineage:
    return Lineage(bytes.fromhex(match[1]))


def _log(match: re.Match[str]) -> LogName:
    return LogName(
        lineage=_lineage(match),
        start=Seq(int(match[3])),
        end=Seq(int(match[4])),
        nanos=TimestampNs(int(match[5])),
        level=int(match[6] or 0),
    )


def _page_set(match: re.Match[str]) -> SetName:
    return SetName(
        lineage=_lineage(match),
        level=int(match[2]),
        from_seq=Seq(int(match[3])),
        to_seq=Seq(int(match[4])),
        is_index=match[5] == "idx",
    )


def _part(match: re.Match[str]) -> PartName:
    return PartName(lineage=_lineage(match), name=bytes.fromhex(match[2]))


def _old_log(match: re.Match[str]) -> OldLogName:
    return OldLogName(start=Seq(int(match[2])), nanos=TimestampNs(int(match[3])))


_PATTERNS: Final = ((_LOG, _log), (_SET, _page_set), (_PART, _part), (_OLD_LOG, _old_log))
